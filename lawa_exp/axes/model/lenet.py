"""LeNet-5 (LeCun et al. 1998) as it is built today: ReLU, largest values pooled, every map connected to every map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.axes.model.images import ImageModelSettings
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LeNetSettings(ImageModelSettings):
    """LeNet-5 (LeCun et al. 1998), for images of 12 pixels or more."""

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 12:
            raise UserError(f"model.image_size={self.image_size}: LeNet needs images of at least 12 pixels")

    def network(self) -> nn.Module:
        from torch import nn
        from torch.nn import functional as F

        assert self.channels and self.image_size and self.classes, "what follows from the data set is not known yet"
        channels, pooled, classes = self.channels, (self.image_size // 2 - 4) // 2, self.classes

        class LeNet(nn.Module):
            """images [batch, channels, size, size] -> logits [batch, classes]; 61,706 parameters for MNIST."""

            def __init__(self) -> None:
                super().__init__()
                self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
                self.conv2 = nn.Conv2d(6, 16, 5)
                self.fc1 = nn.Linear(16 * pooled**2, 120)
                self.fc2 = nn.Linear(120, 84)
                self.fc3 = nn.Linear(84, classes)

            def forward(self, images: Tensor) -> Tensor:
                x = F.max_pool2d(F.relu(self.conv1(images)), 2)
                x = F.max_pool2d(F.relu(self.conv2(x)), 2)
                logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))
                return logits

        return LeNet()
