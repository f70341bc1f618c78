"""Dropout on a CPU: torch draws one number after another there, on one thread, which takes longer than the attention.

Here a draw of 64 bits serves four elements, each dropped with a probability that is p to 2^-17. On another device, and
compiled, it is torch's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16


def chosen(shape: torch.Size, p: float) -> Tensor:
    """Which elements of a tensor of this shape are dropped: bool, from torch's global generator, on the CPU."""
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (drawn.view(torch.int16)[:count] < round(p * LEVELS) - LEVELS // 2).view(shape)


def by_torch(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()


class Dropout(nn.Dropout):
    """In place of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or by_torch(x):
            return super().forward(x)
        return x.masked_fill(chosen(x.shape, self.p), 0) / (1 - self.p)


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, p: float, scale: float) -> Tensor:
    """q, k, v: [batch, heads, context, width]; seen: bool [batch, 1, context or 1, keys], the same for every query."""
    if not p or by_torch(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=p, scale=scale)
    logits = (q * scale) @ k.transpose(-2, -1)
    if seen is not None:
        logits += torch.zeros_like(seen[:, :, :1], dtype=logits.dtype).masked_fill_(~seen[:, :, :1], -math.inf)
    weights = logits.softmax(dim=-1)
    return weights.masked_fill(chosen(weights.shape, p), 0) @ (v / (1 - p))


def in_transformers(model: Any, name: str = "lawa_exp") -> None:
    """Puts both into a bidirectional model of transformers', in place."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def function(
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        seen: Tensor | None,
        dropout: float,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        return attention(q, k, v, seen, dropout, scaling).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register(name, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    for module in list(model.modules()):
        for child, part in module.named_children():
            if type(part) is nn.Dropout:
                setattr(module, child, Dropout(part.p))
