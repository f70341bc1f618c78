"""What is read out, ready to be evaluated: of a run of ours (`of_run`) or of checkpoints (`of_checkpoints`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lawa_exp.evaluation.read_out import Live
from lawa_exp.evaluation.replay import Average, Replay
from lawa_exp.evaluation.score import Score
from lawa_exp.evaluation.views import View
from lawa_exp.readout.attached import Attached, Rebuilt
from lawa_exp.readout.revisions import Source
from lawa_exp.results.tables import NATS
from lawa_exp.seams.task import Task
from lawa_exp.storage.metrics import KNOWN, Metrics
from lawa_exp.storage.rows import Row


@dataclass(frozen=True)
class Named:
    """What a read-out is of, the unit of its loss, and what the terminal and the table call the loss."""

    title: str
    unit: str = NATS
    measure: str = "val loss"


@dataclass(frozen=True)
class Revisions:
    """Checkpoints that are fetched one by one. identity: all that decides the results (JSON)."""

    source: Source
    identity: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """last: its last step, read out or not; steps_per_epoch: where it is known."""

    last: int
    steps_per_epoch: float | None = None


@dataclass(frozen=True)
class Subject:
    """What a read-out evaluates, and what its results say besides.

    replay: of the averages that snapshots give; kept: those that the training kept. rows: the val rows that there are
    already; published: rows of the live weights from elsewhere. left_out: why an average is not read out, a line each.
    views: through which all weights are evaluated, besides as they are. task: of the data set, where it is one of ours.
    """

    named: Named
    root: Path  # the results go to a folder of it
    replay: Replay
    score: Score
    live: Live  # as for `read_out`
    training: Training
    kept: list[Attached | Rebuilt] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    published: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    no_test: str = ""  # why there is no test split
    suffix: str = ""  # of the results' name, where they are not evaluated as the run's own
    is_main: bool = True
    revisions: Revisions | None = None
    views: Mapping[str, View] = field(default_factory=dict)
    task: Task | None = None

    @property
    def metrics(self) -> Metrics:
        """What rows of it have."""
        return self.task.metrics if self.task else KNOWN

    @property
    def averages(self) -> list[Average]:
        return [*self.replay.averages, *self.kept]
