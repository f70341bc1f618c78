"""A change of layers from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.layers.settings import LayersSettings
from lawa_exp.config.rules import arguments, setting, text
from lawa_exp.seams.callback import Callback

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CustomLayers(LayersSettings):
    """`builder(model, **args)` changes the model in place, and returns a `seams.callback.Callback` or None.

    It is called for plans, too, with a model on the meta device.
    """

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()

    def apply(self, model: nn.Module) -> Callback | None:
        from lawa_exp.storage import custom

        callback: Callback | None = custom.made(
            self,
            "layers",
            model,
            expected="None, or a lawa_exp.seams.callback.Callback",
            fits=lambda made: made is None or isinstance(made, Callback),
        )
        return callback
