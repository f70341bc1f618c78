"""What the settings of every optimizer have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class OptimizerSettings(Choice):
    """The settings of an optimizer, which build it; they are imported without torch."""

    evaluates_others: ClassVar[bool] = False  # whether `evaluated` gives other weights than the live ones
    follows_gradient: ClassVar[bool] = False  # whether an update is the rate times the gradient, or its momentum
    clip_norm: float  # the largest global gradient norm; 0: none

    def check_continues(self, before: Choice, step: int) -> None:
        if self != before:
            raise UserError(
                "init.optimizer=keep: the optimizer is that of the source, whose settings differ "
                f"(the source has {before}, this command {self}); choose reset, or the same"
            )

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer of the model's trained parameters. Its rate is set before each update."""
        raise NotImplementedError

    def evaluated(self, optimizer: Optimizer, live: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights that the `live` ones stand for, by name: what is evaluated, kept as a snapshot and averaged.

        `live` itself, unless other weights are trained than are meant. optimizer: what `build` gave.
        """
        return live
