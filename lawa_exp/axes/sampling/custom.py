"""A sampler from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.sampling.settings import SamplingSettings
from lawa_exp.config.rules import arguments, setting, text
from lawa_exp.seams.sampler import Sampler

if TYPE_CHECKING:
    from lawa_exp.seams.context import Context


@dataclass(frozen=True)
class CustomSampling(SamplingSettings):
    """`builder(context, **args)`, a `seams.sampler.Sampler`. context: a `seams.context.Context`."""

    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()

    def build(self, context: Context) -> Sampler:
        from lawa_exp.storage import custom

        sampler: Sampler = custom.made(
            self,
            "sampling",
            context,
            expected="a lawa_exp.seams.sampler.Sampler",
            fits=lambda made: isinstance(made, Sampler),
        )
        return sampler
