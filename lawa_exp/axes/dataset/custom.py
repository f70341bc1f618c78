"""A data set from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.config.rules import arguments, one_of, plain_name, setting, text
from lawa_exp.seams.dataset import Dataset


@dataclass(frozen=True)
class CustomDataset(BaseSettings):
    """What `builder(context=..., **args)` opens: a `seams.dataset.Dataset`, of a class derived from `BaseDataset`, say.

    context: the model's, in tokens; None of images. inputs: what models take it, any: the user sees to it.
    """

    places: ClassVar[frozenset[str]] = BaseSettings.places | {"inputs"}
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = arguments()
    inputs: str = setting(  # type: ignore[misc]
        one_of("any", "tokens", "masked tokens", "images"),
        "the kind of inputs, which the model must take; any: not checked",
        default="any",
    )

    def open(self, context: int | None) -> Dataset:
        from lawa_exp.storage import custom

        protocol = {name for cls in Dataset.__mro__[:2] for name in vars(cls) if not name.startswith("_")}
        opened: Dataset = custom.made(
            self,
            "dataset",
            context=context,
            expected="a lawa_exp.seams.dataset.Dataset",
            fits=lambda made: all(hasattr(made, name) for name in protocol),
        )
        return opened
