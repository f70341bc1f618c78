"""Averages evaluated where the live weights were: the rows of a read-out."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lawa_exp.averaging import AveragerSettings
from lawa_exp.config.shared import Config
from lawa_exp.evaluation.batchnorm import has_statistics_of, policy_field, running_field
from lawa_exp.evaluation.replay import Average, Replay, Snapshots, exactly, read_snapshot, stop_if_asked
from lawa_exp.evaluation.score import FunctionFailed, OnModel, Score, Scored
from lawa_exp.seams.dataset import Dataset
from lawa_exp.storage.commit import Damaged
from lawa_exp.storage.origin import snapshots_of
from lawa_exp.storage.rows import read_rows, write_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import Failed, UserError

SHOWN = 5  # averages whose losses are printed at each step; of more, the best


SCORED = ("loss", "loss_bits", "accuracy", "eval_samples")  # what a row says of an evaluation


class Progress(Protocol):
    """Where a read-out stands, so that it can go on."""

    done: dict[int, tuple[list[dict[str, Any]], list[dict[str, Any]]]]  # by step: rows and measures

    def add(self, step: int, rows: list[dict[str, Any]], measures: list[dict[str, Any]]) -> None:
        """After `step` everything is evaluated."""
        ...


@dataclass(frozen=True)
class ReadOut:
    """rows: of the averages, and of the live weights where they had none. measures: rows of what else was measured.

    step: the last one evaluated; sums: after it, those of `Scored` by weights ("live", or an average's id).
    """

    rows: list[dict[str, Any]]
    step: int
    sums: dict[str, np.ndarray]
    measures: list[dict[str, Any]] = field(default_factory=list)


def evaluated(
    score: Score,
    weights: Mapping[str, Tensor],
    id: str,
    step: int,
    split: str = "val",
    samples: int | None = None,
    bn: str | None = None,
) -> Scored:
    """What `score` gives for the weights `id` after `step`. Failed: it cannot, or a stop was asked for."""
    stop_if_asked(step)
    try:
        return score(weights, split, samples, *([bn] if bn else []))
    except FunctionFailed as error:
        raise Failed(f"{error} (weights {id}, step {step:,})") from None


def evaluations(replay: Replay, averages: Sequence[Average], live: Mapping[int, dict[str, Any] | None]) -> int:
    """How many weights `read_out` evaluates."""
    last = max(live)
    told: set[Hashable] = set()
    found: set[Hashable] = set()
    for step, row in live.items():
        samples = None if row is None else row["eval_samples"]
        here = exactly(step), samples
        keys: set[Hashable] = {(key, samples) for a in averages if (key := a.key(step)) is not None}
        if is_scored(row):
            told.add(here)
        if not is_scored(row) or (step == last and step in replay.wanted):
            keys.add(here)
        found |= keys if step == last else keys - told
    return len(found)


def read_out(
    replay: Replay,
    averages: Sequence[Average],
    score: Score,
    live: Mapping[int, dict[str, Any] | None],
    say: Callable[[str], None],
    progress: Progress | None = None,
    measure: str = "val loss",
) -> ReadOut:
    """Evaluates averages where the live weights were, in one pass; the same weights never twice.

    live: the val rows of the live weights by step, ascending; None, or one without a loss: evaluated here. After the
    last step the live weights are evaluated again where their snapshot is at hand, for the losses of single batches.
    Failed names the first step whose live weights have no finite loss.
    """
    rows: list[dict[str, Any]] = []
    measures: list[dict[str, Any]] = []
    told: dict[Hashable, Scored] = {}  # by the rows of the live weights
    known: dict[Hashable, Scored] = {}  # evaluated here
    sums: dict[str, np.ndarray] = {}
    last = max(live)

    def scored(id: str, key: Hashable, weights: Callable[[], Mapping[str, Tensor] | None]) -> Scored:
        """From what is known, or evaluated; after the last step with sums."""
        of = key, samples
        if of not in known and (of not in told or step == last) and (tensors := weights()) is not None:
            known[of] = evaluated(score, tensors, id, step, "val", samples, replay.bn)
        found = known[of] if of in known else told[of]
        if step == last and found.sums is not None:
            sums[id] = found.sums
        return found

    for step, row in live.items():
        if progress and step in progress.done:
            rows += progress.done[step][0]
            measures += progress.done[step][1]
            continue
        before = len(rows), len(measures)
        try:
            replay.advance(step)
        except Damaged as error:
            raise UserError(f"{error}; train again to put it right: the training's command with rerun=true") from None
        at = {"step": step, "split": "val"}
        samples: int | None = None
        seen: dict[str, Any] = {}
        if row is not None:
            samples = row["eval_samples"]  # the set that the live row was made on
            seen = {key: row[key] for key in ("trained_samples", "trained_tokens") if key in row}
            if is_scored(row):
                told[exactly(step), samples] = Scored({k: row[k] for k in SCORED if k in row}, None)
        here = scored("live", exactly(step), lambda step=step: replay.live(step))  # type: ignore[misc]
        if not is_scored(row):
            weights = replay.live(step)
            assert weights is not None, f"the weights of step {step} are not there"
            rows.append(live_row({**at, **here.fields}, score, weights, replay.bn, samples) | seen)
            measures += [{**at, "weights": "live", **m} for m in here.measures]
        if not math.isfinite(here.fields["loss"]):
            raise Failed(
                f"the loss of the live weights after step {step:,} is {here.fields['loss']}: nothing to compare with; "
                "mend what evaluates them, or leave this step out"
            )
        losses = {}
        for average in averages:
            key = average.key(step)
            if key is None:
                continue
            of = scored(average.id, key, lambda average=average, step=step: average.weights(step))  # type: ignore[misc]
            rows.append({**at, **average.fields, **of.fields, **seen})
            measures += [{**at, **average.fields, **m} for m in of.measures]
            losses[average.id] = of.fields["loss"]
        say(progress_line(step, measure, here.fields["loss"], losses))
        if progress:
            progress.add(step, rows[before[0] :], measures[before[1] :])
    return ReadOut(rows, last, sums, measures)


def is_scored(row: Mapping[str, Any] | None) -> bool:
    """Whether a row of the live weights says what they are worth."""
    return row is not None and "loss" in row


def live_row(
    of: dict[str, Any], score: Score, weights: Mapping[str, Tensor], bn: str | None, samples: int | None = None
) -> dict[str, Any]:
    """The row of the live weights, from its step, its split and what came `of` evaluating them with `bn`."""
    loss = of["loss"]
    if bn == "recalibrate":
        loss = evaluated(score, weights, "live", of["step"], of["split"], samples).fields["loss"]
    place = {"step": of["step"], "split": of["split"], "weights": "live"}
    return {**place, **policy_field(bn), **of, **running_field(bn, loss)}


def progress_line(step: int, measure: str, live: float, losses: dict[str, float]) -> str:
    named = losses
    if len(losses) > SHOWN:
        best = min(losses, key=losses.__getitem__)
        named = {f"best of {len(losses)} averages {best}": losses[best]}
    return f"step {step:>7,}  {measure}: live {live:.4f}" + "".join(f"  {id} {loss:.4f}" for id, loss in named.items())


def live_rows(rows: Iterable[dict[str, Any]], end: int | None = None) -> dict[int, dict[str, Any] | None]:
    """A run's finite val rows of the live weights by step, ascending, from step 1 to `end`."""
    chosen = [r for r in rows if r["split"] == "val" and r["weights"] == "live" and r["loss"] is not None]
    return {r["step"]: r for r in sorted(chosen, key=lambda r: r["step"]) if 0 < r["step"] <= (end or r["step"])}


def comparable(
    live: dict[int, dict[str, Any] | None], bn: str | None, saved: Mapping[int, Any]
) -> tuple[dict[int, dict[str, Any] | None], list[str]]:
    """A run's rows of the live weights as `read_out` compares averages with `bn` to them, and what is to be said of it.

    A row of other statistics is left without its loss, so that the weights are evaluated again; where they were not
    `saved`, its loss with the running statistics is what there is, or the step is left out. UserError: all would be.
    """
    found: dict[int, dict[str, Any] | None] = {}
    again, left_out = [], []
    for step, row in live.items():
        assert row is not None
        if has_statistics_of(row, bn):
            found[step] = row
        elif step in saved:
            found[step] = {k: v for k, v in row.items() if k not in SCORED or k == "eval_samples"}
            again.append(step)
        elif bn != "recalibrate" and row.get("loss_running_bn") is not None:
            beside = {k: v for k, v in row.items() if k not in ("accuracy", "loss_bits")}
            found[step] = {**beside, "bn": bn, "loss": row["loss_running_bn"]}
        else:
            left_out.append(step)
    if not found:
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
    return found, notes


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
) -> list[dict[str, Any]]:
    """Reads averages of a run out of its snapshots, up to step `end`, into `out/metrics.jsonl`; returns the rows.

    They are those that the same averagers would have written online, byte for byte.
    """
    score = OnModel(config, data, device, ranks)
    snapshots = Snapshots(snapshots_of(run), read_snapshot)
    live, notes = comparable(live_rows(read_rows(run.metrics), end), score.bn, snapshots.paths)
    for note in notes:
        say(note)
    again = [step for step, row in live.items() if not is_scored(row)]
    replay = Replay(settings, score.averaged, snapshots, device, again, score.statistics, score.bn)
    found = read_out(replay, replay.averages, score, live, say)
    if ranks.is_main:
        write_rows(out / "metrics.jsonl", found.rows)
    return found.rows
