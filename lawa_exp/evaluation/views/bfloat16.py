"""`--view bfloat16`: what weights lose where they are deployed in bfloat16."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor


class Bfloat16:
    """Rounds each parameter to the nearest bfloat16, ties to even, as `model.to(torch.bfloat16)` does.

    The values go back into their own dtype: the arithmetic is that of the other evaluations (trainer.dtype), so that
    the difference to the plain weights is that of the rounding alone. Buffers stay as they are.
    """

    description = "parameters rounded to bfloat16; buffers and arithmetic as of the plain weights"

    def __call__(self, tensors: Mapping[str, Tensor], averaged: Collection[str]) -> dict[str, Tensor]:
        return {n: t.to(torch.bfloat16).to(t.dtype) if n in averaged else t for n, t in tensors.items()}
