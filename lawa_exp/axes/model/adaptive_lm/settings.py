"""fairseq's transformer_lm (Baevski and Auli 2019): its settings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.axes.model.transformer import TransformerSettings
from lawa_exp.axes.model.vocabulary import same_vocabulary
from lawa_exp.config.rules import MOST_LAYERS, Rule, integer, number, optional, plain_name, setting
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from typing import Self

    from torch import nn


@dataclass(frozen=True)
class AdaptiveLMSettings(TransformerSettings):
    """fairseq's `transformer_lm` with adaptive input embedding and adaptive softmax, tied (Baevski and Auli 2019).

    vocab_size: null: the data set's. cutoffs: the first token of each band after the first, whose embeddings are
    `factor` times narrower than those of the band before.
    """

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    layers: int = setting(integer(1, MOST_LAYERS), "number of layers")
    heads: int = setting(integer(1), "attention heads of a layer")
    width: int = setting(integer(4), "size of the hidden vectors")
    hidden: int = setting(integer(1), "size of the feed-forward layers")
    context: int = setting(integer(1), "tokens in one sequence")
    vocab_size: int | None = setting(optional(integer(6)), "number of words; null: the data set's")
    cutoffs: Any = setting(
        Rule("a list of rising integers", lambda v: _rising([integer(2).parse(c) for c in v])),
        "the first token of each band of rarer words",
    )
    factor: int = setting(
        integer(1), "how many times narrower the embeddings of a band are than those of the band before"
    )
    dropout: float = setting(number(low=0, high=0.999), "share of activations that training sets to zero")
    attention_dropout: float = setting(
        number(low=0, high=0.999), "share of attention weights that training sets to zero"
    )
    activation_dropout: float = setting(
        number(low=0, high=0.999), "share of feed-forward activations that training sets to zero"
    )
    softmax_dropout: float = setting(
        number(low=0, high=0.999), "share of the output layer's inputs that training sets to zero"
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.width % 2:
            raise UserError(f"model.width={self.width}: expected an even one, half of it sines, half cosines")
        if self.width < self.factor ** len(self.cutoffs):
            raise UserError(
                f"model.width={self.width}: too narrow for {len(self.cutoffs) + 1} bands of factor={self.factor}"
            )
        if self.vocab_size is not None and self.vocab_size <= self.cutoffs[-1]:
            raise UserError(f"model.cutoffs={list(self.cutoffs)}: expected all below vocab_size={self.vocab_size}")
        edges = [*self.cutoffs, *([self.vocab_size] if self.vocab_size else [])]
        if any(stop - start < 2 for start, stop in itertools.pairwise(edges)):
            raise UserError(f"model.cutoffs={list(self.cutoffs)}: expected bands of at least two tokens")

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        return replace(self, vocab_size=same_vocabulary(self.vocab_size, data, name))

    def build(self) -> nn.Module:
        from lawa_exp.axes.model.adaptive_lm.adaptive_lm import AdaptiveLM

        return AdaptiveLM(self)

    def computes_loss(self, model: nn.Module) -> bool:
        return True


def _rising(values: list[int]) -> tuple[int, ...]:
    if not values or sorted(set(values)) != values:
        raise ValueError
    return tuple(values)
