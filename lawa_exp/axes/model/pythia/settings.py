"""Pythia (Biderman et al. 2023): its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.model.transformer import TransformerSettings
from lawa_exp.axes.model.vocabulary import fitted_vocabulary, vocabulary
from lawa_exp.config.rules import MOST_LAYERS, integer, number, plain_name, setting
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

IN_CONFIG_JSON = {  # our settings, and what transformers' config.json calls them, of most models
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "context": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


@dataclass(frozen=True)
class PythiaSettings(TransformerSettings):
    """Pythia (Biderman et al. 2023): a GPT-NeoX with parallel residuals and untied embeddings."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    layers: int = setting(integer(1, MOST_LAYERS), "number of layers")
    heads: int = setting(integer(1), "attention heads of a layer")
    width: int = setting(integer(1), "size of the hidden vectors")
    context: int = setting(integer(1), "tokens in one sequence")
    vocab_size: int = vocabulary()
    dropout: float = setting(number(low=0, high=0.999), "share of activations that training sets to zero")

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 8:
            raise UserError(
                f"width={self.width}: expected a multiple of 8 times heads={self.heads}, a quarter of a head is rotated"
            )

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        return replace(self, vocab_size=fitted_vocabulary(self.vocab_size, data, name))

    def build(self) -> nn.Module:
        from lawa_exp.axes.model.pythia.pythia import Pythia

        return Pythia(self)
