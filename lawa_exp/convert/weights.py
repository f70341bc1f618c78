"""Weights of a file or a folder, ours or Hugging Face's, into a model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from lawa_exp.averaging.tensors import load_live
from lawa_exp.axes.model.gpt.gpt import GPT
from lawa_exp.convert.hugging_face import from_hugging_face, is_hugging_face
from lawa_exp.storage.origin import weight_files
from lawa_exp.storage.safetensors import map_tensors
from lawa_exp.storage.store import Store
from lawa_exp.system.errors import UserError


def load_weights(model: nn.Module, live: dict[str, Tensor], path: Path, store: Store | None = None) -> None:
    """Copies the weights of a safetensors file or folder over the live ones. UserError where they do not fit.

    A Hugging Face folder of GPT-2 fits our GPT, which has the activation's exact form where GPT-2 has its tanh form.
    """
    tensors = {name: t for file in weight_files(path) for name, t in map_tensors(file).items()}
    if isinstance(model, GPT) and is_hugging_face(path):
        tensors = from_hugging_face(tensors, path, model)
    try:
        load_live(live, tensors, store.rows if store else None)
    except UserError as error:
        raise UserError(f"init.from={path}: {error}") from None
