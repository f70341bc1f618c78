"""GPT-2 as Sanyal et al. trained it: pre-norm blocks, tied embedding, optional inverse-layer attention scale."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lawa_exp import models


class Attention(nn.Module):
    """Causal self-attention; logits are q.k / sqrt(head width), divided by the layer's number (from 1) if asked."""

    def __init__(self, s: models.GPTSettings, layer: int) -> None:
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
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, context, width)))


class MLP(nn.Module):
    def __init__(self, s: models.GPTSettings) -> None:
        super().__init__()
        self.c_fc = nn.Linear(s.width, 4 * s.width, bias=s.bias)
        self.c_proj = nn.Linear(4 * s.width, s.width, bias=s.bias)
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, s: models.GPTSettings, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(s.width, bias=s.bias)
        self.attn = Attention(s, layer)
        self.ln_2 = nn.LayerNorm(s.width, bias=s.bias)
        self.mlp = MLP(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """tokens [batch, context] (integers) -> logits [batch, context, vocabulary]."""

    def __init__(self, s: models.GPTSettings) -> None:
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
        return self.lm_head(t["ln_f"](x))


TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # Conv1D there: [in, out]


NANOGPT = {  # our settings, and what nanoGPT's `model_args` call them
    "layers": "n_layer",
    "heads": "n_head",
    "width": "n_embd",
    "context": "block_size",
    "vocab_size": "vocab_size",
    "bias": "bias",
    "dropout": "dropout",
}


def of_nanogpt(model_args: Any) -> dict[str, Any]:
    """The settings that nanoGPT's checkpoints record, as far as they do; empty of any other kind.

    Its attention is not divided by the layer's number, and has no word for that.
    """
    if not isinstance(model_args, Mapping) or "n_head" not in model_args:
        return {}
    found = {ours: model_args[theirs] for ours, theirs in NANOGPT.items() if theirs in model_args}
    return found | {"scale_attn_by_inverse_layer_idx": False}


def not_weights(layers: int) -> set[str]:
    """Masks that nanoGPT's and transformers' checkpoints hold beside the weights."""
    return {f"transformer.h.{layer}.attn.{name}" for layer in range(layers) for name in ("bias", "masked_bias")}


def is_hugging_face(path: Path) -> bool:
    """Whether a folder is a GPT-2 as transformers saves it."""
    config = path / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "gpt2"


def from_hugging_face(tensors: dict[str, Tensor], path: Path, model: GPT) -> dict[str, Tensor]:
    """The tensors of transformers' GPT-2 in folder `path` under our names and in our shapes, for `model`.

    Where only one of the two divides the attention's logits by the layer's number, the query weights make up for it.
    Biases that are all zero are left out for a model without them.
    """
    found = {}
    for name, tensor in tensors.items():
        ours = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if ours.endswith((".attn.bias", ".attn.masked_bias")) or ours == "lm_head.weight":  # masks, the tied head
            continue
        if not model.settings.bias and ours.endswith(".bias") and not tensor.any():
            continue
        found[ours] = tensor.T if ours.endswith(TURNED) else tensor
    there = bool(json.loads((path / "config.json").read_text()).get("scale_attn_by_inverse_layer_idx"))
    here = model.settings.scale_attn_by_inverse_layer_idx
    if here and not there:
        return scaled_queries(found, lambda layer: layer + 1)
    if there and not here:
        return scaled_queries(found, lambda layer: 1 / (layer + 1))
    return found


def to_hugging_face(tensors: Mapping[str, Tensor], s: models.GPTSettings) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Our tensors for transformers' GPT2LMHeadModel, and its config.json: the same function, to rounding.

    Without biases they are zero there; the activation is the exact GELU; rows of the vocabulary stay as they are.
    """
    found = {name: (t.T if name.endswith(TURNED) else t).contiguous() for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if not s.bias and name.endswith(".weight") and ".wte." not in name and ".wpe." not in name:
            found[name.removesuffix("weight") + "bias"] = torch.zeros(tensor.shape[0], dtype=tensor.dtype)
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": s.layers,
        "n_head": s.heads,
        "n_embd": s.width,
        "n_positions": s.context,
        "vocab_size": s.vocab_size,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_by_inverse_layer_idx": s.scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": True,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), s.dropout),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 50256 if s.vocab_size > 50256 else None),
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    return found, config


def scaled_queries(tensors: Mapping[str, Tensor], factor: Callable[[int], float]) -> dict[str, Tensor]:
    """The tensors (our names) with each layer's query weights and biases times `factor(layer)`, layers from 0."""
    scaled = dict(tensors)
    for name, tensor in tensors.items():
        if ".attn.c_attn." in name:
            scaled[name] = tensor.clone()
            scaled[name][: tensor.shape[0] // 3] *= factor(int(name.split(".")[2]))
    return scaled
