"""GPT-2 (Radford et al. 2019): its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.model.transformer import TransformerSettings
from lawa_exp.axes.model.vocabulary import check_vocabulary
from lawa_exp.config.rules import MOST_LAYERS, boolean, integer, number, plain_name, setting
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from typing import Self

    from torch import nn


@dataclass(frozen=True)
class GPTSettings(TransformerSettings):
    """GPT-2 (Radford et al. 2019), pre-norm; parameter names are nanoGPT's."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name())
    layers: int = setting(integer(1, MOST_LAYERS))
    heads: int = setting(integer(1))
    width: int = setting(integer(1))
    context: int = setting(integer(1))
    vocab_size: int = setting(integer(1))
    bias: bool = setting(boolean())
    dropout: float = setting(number(low=0, high=0.999))
    scale_attn_by_inverse_layer_idx: bool = setting(boolean())

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        check_vocabulary(self.vocab_size, data, name)
        return self

    def build(self) -> nn.Module:
        from lawa_exp.axes.model.gpt.gpt import GPT

        return GPT(self)
