"""What the settings of every choice on an axis can say, so that no other file asks of what kind they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.config.rules import Settings
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.axes.configuration import Config
    from lawa_exp.seams.batches import Batches, Split
    from lawa_exp.seams.dataset import DatasetFacts


@dataclass(frozen=True)
class Planned:
    """A training as a plan knows it: resolved, and shared by ranks.

    splits: how a batch of each size is worked through. sharing: how the ranks share the model: single, ddp or fsdp.
    first: the steps that another training did before it.
    """

    config: Config
    data: DatasetFacts
    batches: Batches
    splits: Mapping[int, Split]
    world: int
    sharing: str
    first: int = 0


class Choice(Settings):
    """absent: it stands for nothing, adds nothing to the id, and no line to a plan. revision: goes up where the
    arithmetic of a choice is mended, and is in the id where it is not 0. places: settings that say how it is called and
    where it is, and are in no id. keeps_state: a training's state may hold some of it. passes: forward and backward
    passes over a sample that it adds, in units of one.
    """

    absent: ClassVar[bool] = False
    revision: ClassVar[int] = 0
    places: ClassVar[frozenset[str]] = frozenset()
    keeps_state: ClassVar[bool] = False
    passes: ClassVar[float] = 0.0
    builder: str | None = None  # of a choice from outside: package.module:function, see `storage.custom.made`
    args: Mapping[str, Any] | None = None  # by name, in a call of the builder

    @property
    def folder_words(self) -> tuple[str, ...]:
        """What it adds to the name of a run's folder."""
        return ()

    def idle(self, config: Config) -> set[str]:
        """Its settings that decide nothing of the live weights, with the other choices of `config`."""
        return set()

    def check(self, planned: Planned) -> None:
        """UserError where it cannot be done so."""

    def check_continues(self, before: Choice, step: int) -> None:
        """UserError where it cannot go on from the complete state after `step` of a training that had `before` in its
        place: by default where what a state holds of it may differ."""
        if self != before and not (self.absent and before.absent) and self.keeps_state:
            raise UserError(
                f"init.optimizer=keep: the source had {before} where this command has {self}; choose reset, or the same"
            )

    def lines(self, planned: Planned) -> Iterator[str]:
        """What a plan says of it."""
        return iter(())

    def warnings(self, planned: Planned) -> Iterator[str]:
        """What a plan warns of."""
        return iter(())

    def copies(self, steps: int) -> int:
        """How many float32 copies of the weights it keeps on the device, and saves, in a training of so many steps."""
        return 0

    def snapshots(self, steps: int) -> int:
        """How many snapshots of the weights it keeps in the host's memory, and saves, besides those of averagers."""
        return 0
