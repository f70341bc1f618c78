"""A model from outside."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.config.rules import integer, mapping, optional, setting, text
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn

from lawa_exp.axes.model.vocabulary import check_vocabulary


@dataclass(frozen=True)
class CustomSettings:
    """A model from outside: `builder=package.module:function`, called as `function(**args)`."""

    inputs: ClassVar[str] = "any"
    name: str = setting(text())
    builder: str = setting(text())
    args: dict[str, Any] | None = setting(optional(mapping()))
    context: int = setting(integer(1))
    vocab_size: int = setting(integer(1))

    def fitted(self, data: Any, name: str) -> CustomSettings:
        check_vocabulary(self.vocab_size, data, name)
        return self


def build_custom(settings: CustomSettings) -> nn.Module:
    from lawa_exp.storage import custom

    arguments = settings.args or {}
    with custom.imports_checked(settings.builder, "model.builder"):
        builder = custom.load(settings.builder, arguments, "model.builder")
        try:
            inspect.signature(builder).bind(**arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.args={arguments}: {settings.builder} does not take them ({error})") from None
        model = builder(**arguments)
    if not callable(getattr(model, "named_parameters", None)):
        raise UserError(f"model.builder={settings.builder}: expected a torch.nn.Module, got {type(model).__name__}")
    return model
