"""LeNet-5 (LeCun et al. 1998) as it is built today: ReLU, largest values pooled, every map connected to every map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lawa_exp.axes.model.lenet.settings import LeNetSettings


class LeNet(nn.Module):
    """images [batch, channels, size, size] -> logits [batch, classes]; 61,706 parameters for MNIST."""

    def __init__(self, s: LeNetSettings) -> None:
        super().__init__()
        assert s.channels and s.image_size and s.classes, "what follows from the data set is not known yet"
        self.conv1 = nn.Conv2d(s.channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * ((s.image_size // 2 - 4) // 2) ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, s.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))
