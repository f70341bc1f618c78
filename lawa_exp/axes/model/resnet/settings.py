"""torchvision's ResNet, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.config.rules import Rule, one_of, setting

if TYPE_CHECKING:
    pass

from lawa_exp.axes.model.images import ImageModelSettings


def _resnet_layers() -> Rule:
    def parse(value: Any) -> int:
        if value not in (18, 34, 50):
            raise ValueError
        return int(value)

    return Rule("18, 34 or 50", parse)


@dataclass(frozen=True)
class ResNetSettings(ImageModelSettings):
    """torchvision's ResNet of 18, 34 or 50 `layers`.

    stem: `imagenet`, a 7x7 convolution of stride 2 and a pooling, or `small`, a 3x3 convolution, for small images.
    """

    layers: int = setting(_resnet_layers())
    stem: str = setting(one_of("imagenet", "small"))
