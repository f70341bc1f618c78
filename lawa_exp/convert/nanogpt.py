"""nanoGPT's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NANOGPT = {  # our settings, and what nanoGPT's `model_args` call them
    "layers": "n_layer",
    "heads": "n_head",
    "width": "n_embd",
    "context": "block_size",
    "bias": "bias",
    "vocab_size": "vocab_size",
    "dropout": "dropout",
}


def of_nanogpt(model_args: object) -> dict[str, Any]:
    """The settings that nanoGPT's checkpoints record, as far as they do; empty of any other kind.

    Its attention is not divided by the layer's number, and has no word for that.
    """
    if not isinstance(model_args, Mapping) or "n_head" not in model_args:
        return {}
    settings = {ours: model_args[theirs] for ours, theirs in NANOGPT.items() if theirs in model_args}
    return settings | {"scale_attn_by_inverse_layer_idx": False}
