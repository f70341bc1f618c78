"""What the models of images share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.config.rules import integer, optional, plain_name, setting
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor, nn


@dataclass(frozen=True)
class ImageModelSettings(ModelSettings):
    """What every model of images has: the shape of its data, where null the data set's."""

    inputs: ClassVar[str] = "images"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    channels: int | None = setting(optional(integer(1)), "colours of an image; null: the data set's")
    image_size: int | None = setting(
        optional(integer(1)), "height and width of an image in pixels; null: the data set's"
    )
    classes: int | None = setting(optional(integer(1)), "number of classes; null: the data set's")

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        own = {"channels": self.channels, "image_size": self.image_size, "classes": self.classes}
        of_data = {"channels": data.channels, "image_size": data.image_size, "classes": data.classes}
        for key, size in of_data.items():
            if own[key] not in (None, size):
                raise UserError(f"model.{key}={own[key]}: the images of dataset={name} have {size}; null follows them")
        return replace(self, channels=data.channels, image_size=data.image_size, classes=data.classes)

    def network(self) -> nn.Module:
        """images [batch, channels, size, size] -> logits [batch, classes]."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        model = self.network()
        model.register_forward_pre_hook(channels_last_on_gpu)
        return model

    def training_flops(self, model: nn.Module, tokens: int) -> float:
        """Three times those of the forward pass: the backward pass counts as two."""
        return 3.0 * forward_flops(model, self)


def channels_last_on_gpu(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Images with their channels innermost, where a GPU's convolutions want them; what follows has them likewise.

    Weights keep their order, and with it what is saved: they are small compared with the images.
    """
    if not inputs[0].is_cuda:
        return None
    import torch

    return inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]


def forward_flops(model: nn.Module, settings: ImageModelSettings) -> int:
    """Of one image, counted by torch in the operations themselves; `model` may be on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    channels, size = settings.channels or 0, settings.image_size or 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, channels, size, size, device=device))
    flops: int = counter.get_total_flops()
    return flops
