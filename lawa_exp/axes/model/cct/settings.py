"""The Compact Convolutional Transformer (Hassani et al. 2021): its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.axes.model.images import ImageModelSettings
from lawa_exp.config.rules import MOST_LAYERS, integer, number, one_of, setting
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CCTSettings(ImageModelSettings):
    """The Compact Convolutional Transformer (Hassani et al. 2021): CCT-layers/kernel x convolutions.

    positions: `learned`, `sine` or `none`. stochastic_depth: the share of samples that skip the last layer's branches.
    """

    layers: int = setting(integer(1, MOST_LAYERS), "number of layers")
    heads: int = setting(integer(1), "attention heads of a layer")
    width: int = setting(integer(1), "size of the hidden vectors")
    mlp_ratio: float = setting(number(above=0), "size of the feed-forward layers, as a multiple of the width")
    kernel: int = setting(integer(1), "side of the tokenizer's convolutions, in pixels")
    convolutions: int = setting(integer(1), "number of the tokenizer's convolutions")
    positions: str = setting(one_of("learned", "sine", "none"), "position embeddings: learned, sine or none")
    dropout: float = setting(number(low=0, high=0.999), "share of activations that training sets to zero")
    attention_dropout: float = setting(
        number(low=0, high=0.999), "share of attention weights that training sets to zero"
    )
    stochastic_depth: float = setting(
        number(low=0, high=0.999), "share of samples that skip the last layer's branches in training"
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")

    def network(self) -> nn.Module:
        from lawa_exp.axes.model.cct.cct import CCT

        return CCT(self)
