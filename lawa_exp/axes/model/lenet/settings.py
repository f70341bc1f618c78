"""LeNet-5, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    pass

from lawa_exp.axes.model.images import ImageModelSettings


@dataclass(frozen=True)
class LeNetSettings(ImageModelSettings):
    """LeNet-5 (LeCun et al. 1998), for images of 12 pixels or more."""

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 12:
            raise UserError(f"model.image_size={self.image_size}: LeNet needs images of at least 12 pixels")
