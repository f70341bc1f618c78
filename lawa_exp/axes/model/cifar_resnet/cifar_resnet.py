"""The ResNet for small images of He et al. (2016, section 4.2): three stages of 16, 32 and 64 channels.

Parameter names are those of the reference implementation, https://github.com/akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lawa_exp.axes.model.cifar_resnet.settings import CifarResNetSettings

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut takes every second pixel and fills new channels with zeros (option A)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, width - before
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            below = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, below, self.added - below))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """images [batch, channels, size, size] -> logits [batch, classes]."""

    def __init__(self, s: CifarResNetSettings) -> None:
        super().__init__()
        assert s.channels and s.classes, "what follows from the data set is not known yet"
        self.conv1 = nn.Conv2d(s.channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        depth = (s.layers - 2) // 6
        self.layer1 = _stage(depth, WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = _stage(depth, WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _stage(depth, WIDTHS[1], WIDTHS[2], 2)
        self.linear = nn.Linear(WIDTHS[2], s.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(depth: int, before: int, width: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(before, width, stride), *(BasicBlock(width, width, 1) for _ in range(depth - 1))]
    return nn.Sequential(*blocks)
