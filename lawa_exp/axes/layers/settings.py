"""What the settings of every change of layers have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from torch import nn

    from lawa_exp.seams.callback import Callback


class LayersSettings(Choice):
    """The settings of a change of layers, which make it."""

    keeps_state: ClassVar[bool] = True

    def apply(self, model: nn.Module) -> Callback | None:
        """Changes the model in place, before it is shared and compiled; returns what its layers need in training.

        Parameters that stay keep their names, new ones stand under the module they belong to. The model may be on the
        meta device. UserError: it has no such layers.
        """
        raise NotImplementedError
