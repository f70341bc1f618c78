"""A scaling from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lawa_exp.axes.scaling.scaling import Scaling
from lawa_exp.config.rules import arguments, setting, text


@dataclass(frozen=True)
class CustomScaling(Scaling):
    """`builder(**args)`, a function (size, tokens_per_sample) -> what the rate of such a batch is multiplied by."""

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    warmup = "steps"

    @cached_property
    def function(self) -> Callable[[int, int], float]:
        from lawa_exp.storage import custom

        expected = "a function (size, tokens_per_sample) -> factor"
        function: Callable[[int, int], float] = custom.made(self, "scaling", expected=expected, fits=callable)
        return function

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return float(self.function(size, tokens_per_sample))
