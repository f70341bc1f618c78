"""torchvision's ResNets (He et al. 2016), for images of any number of channels, large or small."""

from __future__ import annotations

import torchvision
from torch import nn

from lawa_exp.axes.model.resnet.settings import ResNetSettings


def build_resnet(s: ResNetSettings) -> nn.Module:
    """images [batch, channels, height, width] -> logits [batch, classes]; torchvision's module, its first layer changed
    where the images ask for it. Parameter names are torchvision's."""
    assert s.channels and s.classes, "what follows from the data set is not known yet"
    model = getattr(torchvision.models, f"resnet{s.layers}")(num_classes=s.classes)
    width = model.conv1.out_channels
    if s.stem == "small":
        model.conv1 = nn.Conv2d(s.channels, width, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif s.channels != model.conv1.in_channels:
        model.conv1 = nn.Conv2d(s.channels, width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model
