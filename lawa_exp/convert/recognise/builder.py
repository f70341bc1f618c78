"""A model that a function of the user's builds, as of Lightning's checkpoints, which do not say what they are of."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.convert.recognise.encoder import of_characters, of_gpt2, of_transformers
from lawa_exp.convert.recognise.recognised import Looked, Recognised
from lawa_exp.system.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST = ("context", "block_size", "max_seq_len", "max_position_embeddings", "n_positions")  # of it or its `config`


def named(looked: Looked, reference: str) -> Recognised:
    """`module:function`, called without arguments; the current folder is searched for the module.

    Of the module: attributes `context`, `block_size` and the like say the longest input in tokens, `vocab_size` the
    vocabulary, `transform` makes a PIL image into an input. UserError: there is no such function, or it raises.
    """
    model = _called(reference)
    config = getattr(model, "config", None)
    context = next((n for name in LONGEST for of in (model, config) if (n := _number(of, name))), None)
    vocab_size = _number(model, "vocab_size") or _number(config, "vocab_size")
    given = getattr(model, "transform", None)

    def transform(_: nn.Module) -> tuple[Callable[[Any], Tensor], str]:
        if callable(given):
            return given, "the model's own attribute `transform`"
        from torchvision.transforms.functional import to_tensor

        return to_tensor, "pixels from 0 to 1 at their own size (the model has no attribute `transform`)"

    return Recognised(
        f"{type(model).__name__} of {reference}",
        None,
        lambda: model,
        context=context,
        vocab_size=vocab_size,
        encoder=lambda folders: of_transformers(folders) or of_characters(folders) or of_gpt2(vocab_size),
        transform=transform,
    )


def _number(of: object, name: str) -> int | None:
    value = getattr(of, name, None)
    return value if type(value) is int and value > 0 else None


def _called(reference: str) -> nn.Module:
    from torch import nn

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module, name = reference.split(":")
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--model={reference}: expected MODULE:FUNCTION ({error})") from None
    try:
        model = function()
    except Exception as error:
        raise UserError(
            f"--model={reference} raised {type(error).__name__}: {one_line(str(error))[:200]} (it is called without "
            "arguments)"
        ) from None
    if not isinstance(model, nn.Module):
        raise UserError(f"--model={reference}: expected a torch.nn.Module, got {type(model).__name__}")
    return model
