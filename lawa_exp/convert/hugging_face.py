"""transformers' GPT-2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lawa_exp.axes.model.gpt.folder import config_file, content_of
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.system.errors import UserError

TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # Conv1D there: [in, out]


SETTINGS = {  # ours, and what config.json calls them
    "layers": "n_layer",
    "heads": "n_head",
    "width": "n_embd",
    "context": "n_positions",
    "vocab_size": "vocab_size",
}


def hugging_face_settings(path: Path) -> dict[str, int]:
    """The settings of a GPT-2 that its config.json has, under our names. UserError: one is no number."""
    config = config_file(path)
    content = content_of(config)
    settings = {ours: content[theirs] for ours, theirs in SETTINGS.items() if theirs in content}
    for ours, value in settings.items():
        if type(value) is not int:
            raise UserError(f"{config}: {SETTINGS[ours]} is no whole number")
    return settings


def from_hugging_face(tensors: dict[str, Tensor], path: Path, settings: GPTSettings) -> dict[str, Tensor]:
    """The tensors of transformers' GPT-2 in `path` under our names and in our shapes, for a GPT of `settings`.

    Where only one of the two divides the attention's logits by the layer's number, the query weights make up for it.
    Biases that are all zero are left out for a model without them.
    """
    found = {}
    for name, tensor in tensors.items():
        ours = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if ours.endswith((".attn.bias", ".attn.masked_bias")) or ours == "lm_head.weight":  # masks, the tied head
            continue
        if not settings.bias and ours.endswith(".bias") and not tensor.any():
            continue
        found[ours] = tensor.T if ours.endswith(TURNED) else tensor
    there = bool(content_of(config_file(path)).get("scale_attn_by_inverse_layer_idx"))
    here = settings.scale_attn_by_inverse_layer_idx
    if here and not there:
        return scaled_queries(found, lambda layer: layer + 1)
    if there and not here:
        return scaled_queries(found, lambda layer: 1 / (layer + 1))
    return found


def to_hugging_face(tensors: Mapping[str, Tensor], s: GPTSettings) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Our tensors for transformers' GPT2LMHeadModel, and its config.json: the same function, to rounding.

    Without biases they are zero there; the activation is the exact GELU; rows of the vocabulary stay as they are.
    """
    weights = {name: (t.T if name.endswith(TURNED) else t).contiguous() for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if not s.bias and name.endswith(".weight") and ".wte." not in name and ".wpe." not in name:
            weights[name.removesuffix("weight") + "bias"] = torch.zeros(tensor.shape[0], dtype=tensor.dtype)
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: getattr(s, ours) for ours, theirs in SETTINGS.items()},
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_by_inverse_layer_idx": s.scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": True,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), s.dropout),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 50256 if s.vocab_size > 50256 else None),
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    return weights, config


def scaled_queries(tensors: Mapping[str, Tensor], factor: Callable[[int], float]) -> dict[str, Tensor]:
    """The tensors (our names) with each layer's query weights and biases times `factor(layer)`, layers from 0."""
    scaled = dict(tensors)
    for name, tensor in tensors.items():
        if ".attn.c_attn." in name:
            scaled[name] = tensor.clone()
            scaled[name][: tensor.shape[0] // 3] *= factor(int(name.split(".")[2]))
    return scaled
