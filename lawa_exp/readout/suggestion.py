"""A recommendation from one trajectory: the candidates that it allows, the choice of `choice.py`, and what is said."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lawa_exp.averaging import AVERAGERS, AveragerSettings, EmaSettings, LawaSettings, SwaSettings, WmaSettings
from lawa_exp.averaging.flags import as_text
from lawa_exp.config.rules import setting_names
from lawa_exp.evaluation.read_out import Live, ReadOut, is_scored, live_rows, read_out
from lawa_exp.readout.averagers import typed
from lawa_exp.readout.choice import FEWEST_BATCHES, choose, cost, cross_fitted, standard_error
from lawa_exp.readout.command import with_earlier
from lawa_exp.readout.comparison import compare
from lawa_exp.readout.noise import Measure, measure_of
from lawa_exp.readout.of_run import averages_of
from lawa_exp.readout.report import write_summary
from lawa_exp.readout.request import Target
from lawa_exp.readout.subject import Subject
from lawa_exp.results.statistics import curve
from lawa_exp.seams.task import Metric, Task
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.metrics import write_metrics
from lawa_exp.storage.origin import snapshots_of
from lawa_exp.storage.rows import Row, name_of, read_rows, write_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import in_turn, write_text_atomically

NAME = "suggest"  # of the folder in readouts/
WINDOWS = (3, 5, 10, 20)  # snapshots; an EMA's decay is that of the same mean age (`lawa:k`)
LONGEST = 0.5  # share of the run that a window spans at most
SWA_STARTS = (0.5, 0.75, 0.9)  # shares of the run
BATCHES = 32  # that val is cut into, at least, where it has as many samples
EARLIER = 4  # evaluations of the run's second half that tell what is best while training goes on


@dataclass(frozen=True)
class Suggestion:
    """What is recommended, by which metric. Gains are over the live weights, in its unit, of a share in points.

    id: "live", or an average's; start: the first step whose weights it has to observe; overrides: what attaches it.
    gain, half: as `choice.cross_fitted` gives them, and of a live recommendation 0; chosen_gain, chosen_half: where it
    was chosen. best, to_best, to_best_error: the best on val, how much the suggestion is worse than that, and the
    standard error of it. helps_from: the step from which on it is at least as good as live at every evaluation.
    while_training: the best average of the evaluations at `earlier`, with its mean, smallest and largest gain there.
    """

    run: str
    step: int
    steps: int
    by: str
    unit: str
    samples: int
    batches: int
    candidates: int
    id: str
    fields: Mapping[str, object]
    start: int | None
    overrides: list[str]
    gain: float
    half: float
    chosen_gain: float
    chosen_half: float
    best: str
    best_gain: float
    best_half: float
    to_best: float
    to_best_error: float
    helps_from: int | None
    earlier: list[int]
    while_training: tuple[str, float, float, float] | None
    digits: int = 4  # of gains


@dataclass(frozen=True)
class Criterion:
    """The metric that a choice is made by. measure: compares sums by it, lower being better."""

    name: str
    metric: Metric
    measure: Measure

    @property
    def scale(self) -> int:
        """Of gains: those of a share are in points."""
        return 100 if self.metric.is_share else 1

    @property
    def unit(self) -> str:
        return f"points of {self.name}" if self.metric.is_share else self.metric.unit

    @property
    def digits(self) -> int:
        return self.metric.digits - (2 if self.metric.is_share else 0)


def suggest(target: Target, say: Callable[[str], None]) -> tuple[Suggestion, Subject, ReadOut]:
    """Reads the candidates out of RUN, chooses, and writes RUN/readouts/suggest (metrics.jsonl, summary.md, ...).

    The read-out stands after the last step, so that what it holds can be evaluated on. say: prints a line (rank 0).
    UserError: nothing was evaluated, or there is nothing to choose between.
    """
    run = RunDir(Path(target.run))
    written = run.read_config()
    if written is None:
        raise UserError(f"RUN={target.run}: no run there (config.yaml is missing)")
    subject, live = subject_of(target, run, written)
    last, averages = subject.training.last, subject.averages
    if subject.is_main:
        say(f"{len(averages)} averages after step {last:,} and at evaluations before it: evaluating on val")
    result = read_out(subject.replay, averages, subject.score, subject.live, lambda _: None, metrics=subject.metrics)
    rows = with_earlier(result.rows, subject)
    assert subject.task, "a run of ours has a data set of ours"
    by, sums = measured(result.sums, subject.task)
    if len(sums["live"]) < FEWEST_BATCHES:
        raise UserError(f"evaluate.samples: {len(sums['live'])} of val are too few; expected {FEWEST_BATCHES} or more")
    fields = {"live": {"weights": "live"}, **{a.id: a.fields for a in averages}}
    suggested, _ = choose(sums, {id: cost(f) for id, f in fields.items()}, by.metric.tolerance, by.measure)
    if suggested != "live":
        have = {(r["step"], name_of(r)) for r in rows}
        more = at_other_steps(suggested, subject, live, {step for step, weights in have if weights == suggested})
        rows = [*rows, *(r for r in more if (r["step"], name_of(r)) not in have)]
        rows.sort(key=lambda row: row["step"])
    every_row = [*(r for r in subject.rows if name_of(r) == "live"), *rows]
    suggestion = judged(target.run, written["steps"], by, sums, fields, every_row, list(subject.live))
    if subject.is_main:
        out = subject.root / NAME
        f = compare(result, every_row, [average.id for average in averages], subject.task)
        command = shlex.join(["python", "-m", "lawa_exp.suggest", target.run])
        list_of_lines = "\n".join(f"- {line}" for line in lines_of(suggestion))
        notes = [note for note in subject.notes if note.startswith(("Data:", "The live weights"))]
        with in_turn(out):
            write_rows(out / "metrics.jsonl", rows)
            write_text_atomically(out / "suggestion.json", as_json(suggestion))
            write_metrics(out, subject.metrics)
            write_summary(out, f, every_row, subject.named, list_of_lines, notes, command)
    return suggestion, subject, result


def subject_of(target: Target, run: RunDir, written: dict[str, Any]) -> tuple[Subject, Live]:
    """The run with the candidates, at its last evaluation and at some before; and all its rows of the live weights."""
    last = max(live_rows(read_rows(run.metrics, trained=False)), default=0)
    if not last:
        raise UserError(f"RUN={target.run}: its live weights were not evaluated yet")
    states = {} if written["optimizer"]["kind"] == "schedule_free" else steps_in(run.resume) | steps_in(run.states)
    if last not in snapshots_of(run) | states:
        raise UserError(
            f"RUN={target.run}: the weights of step {last:,}, the last one evaluated, were not kept; choose a "
            "trajectory.every that divides evaluate.every"
        )
    period = written["trajectory"]["every"]
    entries = candidates(written["averagers"], period, last)
    subject = averages_of(target, run, written, entries, batches=BATCHES, states=states)
    if not subject.averages:
        raise UserError(f"RUN={target.run}: no average can be had: " + "; ".join(subject.left_out[:1]))
    live = subject.live
    return replace(subject, live={s: live[s] for s in (*earlier_steps(list(live)), last)}), live


def candidates(
    attached: list[dict[str, Any]], period: int, last: int, first: int = 0, windows: Sequence[int] = WINDOWS
) -> list[dict[str, Any]]:
    """The attached averages, and those of snapshots every `period` steps, as entries of `averagers`; none twice.

    LAWA over `windows` x (period, twice, four times, ...), WMA and EMA of every snapshot, SWA from SWA_STARTS: windows
    within the latest LONGEST of the run, and no stale ones. first: of the snapshots, where the earliest are gone; then
    a window of three is never too long.
    """
    spacings = [period]
    longest = max(LONGEST * last, 2 * period if first else 0)
    while 2 * (windows[0] - 1) * spacings[-1] <= longest:
        spacings.append(2 * spacings[-1])
    newest = last // period * period
    longest = min(longest, newest - first)
    pairs = [(k, s) for s in spacings for k in windows if (k - 1) * s <= longest and newest % s == 0]
    shortest = [k for k, s in pairs if s == period]
    starts = [max(first, round(share * last / period) * period) for share in SWA_STARTS]
    averagers: list[AveragerSettings] = typed(attached)
    averagers += [LawaSettings(k, s) for k, s in pairs]
    averagers += [WmaSettings(k, period) for k in shortest]
    averagers += [EmaSettings(f"lawa:{k}", period, first if first > period else 0) for k in shortest]
    averagers += [SwaSettings(period, start) for start in starts if start < newest or not first]
    by_id = {settings.id: settings for settings in averagers}
    return [{"kind": s.kind, **asdict(s)} for s in by_id.values()]


def earlier_steps(steps: list[int]) -> list[int]:
    """EARLIER of the evaluated steps, evenly spaced, from the middle of the run on and before the last one."""
    inside = [s for s in steps if 2 * s >= steps[-1]][:-1]
    if len(inside) <= EARLIER:
        return inside
    return [inside[(i + 1) * len(inside) // EARLIER - 1] for i in range(EARLIER)]


def measured(sums: Mapping[str, np.ndarray], task: Task) -> tuple[Criterion, dict[str, np.ndarray]]:
    """What is chosen by, which the task decides, and the sums of each of the weights as its measure takes them.

    Weights without a finite loss are no candidates.
    """
    name = task.decides
    measure, prepared = measure_of(task, name)
    ready = {id: prepared(own) for id, own in sums.items() if np.isfinite(own).all()}
    finite = {id: own for id, own in ready.items() if np.isfinite(measure.value(own))}
    if "live" not in finite:
        raise Failed(f"the live weights have no finite {name} on val: nothing to compare with")
    return Criterion(name, task.metrics[name], measure), finite


def at_other_steps(id: str, subject: Subject, live: Live, evaluated: set[int]) -> list[Row]:
    """The rows of the average `id` at the steps of `live` at which it was not evaluated yet."""
    average = next((a for a in subject.replay.averages if a.id == id), None)
    steps = {s: row for s, row in live.items() if s not in evaluated}
    if average is None or not steps:  # an attached one has its rows from the training
        return []
    again = [step for step, row in steps.items() if not is_scored(row)]
    replay = subject.replay.another([average.averager.settings], again)
    return read_out(replay, replay.averages, subject.score, steps, lambda _: None, metrics=subject.metrics).rows


def judged(
    run: str,
    steps: int,
    by: Criterion,
    sums: Mapping[str, np.ndarray],
    fields: Mapping[str, Mapping[str, object]],
    rows: list[Row],
    evaluated: list[int],
) -> Suggestion:
    """The suggestion after the last of the `evaluated` steps. rows: of live and the averages, on val."""
    costs = {id: cost(fields[id]) for id in sums}
    rule = by.metric.tolerance, by.measure
    chosen, best = choose(sums, costs, *rule)
    scale = -by.scale  # a difference in loss or errors, as a gain
    loss, half = cross_fitted(sums, costs, rule[0], "live", by.measure) if chosen != "live" else (0.0, 0.0)
    where_chosen, best_gain = (by.measure.difference(sums[id], sums["live"]) for id in (chosen, best))
    to_best = standard_error(sums[chosen], sums[best], by.measure)
    last, earlier = evaluated[-1], evaluated[:-1]
    gains = {id: gains_of(rows, id, by) for id in sums if id != "live"}
    helps_from = first_helpful(gains[chosen]) if chosen != "live" else None
    start = first_observed(fields[chosen], gains[chosen], helps_from) if chosen != "live" else None
    everywhere = {id: [g[s] for s in earlier] for id, g in gains.items() if earlier and set(earlier) <= g.keys()}
    best_earlier = max(everywhere, key=lambda id: np.mean(everywhere[id]), default=None)
    return Suggestion(
        run=str(run),
        step=last,
        steps=steps,
        by=by.name,
        unit=by.unit,
        samples=next((r["eval_samples"] for r in rows if r["step"] == last), 0),
        batches=len(sums["live"]),
        candidates=len(sums),
        id=chosen,
        fields={k: v for k, v in fields[chosen].items() if k not in ("weights", "bn")},
        start=start,
        overrides=overrides_of(fields[chosen], start),
        gain=scale * loss + 0.0,
        half=abs(scale) * half,
        chosen_gain=scale * where_chosen[0] + 0.0,
        chosen_half=abs(scale) * where_chosen[1],
        best=best,
        best_gain=scale * best_gain[0] + 0.0,
        best_half=abs(scale) * best_gain[1],
        to_best=abs(scale) * to_best[0],
        to_best_error=abs(scale) * to_best[1],
        helps_from=helps_from,
        earlier=earlier,
        while_training=(
            (best_earlier, float(np.mean(g := everywhere[best_earlier])), min(g), max(g)) if best_earlier else None
        ),
        digits=by.digits,
    )


def gains_of(rows: list[Row], id: str, by: Criterion) -> dict[int, float]:
    """By step, the gain of an average over the live weights, as `Suggestion` has it."""
    sign = by.scale if by.metric.higher_is_better else -by.scale
    live = dict(curve(rows, "live", metric=by.name))
    return {s: sign * (v - live[s]) for s, v in curve(rows, id, metric=by.name) if s in live}


def first_helpful(gains: Mapping[int, float]) -> int | None:
    """The first step from which on no gain is negative; None where the last one is."""
    first = None
    for step in sorted(gains, reverse=True):
        if gains[step] < 0:
            break
        first = step
    return first


def first_observed(fields: Mapping[str, Any], gains: Mapping[int, float], helps_from: int | None) -> int:
    """The `start` that is recommended: of a window whose first averages hurt, that which makes it full when it helps.

    A window's later averages do not depend on it. Of other averages, and where nothing hurts, their own.
    """
    if "k" not in fields or helps_from is None or helps_from == min(gains):
        return int(fields.get("start", 0))
    spacing, k = int(fields["spacing"]), int(fields["k"])
    newest = helps_from // spacing * spacing
    return max(0, newest - (k - 1) * spacing)


def overrides_of(fields: Mapping[str, Any], start: int | None) -> list[str]:
    """What attaches the average to a training: `avg=lawa k=5 spacing=20 averagers.lawa.start=0`; live: `avg=none`."""
    kind = fields.get("averager")
    if kind is None:
        return ["avg=none"]
    names = [name for name in setting_names(AVERAGERS[kind]) if name != "code"]  # a training fills that in
    given = {name: start if name == "start" else fields[name] for name in names}
    top = {"k", "spacing"} & given.keys()
    return [
        f"avg={kind}",
        *(f"{name}={given[name]}" for name in given if name in top),
        *(f"averagers.{kind}.{name}={_word(v)}" for name, v in given.items() if name not in top),
    ]


def _word(value: Any) -> str:
    """A value in an override."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_word(part)}" for name, part in value.items()) + "}"
    return "null" if value is None else as_text(value)


def lines_of(s: Suggestion) -> list[str]:
    """What the terminal and summary.md say."""
    what = "take the live weights" if s.id == "live" else f"take {s.id}"
    lines = [
        f"Suggestion after step {s.step:,}, of {s.candidates} candidates on val ({s.samples:,} samples): {what}.",
        f"Overrides: {shlex.join(s.overrides)}",
    ]
    if s.id == "live" and s.best == "live":
        lines.append("Expected gain: 0, no average is better than the live weights.")
    elif s.id == "live":
        lines.append(
            f"Expected gain: 0; the best average, {s.best}, {gain_text(s.best_gain, s.best_half, s)} where it was "
            "chosen, is too close to tell from the live weights."
        )
    else:
        lines.append(
            f"Expected gain over the live weights: {gain_text(s.gain, s.half, s)} (95%, the samples' noise, "
            f"{s.batches} batches; measured on batches that had no vote in the choice). On all of them, where it was "
            f"chosen, as in the table: {gain_text(s.chosen_gain, s.chosen_half, s)}."
        )
        if s.best != s.id:
            lines.append(
                f"The best on val was {s.best}, better by {number(s.to_best, s)} with a standard error of "
                f"{number(s.to_best_error, s)}: too little to tell, and this one is cheaper."
            )
        if s.helps_from is not None:
            lines.append(
                f"From step {s.helps_from:,} on it is no worse than the live weights at any evaluation; it has to "
                f"observe the weights from step {s.start:,} on."
            )
    if s.while_training:
        id, average, low, high = s.while_training
        when, shown = f"While training went on (evaluated once, at step {s.earlier[0]:,})", number(average, s, True)
        if len(s.earlier) > 1:
            when = f"While training went on ({len(s.earlier)} evaluations, steps {s.earlier[0]:,} to {s.earlier[-1]:,})"
            shown += f" ({number(low, s, True)} to {number(high, s, True)})"
        better = f"{id} was the best on average, by {shown} {s.unit}; chosen where it is measured."
        lines.append(f"{when}: " + (better if average > 1e-6 else "no average was better than the live weights."))
    if s.step < s.steps:
        lines.append(f"This is step {s.step:,} of {s.steps:,}: where the rate is still to fall, gains will shrink.")
    lines.append(
        "The ± of a gain holds the noise of this one run's val samples, the table's the live curve's scatter, too. "
        "What another seed would change is in neither."
    )
    return lines


def gain_text(gain: float, half: float, s: Suggestion) -> str:
    noise = "" if math.isnan(half) else f" ± {number(half, s)}"
    return f"{number(gain, s, True)}{noise} {s.unit}"


def number(value: float, s: Suggestion, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.{s.digits}f}"


def as_json(s: Suggestion) -> str:
    return json.dumps({name: value for name, value in asdict(s).items() if name != "digits"}, indent=1) + "\n"
