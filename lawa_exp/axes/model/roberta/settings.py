"""RoBERTa (Liu et al. 2019): its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.model.transformer import TransformerSettings
from lawa_exp.axes.model.vocabulary import same_vocabulary
from lawa_exp.config.rules import MOST_LAYERS, integer, number, optional, plain_name, setting
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from typing import Self

    from torch import nn


@dataclass(frozen=True)
class RobertaSettings(TransformerSettings):
    """RoBERTa (Liu et al. 2019) as a masked language model, transformers' `RobertaForMaskedLM`.

    context: tokens with <s>; vocab_size: with <mask>, null: the data set's.
    """

    inputs: ClassVar[str] = "masked tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    layers: int = setting(integer(1, MOST_LAYERS), "number of layers")
    heads: int = setting(integer(1), "attention heads of a layer")
    width: int = setting(integer(1), "size of the hidden vectors")
    context: int = setting(integer(2), "tokens in one sequence, with <s>")
    vocab_size: int | None = setting(optional(integer(6)), "number of tokens, with <mask>; null: the data set's")
    dropout: float = setting(number(low=0, high=0.999), "share of activations that training sets to zero")
    attention_dropout: float = setting(
        number(low=0, high=0.999), "share of attention weights that training sets to zero"
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        return replace(self, vocab_size=same_vocabulary(self.vocab_size, data, name))

    def build(self) -> nn.Module:
        from lawa_exp.axes.model.roberta.roberta import Roberta

        return Roberta(self)

    def computes_loss(self, model: nn.Module) -> bool:
        return True
