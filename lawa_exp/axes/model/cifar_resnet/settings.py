"""The ResNet for small images (He et al. 2016): its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.axes.model.images import ImageModelSettings
from lawa_exp.config.rules import integer, setting
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CifarResNetSettings(ImageModelSettings):
    """The ResNet for small images (He et al. 2016, section 4.2) of 6n+2 `layers`, shortcuts without parameters."""

    layers: int = setting(integer(8), "number of layers, 6n+2")

    def __post_init__(self) -> None:
        if self.layers % 6 != 2:
            raise UserError(f"layers={self.layers}: expected 6n+2, such as 20, 32, 44, 56 or 110")

    def network(self) -> nn.Module:
        from lawa_exp.axes.model.cifar_resnet.cifar_resnet import CifarResNet

        return CifarResNet(self)
