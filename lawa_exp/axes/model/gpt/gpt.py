"""GPT-2 as Sanyal et al. trained it: pre-norm blocks, tied embedding, optional inverse-layer attention scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lawa_exp.axes.model.gpt.settings import GPTSettings


class Attention(nn.Module):
    """Causal self-attention; logits are q.k / sqrt(head width), divided by the layer's number (from 1) if set so."""

    def __init__(self, s: GPTSettings, layer: int) -> None:
        super().__init__()
        self.heads = s.heads
        self.dropout = s.dropout
        self.scale = 1 / math.sqrt(s.width // s.heads)
        if s.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = nn.Linear(s.width, 3 * s.width, bias=s.bias)
        self.c_proj = nn.Linear(s.width, s.width, bias=s.bias)
        self.resid_dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, context, width = x.shape
        q, k, v = (t.view(batch, context, self.heads, -1).transpose(1, 2) for t in self.c_attn(x).split(width, dim=2))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=self.scale)
        out: Tensor = self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, context, width)))
        return out


class MLP(nn.Module):
    def __init__(self, s: GPTSettings) -> None:
        super().__init__()
        self.c_fc = nn.Linear(s.width, 4 * s.width, bias=s.bias)
        self.c_proj = nn.Linear(4 * s.width, s.width, bias=s.bias)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.c_proj(F.gelu(self.c_fc(x))))
        return out


class Block(nn.Module):
    def __init__(self, s: GPTSettings, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(s.width, bias=s.bias)
        self.attn = Attention(s, layer)
        self.ln_2 = nn.LayerNorm(s.width, bias=s.bias)
        self.mlp = MLP(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """tokens [batch, context] (integers) -> logits [batch, context, vocabulary]."""

    def __init__(self, s: GPTSettings) -> None:
        super().__init__()
        self.settings = s
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(s.vocab_size, s.width),
                "wpe": nn.Embedding(s.context, s.width),
                "drop": nn.Dropout(s.dropout),
                "h": nn.ModuleList(Block(s, layer) for layer in range(s.layers)),
                "ln_f": nn.LayerNorm(s.width, bias=s.bias),
            }
        )
        self.lm_head = nn.Linear(s.width, s.vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # residual projections (Radford et al. 2019, section 2.3)
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * s.layers))

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        t: Any = self.transformer
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = t["drop"](t["wte"](tokens) + t["wpe"](positions))
        for block in t["h"]:
            x = block(x)
        logits: Tensor = self.lm_head(t["ln_f"](x))
        return logits


def not_weights(layers: int) -> set[str]:
    """Masks that nanoGPT's and transformers' checkpoints hold besides the weights."""
    return {f"transformer.h.{layer}.attn.{name}" for layer in range(layers) for name in ("bias", "masked_bias")}
