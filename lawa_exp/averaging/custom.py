"""An averager from outside, in a training or a read-out of it.

Other people's loops need none of this: `ModelAverager(model, settings)` takes any settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lawa_exp.averaging.settings import AveragerSettings
from lawa_exp.config.rules import arguments, build, defaulted, setting, text
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.averaging.averager import Averager
    from lawa_exp.averaging.window import Window
    from lawa_exp.storage.custom import Settings

LONGEST = 80  # characters of an id that shows the arguments


@dataclass(frozen=True)
class CustomSettings(AveragerSettings):
    """The averager whose settings `builder(**args)` gives: of a class derived from `WindowSettings`, `RunningSettings`
    or `ExponentialSettings`, with its closed form. Steps in `args` are integers.

    code: a hash of its sources, which a training fills in. It is in the id: an average by other code is another one.
    """

    kind: ClassVar[str] = "custom"
    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    code: str = setting(defaulted(text()), "hash of the builder's sources; training fills it in")

    @property
    def id(self) -> str:
        args = dict(sorted((self.args or {}).items()))
        words = [f"{name}{value}" for name, value in args.items()]
        readable = "-".join(["custom", self.builder.replace(":", "."), *words])
        plain = re.sub(r"[^\w.+-]", "_", readable)
        numbers = all(isinstance(value, int | float) for value in args.values())  # else `1` may be a text
        if plain != readable or len(plain) > LONGEST or not numbers:
            whole = json.dumps([self.builder, args], sort_keys=True, default=str)
            plain = f"{plain[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        return f"{plain}-{self.code[:8]}"

    @cached_property
    def inner(self) -> AveragerSettings:
        """What the builder gives. UserError where its sources are not those of `code`."""
        from lawa_exp.storage import custom

        settings = made_averager(self, "averagers.custom")
        if custom.digest(self.builder) != self.code:
            raise UserError(
                f"averagers.custom.builder={self.builder}: its sources are not those that {self.id} was attached with; "
                "put these back, or choose another run_dir"
            )
        return settings

    @property
    def windowed(self) -> bool:  # type: ignore[override]
        return self.inner.windowed

    @property
    def keeps_all(self) -> bool:  # type: ignore[override]
        return self.inner.keeps_all

    @property
    def start(self) -> int:
        return self.inner.start

    @property
    def period(self) -> int:
        return self.inner.period

    @property
    def observations(self) -> int:
        return self.inner.observations

    def copies(self) -> int:  # type: ignore[override]
        return self.inner.copies()

    def build(self, averaged: frozenset[str], window: Window, statistics: frozenset[str]) -> Averager:
        return cast("Averager", Renamed(self.inner.build(averaged, window, statistics), self))

    def needed(self, step: int) -> Sequence[int]:
        return self.inner.needed(step)

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        return self.inner.coefficients(steps)


class Renamed:
    """An averager as it is, but for its `settings`, by which rows and files name it."""

    def __init__(self, averager: Averager, settings: AveragerSettings) -> None:
        self.averager, self.settings = averager, settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self.averager, name)


def made_averager(settings: Settings, group: str) -> AveragerSettings:
    """The settings of an averager that a builder gives, checked as those of a command line are."""
    from lawa_exp.storage import custom

    averager: AveragerSettings = custom.made(
        settings,
        group,
        expected="an instance of a dataclass derived from lawa_exp.averaging.settings.AveragerSettings",
        fits=lambda made: isinstance(made, AveragerSettings) and dataclasses.is_dataclass(made),
    )
    fields = dataclasses.fields(averager)
    if all("rule" in field.metadata for field in fields):
        build(type(averager), dataclasses.asdict(averager), f"{group}.args")
    return averager
