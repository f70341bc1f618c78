"""`--view int8`: what weights lose by 8-bit weight quantization."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

LEVELS = 127  # of either sign


class Int8:
    """Rounds each matrix to 255 levels, symmetric around 0, with one scale for each output channel (absmax).

    Of a parameter of two or more dimensions, w[c] of output channel c (dimension 0; of an embedding a token) becomes
    s * round(w[c] / s), ties to even, with s = max |w[c]| / 127: the absmax quantization of Dettmers et al. (2022,
    LLM.int8(), section 2), of weights alone. Vectors, scalars and buffers stay as they are, and so does the arithmetic
    (trainer.dtype).
    """

    description = "matrices rounded to int8, one scale for each output channel; the rest and arithmetic as they are"

    def __call__(self, tensors: Mapping[str, Tensor], averaged: Collection[str]) -> dict[str, Tensor]:
        return {n: rounded(t) if n in averaged and t.dim() > 1 else t for n, t in tensors.items()}


def rounded(weights: Tensor) -> Tensor:
    """[channels, ...] in its own dtype, computed in float32 at least."""
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    scale = wide.abs().flatten(1).amax(1) / LEVELS
    scale = scale.view(-1, *[1] * (wide.dim() - 1))
    levels = (wide / scale.where(scale != 0, 1)).round().clamp(-LEVELS, LEVELS)  # a channel of zeros stays one
    return (levels * scale).to(weights.dtype)
