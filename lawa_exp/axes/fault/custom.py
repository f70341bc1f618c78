"""A fault from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lawa_exp.axes.fault.fault import Fault
from lawa_exp.config.rules import arguments, setting, steps, text
from lawa_exp.seams.sampler import Sampler
from lawa_exp.system.errors import UserError


@dataclass(frozen=True)
class CustomFault(Fault):
    """`builder(at, length, **args)`, an object with `rate_factor(step)`, `sampler(inner)` or both, as `Fault` has them.

    It strikes the steps at+1 .. at+length. Its factor is taken in these alone; its sampler sees to that itself.
    """

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    at: int = setting(steps(), "the step after which it strikes")
    length: int = setting(steps(1), "how many steps it lasts")

    @property
    def described(self) -> str:
        return self.builder

    @cached_property
    def _functions(self) -> dict[str, Callable[..., Any]]:
        from lawa_exp.storage import custom

        made: object = custom.made(
            self,
            "fault",
            self.at,
            self.length,
            expected="an object with rate_factor(step) or sampler(inner)",
            fits=lambda made: callable(getattr(made, "rate_factor", None)) or callable(getattr(made, "sampler", None)),
        )
        return {name: getattr(made, name) for name in ("rate_factor", "sampler") if hasattr(made, name)}

    def rate_factor(self, step: int) -> float:
        strikes = self.at < step <= self.at + self.length
        return float(self._functions["rate_factor"](step)) if strikes and "rate_factor" in self._functions else 1.0

    def sampler(self, inner: Sampler) -> Sampler:
        sampler = self._functions["sampler"](inner) if "sampler" in self._functions else inner
        if not isinstance(sampler, Sampler):
            raise UserError(
                f"fault.builder={self.builder}: expected a lawa_exp.seams.sampler.Sampler of its sampler(inner), got "
                f"{type(sampler).__name__}"
            )
        return sampler
