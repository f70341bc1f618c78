"""The models: a name, a typed dataclass and a builder for each; torch is imported only when one is built.

A builder takes its settings and returns a `torch.nn.Module` whose `forward(inputs)` gives logits [..., vocabulary].
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.config import UserError, boolean, integer, mapping, number, optional, setting, text

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GPTSettings:
    """GPT-2 (Radford et al. 2019), pre-norm; parameter names are nanoGPT's."""

    name: str = setting(text())
    layers: int = setting(integer(1))
    heads: int = setting(integer(1))
    width: int = setting(integer(1))
    context: int = setting(integer(1))
    vocab_size: int = setting(integer(1))
    bias: bool = setting(boolean())
    dropout: float = setting(number(low=0, high=0.999))
    scale_attn_by_inverse_layer_idx: bool = setting(boolean())

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")


@dataclass(frozen=True)
class CustomSettings:
    """A model from outside: `builder=package.module:function`, called as `function(**args)`."""

    name: str = setting(text())
    builder: str = setting(text())
    args: dict[str, Any] | None = setting(optional(mapping()))
    context: int = setting(integer(1))
    vocab_size: int = setting(integer(1))


MODELS: dict[str, tuple[type, str]] = {
    "gpt": (GPTSettings, "lawa_exp.models.gpt:GPT"),
    "custom": (CustomSettings, "lawa_exp.models:build_custom"),
}


def build_model(settings: Any) -> nn.Module:
    """The module for `settings`, initialised from torch's current random state, on torch's current default device."""
    for cls, builder in MODELS.values():
        if isinstance(settings, cls):
            return load(builder)(settings)
    raise AssertionError(f"no model for {settings}")


def build_custom(settings: CustomSettings) -> nn.Module:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        builder = load(settings.builder)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model.builder={settings.builder}: expected package.module:function ({error})") from None
    arguments = settings.args or {}
    try:
        inspect.signature(builder).bind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.args={arguments}: {settings.builder} does not take them ({error})") from None
    model = builder(**arguments)
    if not callable(getattr(model, "named_parameters", None)):
        raise UserError(f"model.builder={settings.builder}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def load(reference: str) -> Any:
    """The object behind `package.module:name`."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
