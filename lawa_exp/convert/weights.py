"""Weights of a file or a folder of any kind into a model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from lawa_exp.averaging.tensors import load_live
from lawa_exp.axes.model.gpt.folder import is_hugging_face
from lawa_exp.axes.model.gpt.gpt import GPT, not_weights
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.convert.as_loaded import as_loaded
from lawa_exp.convert.checkpoints import as_ours, read_checkpoint
from lawa_exp.convert.hugging_face import scaled_queries
from lawa_exp.convert.recorded import recorded
from lawa_exp.storage.store import Store
from lawa_exp.system.errors import UserError

SCALE = "scale_attn_by_inverse_layer_idx"
OF_TRANSFORMERS = "_keys_to_ignore_on_load_unexpected"  # an attribute of its models


def load_weights(
    model: nn.Module, live: dict[str, Tensor], path: Path, store: Store | None = None, key: str = "init.from"
) -> None:
    """Copies the weights of a checkpoint over the live ones. UserError, which begins with `key`: they do not fit.

    GPT-2 of transformers or of nanoGPT fits our GPT, which has the activation's exact form where transformers' GPT-2
    has its tanh form. Names are as transformers itself reads them, where the model is one of its own.
    """
    gpt = model.settings if isinstance(model, GPT) else None
    names = {*model.state_dict()} | (not_weights(gpt.layers) if gpt else set())
    try:
        tensors = as_ours(read_checkpoint(path), path, live, gpt)
        if gpt:
            tensors = _for_gpt(tensors, path, gpt)
        elif hasattr(model, OF_TRANSFORMERS):
            tensors = as_loaded(model, tensors)
        tensors = {name: t for name, t in tensors.items() if name in live or name not in names}  # ties, masks
        load_live(live, tensors, store.rows if store else None)
    except UserError as error:
        text = str(error)
        raise UserError(f"{key}={text}" if text.startswith(str(path)) else f"{key}={path}: {text}") from None


def _for_gpt(tensors: dict[str, Tensor], path: Path, settings: GPTSettings) -> dict[str, Tensor]:
    """With nanoGPT's scale of the attention. UserError: it has other heads, which shapes do not show."""
    own = recorded(path)
    if (heads := own.get("heads", settings.heads)) != settings.heads:
        raise UserError(
            f"it was trained with {heads} heads, the model has {settings.heads}; choose model.heads={heads}"
        )
    if not is_hugging_face(path) and settings.scale_attn_by_inverse_layer_idx and own.get(SCALE) is False:
        return scaled_queries(tensors, lambda layer: layer + 1)
    return tensors
