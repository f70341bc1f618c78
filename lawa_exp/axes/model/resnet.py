"""torchvision's ResNets (He et al. 2016), for images of any number of channels, large or small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.model.images import ImageModelSettings
from lawa_exp.config.rules import Rule, one_of, setting

if TYPE_CHECKING:
    from torch import nn


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

    layers: int = setting(_resnet_layers(), "number of layers: 18, 34 or 50")
    stem: str = setting(
        one_of("imagenet", "small"), "the first layers: imagenet (7x7 convolution of stride 2, pooling) or small (3x3)"
    )

    def network(self) -> nn.Module:
        """torchvision's module, its first layer changed where the images ask for it; parameter names are its own."""
        import torchvision
        from torch import nn

        assert self.channels and self.classes, "what follows from the data set is not known yet"
        model = torchvision.models.get_model(f"resnet{self.layers}", num_classes=self.classes)
        width = model.conv1.out_channels
        if self.stem == "small":
            model.conv1 = nn.Conv2d(self.channels, width, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        elif self.channels != model.conv1.in_channels:
            model.conv1 = nn.Conv2d(self.channels, width, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        network: nn.Module = model
        return network
