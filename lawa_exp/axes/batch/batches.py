"""What the settings of every batch have: its size, as a function of the samples seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice
from lawa_exp.config.rules import integer, one_of, optional
from lawa_exp.seams.batches import Batches

if TYPE_CHECKING:
    from lawa_exp.axes.layers.settings import LayersSettings


class BatchSizes(Choice):
    """The settings of a batch: its size by step."""

    constant: ClassVar[bool] = False  # whether every update has as many samples
    size: int  # samples in an update, over all ranks together
    norm_group: int | None  # consecutive samples of a batch that share BatchNorm statistics; None: a pass's

    def layers(self) -> Sequence[tuple[str, LayersSettings]]:
        """What it changes in the model's layers."""
        if not self.norm_group:
            return ()
        from lawa_exp.axes.layers.ghost_norm import GhostNorm

        return (("norm_group", GhostNorm(self.norm_group)),)

    def batches(self, tokens_per_sample: int, samples_per_epoch: int) -> Batches:
        raise NotImplementedError


UNITS = one_of("samples", "tokens", "epochs")
NORM_GROUP = optional(integer(1))


def batch_samples(amount: float, unit: str, tokens_per_sample: int, samples_per_epoch: int) -> float:
    return amount * {"samples": 1, "tokens": 1 / tokens_per_sample, "epochs": samples_per_epoch}[unit]
