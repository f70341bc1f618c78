"""Averages evaluated where the live weights were: the rows of a read-out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lawa_exp.averaging import AveragerSettings
from lawa_exp.axes.configuration import Config
from lawa_exp.evaluation.batchnorm import has_statistics_of, policy_field, running_field
from lawa_exp.evaluation.replay import Average, Replay, Snapshots, exactly, read_snapshot, stop_if_requested
from lawa_exp.evaluation.score import FunctionFailed, OnModel, Score, Scored
from lawa_exp.evaluation.views import View, view_field
from lawa_exp.seams.dataset import Dataset
from lawa_exp.storage.commit import Damaged
from lawa_exp.storage.metrics import KNOWN
from lawa_exp.storage.origin import snapshots_of
from lawa_exp.storage.rows import (
    LIVE,
    Row,
    evaluation_row,
    fields_in,
    name_in_view,
    name_of,
    read_rows,
    without,
    write_rows,
)
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import Failed, UserError

Live: TypeAlias = Mapping[int, Row | None]  # by step, ascending: val rows of the live weights
# Weights (an `Average.key`), on how many samples they are evaluated, and through which view
Of: TypeAlias = tuple[Hashable, int | None, str | None]

NO_VIEWS: Mapping[str, View] = {}
SHOWN = 5  # averages whose losses are printed at each step; of more, the best
SEEN = ("trained_samples", "trained_tokens")  # what it says of its step


class Progress(Protocol):
    """Where a read-out stands, so that it can go on."""

    done: dict[int, tuple[list[Row], list[Row]]]  # by step: rows and measures

    def add(self, step: int, rows: list[Row], measures: list[Row], files: Mapping[str, str]) -> None:
        """After `step` everything is evaluated. files: contents by path in the folder of the results."""
        ...


@dataclass(frozen=True)
class ReadOut:
    """rows: of the averages, and of the live weights where they had none. measures: rows of what else was measured.

    step: the last one evaluated; sums: after it, those of `Scored` by `rows.name_of` (live, an average's id, ID@VIEW).
    files: those of `Scored`, contents by path, of the steps that were evaluated now.
    """

    rows: list[Row]
    step: int
    sums: dict[str, np.ndarray]
    measures: list[Row] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def evaluated(
    score: Score,
    weights: Mapping[str, Tensor],
    id: str,
    step: int,
    split: str = "val",
    samples: int | None = None,
    bn: str | None = None,
) -> Scored:
    """What `score` gives for the weights `id` after `step`. Failed: it cannot, or a signal asks to stop."""
    stop_if_requested(step)
    try:
        return score(weights, split, samples, bn)
    except FunctionFailed as error:
        raise Failed(f"{error} (weights {id}, step {step:,})") from None


@dataclass(frozen=True)
class Candidate:
    """Weights whose score is wanted after a step: those of `average`, or the live ones (None).

    view: through which; None: as they are. due: whether they are evaluated then; else the score is known, from the row
    of the live weights of some step or from an earlier evaluation. Candidates with an equal `of` have the same score.
    """

    average: Average | None
    view: str | None
    of: Of
    due: bool

    @property
    def name(self) -> str:
        """As `rows.name_of` has it."""
        return name_in_view("live" if self.average is None else self.average.id, self.view)

    @property
    def is_live(self) -> bool:
        """Whether it is the live weights as they are."""
        return self.average is None and self.view is None


class Evaluations:
    """Which weights are evaluated after which step: the same ones never twice.

    After the last step weights whose loss is known from a row are due, too, for the losses of single batches: the live
    ones where their snapshot is saved. Through views the live weights are evaluated where the replay reads them.
    """

    def __init__(self, replay: Replay, averages: Sequence[Average], live: Live, views: Iterable[str] = ()) -> None:
        self.averages, self.live, self.views = averages, live, list(views)
        self.last, self.read = max(live), set(replay.wanted)
        self._in_rows: set[Of] = set()
        self._evaluated: set[Of] = set()

    def after(self, step: int) -> list[Candidate]:
        """The candidates of a step in their order, the live weights first and each before its views.

        Steps come in ascending order.
        """
        row = self.live[step]
        samples = None if row is None else row["eval_samples"]  # the set that the live row was made on
        own = exactly(step)
        if is_scored(row):
            self._in_rows.add((own, samples, None))
        weights: list[tuple[Average | None, Hashable]] = [(None, own)]
        weights += [(a, key) for a in self.averages if (key := a.key(step)) is not None]
        candidates = []
        for average, key in weights:
            can_be_read = average is not None or step in self.read
            for view in (None, *(self.views if can_be_read else ())):
                of = key, samples, view
                due = of not in self._evaluated and (of not in self._in_rows or step == self.last)
                if view is None and is_scored(row) and not can_be_read:
                    due = False
                if due:
                    self._evaluated.add(of)
                candidates.append(Candidate(average, view, of, due))
        return candidates


def evaluations(replay: Replay, averages: Sequence[Average], live: Live, views: Iterable[str] = ()) -> int:
    """How many weights `read_out` evaluates, those of views among them."""
    schedule = Evaluations(replay, averages, live, views)
    return sum(candidate.due for step in live for candidate in schedule.after(step))


def read_out(
    replay: Replay,
    averages: Sequence[Average],
    score: Score,
    live: Live,
    say: Callable[[str], None],
    progress: Progress | None = None,
    measure: str = "val loss",
    views: Mapping[str, View] = NO_VIEWS,
    metrics: Collection[str] = KNOWN,
) -> ReadOut:
    """Evaluates averages where the live weights were, in one pass, as `Evaluations` has it; all through `views`, too.

    live: where there is no row, or one without a loss, the live weights are evaluated here. metrics: what such a row
    says of an evaluation. Failed names the first step whose live weights have no finite loss.
    """
    schedule = Evaluations(replay, averages, live, views)
    scores: dict[Of, Scored] = {}
    rows: list[Row] = []
    measures: list[Row] = []
    sums: dict[str, np.ndarray] = {}
    files: dict[str, str] = {}
    for step, row in live.items():
        if progress and step in progress.done:
            rows += progress.done[step][0]
            measures += progress.done[step][1]
            continue
        before = len(rows), len(measures)
        advance(replay, step)
        seen = fields_in(row, SEEN) if row else {}
        losses: dict[str, float] = {}
        of_step: dict[str, str] = {}
        for candidate in schedule.after(step):
            of, average, view = candidate.of, candidate.average, candidate.view
            known = candidate.is_live and is_scored(row)
            if known and row is not None:
                scores[of] = Scored(fields_in(row, [*metrics, "eval_samples"]), None)
            needs_row = average is None and not known
            if candidate.due or needs_row:
                weights = weights_of(candidate, replay, step, views)
            if candidate.due:
                scores[of] = evaluated(score, weights, candidate.name, step, "val", of[1], replay.bn)
            scored = scores[of]
            if view is None:
                losses[candidate.name] = scored.fields["loss"]
            if step == schedule.last and scored.sums is not None:
                sums[candidate.name] = scored.sums
            fields = {**(LIVE if average is None else average.fields), **view_field(view)}
            if average is not None:
                rows.append(evaluation_row(step, "val", fields, scored.fields, seen))
            elif needs_row:
                rows.append(live_row(step, "val", scored.fields, score, weights, replay.bn, of[1], seen, view))
            if not known:
                measures += [evaluation_row(step, "val", fields, measured) for measured in scored.measures]
                of_step |= scored.files(candidate.name, step)
            check_live_loss(losses["live"], step)
        say(progress_line(step, measure, losses.pop("live"), losses))
        if progress:
            progress.add(step, rows[before[0] :], measures[before[1] :], of_step)
        files |= of_step
    return ReadOut(rows, schedule.last, sums, measures, files)


def advance(replay: Replay, step: int) -> None:
    """Feeds the snapshots up to `step`. UserError: one is damaged."""
    try:
        replay.advance(step)
    except Damaged as error:
        raise UserError(f"{error}; train again to put it right: the training's command with rerun=true") from None


def weights_of(candidate: Candidate, replay: Replay, step: int, views: Mapping[str, View]) -> Mapping[str, Tensor]:
    """Those of a candidate after `step`, to which the replay has advanced, as its view has them."""
    weights = replay.live(step) if candidate.average is None else candidate.average.weights(step)
    assert weights is not None, f"the weights of step {step} are not saved"
    return weights if candidate.view is None else views[candidate.view](weights, replay.averaged)


def check_live_loss(loss: float, step: int) -> None:
    """Failed where it is not finite."""
    if not math.isfinite(loss):
        raise Failed(
            f"the loss of the live weights after step {step:,} is {loss}: nothing to compare with; "
            "mend what evaluates them, or leave this step out"
        )


def is_scored(row: Row | None) -> bool:
    """Whether a row of the live weights says what they are worth."""
    return row is not None and "loss" in row


def live_row(
    step: int,
    split: str,
    fields: Mapping[str, float],
    score: Score,
    weights: Mapping[str, Tensor],
    bn: str | None,
    samples: int | None = None,
    seen: Mapping[str, float] | None = None,
    view: str | None = None,
) -> Row:
    """The row of the live weights, as `view` has them, whose evaluation with `bn` gave `fields`."""
    loss = fields["loss"]
    if bn == "recalibrate":
        loss = evaluated(score, weights, "live", step, split, samples).fields["loss"]
    named = {**LIVE, **policy_field(bn), **view_field(view)}
    return evaluation_row(step, split, named, fields, running_field(bn, loss), seen or {})


def progress_line(step: int, measure: str, live: float, losses: dict[str, float]) -> str:
    named = losses
    if len(losses) > SHOWN:
        best = min(losses, key=losses.__getitem__)
        named = {f"best of {len(losses)} averages {best}": losses[best]}
    return f"step {step:>7,}  {measure}: live {live:.4f}" + "".join(f"  {id} {loss:.4f}" for id, loss in named.items())


def live_rows(rows: Iterable[Row], end: int | None = None) -> dict[int, Row | None]:
    """A run's finite val rows of the live weights by step, ascending, from step 1 to `end`."""
    finite = [r for r in rows if r["split"] == "val" and name_of(r) == "live" and r["loss"] is not None]
    return {r["step"]: r for r in sorted(finite, key=lambda r: r["step"]) if 0 < r["step"] <= (end or r["step"])}


def comparable(
    live: Live, bn: str | None, saved: Collection[int], metrics: Collection[str] = KNOWN
) -> tuple[dict[int, Row | None], list[str]]:
    """A run's rows of the live weights as `read_out` compares averages with `bn` to them, and what is to be said of it.

    A row of other statistics is left without its loss, so that the weights are evaluated again; where they were not
    `saved`, its loss with the running statistics is what there is, or the step is left out. UserError: all would be.
    """
    by_step: dict[int, Row | None] = {}
    again, left_out = [], []
    for step, row in live.items():
        assert row is not None
        if has_statistics_of(row, bn):
            by_step[step] = row
        elif step in saved:
            by_step[step] = without(row, metrics)
            again.append(step)
        elif bn != "recalibrate" and row.get("loss_running_bn") is not None:
            others = without(row, set(metrics) - {"loss"})
            by_step[step] = {**others, "bn": str(bn), "loss": row["loss_running_bn"]}
        else:
            left_out.append(step)
    if not by_step:
        raise UserError(
            f"evaluate.bn={bn}: the live weights were evaluated with other BatchNorm statistics, and no snapshot was "
            f"kept to evaluate them again; choose {'latest' if bn == 'recalibrate' else 'recalibrate'}, as readout --bn"
        )
    other = "The live weights were evaluated with other BatchNorm statistics"
    steps = "1 step" if len(again) == 1 else f"{len(again):,} steps"
    notes = [f"{other}: evaluated again with evaluate.bn={bn}, at {steps}."] if again else []
    if left_out:
        were = ", ".join(f"{s:,}" for s in left_out[:SHOWN]) + (", ..." if len(left_out) > SHOWN else "")
        notes.append(f"{other}, and at step {were} no snapshot was kept to evaluate them again: left out.")
    return by_step, notes


def replay_run(
    config: Config,
    data: Dataset,
    run: RunDir,
    settings: list[AveragerSettings],
    out: Path,
    device: torch.device,
    ranks: Ranks,
    say: Callable[[str], None],
    end: int,
) -> list[Row]:
    """Reads averages of a run out of its snapshots, up to step `end`, into `out/metrics.jsonl`; returns the rows.

    They are those that the same averagers would have written online, byte for byte. So are those of the test split,
    which join those of the training after `end`, if it has any with the same BatchNorm statistics.
    """
    score, metrics = OnModel(config, data, device, ranks), data.task.metrics
    snapshots = Snapshots(snapshots_of(run), read_snapshot)
    live, notes = comparable(live_rows(read_rows(run.metrics, trained=False), end), score.bn, snapshots.paths, metrics)
    for note in notes:
        say(note)
    again = [step for step, row in live.items() if not is_scored(row)]
    replay = Replay(settings, score.averaged, snapshots, device, again, score.statistics, score.bn)
    found = read_out(replay, replay.averages, score, live, say, metrics=metrics)
    path = run.readouts / "test" / "metrics.jsonl"
    tested = ranks.from_main(read_rows(path) if ranks.is_main else [])
    at_end = [row for row in tested if row["step"] == end == found.step and has_statistics_of(row, score.bn)]
    if live_test := next((row for row in at_end if name_of(row) == "live"), None):
        new, samples, seen = [], live_test["eval_samples"], fields_in(live_test, SEEN)
        for average in replay.averages:
            if average.key(end) is not None:
                fields = evaluated(score, average.weights(end), average.id, end, "test", samples, score.bn).fields
                new.append(evaluation_row(end, "test", average.fields, fields, seen))
                say(f"test loss after step {end:,}: {average.id} {fields['loss']:.4f}")
        if ranks.is_main:
            ids = {name_of(row) for row in new}
            others = [row for row in tested if row["step"] != end or name_of(row) not in ids]
            write_rows(path, sorted([*others, *new], key=lambda row: row["step"]))
    if ranks.is_main:
        write_rows(out / "metrics.jsonl", found.rows)
    return found.rows
