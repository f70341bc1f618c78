"""A model from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.axes.model.vocabulary import check_vocabulary
from lawa_exp.config.rules import integer, mapping, optional, plain_name, setting, text
from lawa_exp.seams.dataset import DatasetFacts

if TYPE_CHECKING:
    from typing import Self

    from torch import nn


@dataclass(frozen=True)
class CustomSettings(ModelSettings):
    """A model from outside: `builder=package.module:function`, called as `function(**args)`."""

    inputs: ClassVar[str] = "any"
    outside: ClassVar[bool] = True
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    builder: str = setting(text(), "package.module:function that builds it")
    args: dict[str, Any] | None = setting(optional(mapping()), "keyword arguments of the builder, as {name: value}")
    context: int = setting(integer(1), "tokens in one sequence")
    vocab_size: int = setting(integer(1), "number of tokens of the vocabulary")

    @property
    def named(self) -> str:
        return f"model.builder={self.builder}"

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        check_vocabulary(self.vocab_size, data, name)
        return self

    def build(self) -> nn.Module:
        from lawa_exp.storage import custom

        model: nn.Module = custom.made(
            self,
            "model",
            expected="a torch.nn.Module",
            fits=lambda made: callable(getattr(made, "named_parameters", None)),
        )
        return model

    def computes_loss(self, model: nn.Module) -> bool:
        """Where the module says so, in an attribute of this name."""
        return bool(getattr(model, "computes_loss", False))
