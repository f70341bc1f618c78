"""GPT-2 (Radford et al. 2019): its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.model.transformer import TransformerSettings
from lawa_exp.axes.model.vocabulary import fitted_vocabulary, vocabulary
from lawa_exp.config.rules import MOST_LAYERS, boolean, integer, number, plain_name, setting
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from torch import nn

    from lawa_exp.axes.choice import Planned


@dataclass(frozen=True)
class GPTSettings(TransformerSettings):
    """GPT-2 (Radford et al. 2019), pre-norm; parameter names are nanoGPT's."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    layers: int = setting(integer(1, MOST_LAYERS), "number of layers")
    heads: int = setting(integer(1), "attention heads of a layer")
    width: int = setting(integer(1), "size of the hidden vectors")
    context: int = setting(integer(1), "tokens in one sequence")
    vocab_size: int = vocabulary()
    bias: bool = setting(boolean(), "whether linear layers and norms have biases")
    dropout: float = setting(number(low=0, high=0.999), "share of activations that training sets to zero")
    scale_attn_by_inverse_layer_idx: bool = setting(boolean(), "divide the attention logits of layer i by i")

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        return replace(self, vocab_size=fitted_vocabulary(self.vocab_size, data, name))

    def warnings(self, planned: Planned) -> Iterator[str]:
        if place := planned.config.init.from_:
            from pathlib import Path

            from lawa_exp.axes.model.gpt.folder import activation_note

            if note := activation_note(Path(place)):
                yield f"init.from={place}: {note}"

    def build(self) -> nn.Module:
        from lawa_exp.axes.model.gpt.gpt import GPT

        return GPT(self)
