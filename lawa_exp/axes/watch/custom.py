"""A watch from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.watch.settings import WatchSettings
from lawa_exp.config.rules import arguments, setting, text
from lawa_exp.seams.callback import Callback

if TYPE_CHECKING:
    from lawa_exp.seams.context import Context


@dataclass(frozen=True)
class CustomWatch(WatchSettings):
    """`builder(context, **args)`, a `seams.callback.Callback` that only reads. context: a `seams.context.Context`."""

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()

    def build(self, context: Context) -> Callback:
        from lawa_exp.storage import custom

        callback: Callback = custom.made(
            self,
            "watch",
            context,
            expected="a lawa_exp.seams.callback.Callback",
            fits=lambda made: isinstance(made, Callback),
        )
        return callback
