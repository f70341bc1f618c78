"""What the settings of every optimizer have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class OptimizerSettings(Choice):
    """The settings of an optimizer, which build it; they are imported without torch."""

    evaluates_others: ClassVar[bool] = False  # whether `evaluated` gives other weights than the live ones
    clip_norm: float  # the largest global gradient norm; 0: none

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer of the model's trained parameters. Its rate is set before each update."""
        raise NotImplementedError

    def evaluated(self, optimizer: Optimizer, live: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights that the `live` ones stand for, by name: what is evaluated, kept as a snapshot and averaged.

        `live` itself, unless other weights are trained than are meant. optimizer: what `build` gave.
        """
        return live
