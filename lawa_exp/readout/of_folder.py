"""A recommendation for a folder of checkpoints that is no run of ours: three lines, and the command that follows."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lawa_exp.averaging import AVERAGERS, AveragerSettings, LawaSettings, SwaSettings
from lawa_exp.averaging.flags import as_text
from lawa_exp.axes.dataset.tasks import Tokens
from lawa_exp.config.rules import default_of, setting_names
from lawa_exp.evaluation.mixtures import Mixtures
from lawa_exp.evaluation.on_data import OnData, worse_than_a_guess
from lawa_exp.evaluation.read_out import ReadOut, evaluations, read_out
from lawa_exp.formats.checkpoint import open_checkpoint
from lawa_exp.formats.stored import STATISTICS
from lawa_exp.readout.averagers import typed
from lawa_exp.readout.choice import FEWEST_BATCHES
from lawa_exp.readout.comparison import compare
from lawa_exp.readout.of_checkpoints import of_source, source_of
from lawa_exp.readout.of_single import is_single
from lawa_exp.readout.places import claimed
from lawa_exp.readout.report import write_summary
from lawa_exp.readout.request import Request
from lawa_exp.readout.subject import Subject
from lawa_exp.readout.suggestion import Criterion, Suggestion, as_json, candidates, gain_text, judged, measured
from lawa_exp.results.tables import markdown
from lawa_exp.seams.task import Metric
from lawa_exp.storage.metrics import write_metrics
from lawa_exp.storage.rows import name_of, write_rows
from lawa_exp.system.bar import Bar
from lawa_exp.system.cli import Parser
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import write_text_atomically

WINDOWS = (2, 3, 5, 10, 20)  # checkpoints of a window
SHOWN = 10  # candidates in the table on the terminal
FEWEST = "an average takes 2 checkpoints or more; the command readout evaluates a single one"
NO_COMMAND = "No command is needed."


class OfFunction(Tokens):
    """What a function of the user's gives: any unit, so no difference is too small to count."""

    def __init__(self, reference: str) -> None:
        super().__init__()
        self.metrics: Mapping[str, Metric] = {"loss": Metric(f"as {reference} gives it", tolerance=0.0, column=0)}


@dataclass(frozen=True)
class Numbered:
    """The checkpoints as averages count them: by their steps where these are evenly spaced, else 1, 2, ...

    steps: their own, by the number; unit: what these count. by_trajectory: whether `average --trajectory` counts so.
    """

    paths: dict[int, Path]
    steps: dict[int, int]
    by_step: bool
    unit: str
    by_trajectory: bool = True

    @property
    def last(self) -> int:
        return max(self.paths)

    def candidates(self) -> list[AveragerSettings]:
        numbers = list(self.paths)
        period = math.gcd(*numbers)
        return typed(candidates([], period, numbers[-1], numbers[0], WINDOWS))


@dataclass(frozen=True)
class Answer:
    """suggestion: None where the losses of single batches are not known, and so no noise; then `best` is what is.

    values, losses: by id, of the metric by which was chosen, and of the loss.
    """

    suggestion: Suggestion | None
    by: Criterion | None
    best: str
    values: Mapping[str, float]
    lines: tuple[str, str, str]
    command: str | None
    losses: Mapping[str, float] = field(default_factory=dict)


def numbered(paths: Mapping[int, Path], unit: str, unreadable: Sequence[tuple[str, str]] = ()) -> Numbered:
    """Step 0, the initial weights, is never averaged. unreadable: see `Source`. UserError: fewer than two are left."""
    steps = sorted(s for s in paths if s > 0)
    if len(steps) < 2:
        zeroth = f" ({paths[0].name}, of {unit} 0, counts as the initial weights)" if 0 in paths else ""
        others = f", and {len(unreadable)} that cannot be read ({': '.join(unreadable[0])})" if unreadable else ""
        raise UserError(f"{len(steps)} checkpoint there{zeroth}{others}; {FEWEST}")
    period = math.gcd(*steps)
    if steps == list(range(steps[0], steps[-1] + 1, period)):
        return Numbered({s: paths[s] for s in steps}, {s: s for s in steps}, True, unit, not unreadable)
    return Numbered({i: paths[s] for i, s in enumerate(steps, 1)}, dict(enumerate(steps, 1)), False, unit, False)


def suggest_for_folder(request: Request, say: Callable[[str], None]) -> tuple[Answer, Path | None]:
    """Evaluates the last checkpoint and averages of all, chooses, and writes rows, table and plots into a folder.

    say: prints a line (rank 0). Returns what to say at the end, and that folder (None: another rank's). UserError:
    there is nothing to choose between, or no model, tokenizer or data that go together.
    """
    if is_single(Path(request.target.run)):
        raise UserError(f"RUN={request.target.run}: {FEWEST}")
    with ExitStack() as locks:
        source, name = source_of(request, locks)
        own = numbered(source.paths, source.unit, source.unreadable)
        zeroth, source.paths = source.paths, own.paths
        subject = of_source(request, source, name, list(own.paths), own.candidates(), [own.last])
        for note in subject.notes:
            say(note)
        if 0 in zeroth:
            say(f"{zeroth[0].name}, of {own.unit} 0, counts as the initial weights, which no average takes in.")
        if not own.by_step:
            say(f"The {own.unit}s are not evenly spaced: the {len(own.paths)} checkpoints count as 1 to {own.last}.")
        result = evaluate(subject, own.last, say)
        answer = answer_of(request, own, subject, result)
        if not subject.is_main:
            return answer, None
        live = next((r["loss"] for r in result.rows if name_of(r) == "live"), None)
        if warning := worse_than_a_guess(subject.score, live):
            say(warning)
        say("\n" + table_of(answer))
        return answer, write(request, name, subject, result, answer)


def evaluate(subject: Subject, last: int, say: Callable[[str], None]) -> ReadOut:
    """The read-out after the last checkpoint, with a progress bar on a terminal."""
    replay, score = subject.replay.another([], [last]), subject.score
    settings = list(settings_by_id(subject).values())
    averages = Mixtures(settings, last, replay.snapshots, replay.averaged, replay.bn).averages
    todo = evaluations(replay, averages, subject.live)
    on_data = score if isinstance(score, OnData) else None
    each = on_data.batches if on_data else 1
    say(f"{len(averages)} averages and the last checkpoint: {todo} different weights, {each} batches each")
    with Bar(todo * each, "batch") as show:
        if on_data:
            before = on_data.scorer.batches
            on_data.scorer.show = lambda batches: show(batches - before)
        return read_out(replay, averages, score, subject.live, lambda _: None, metrics=subject.metrics)


def answer_of(request: Request, own: Numbered, subject: Subject, result: ReadOut) -> Answer:
    """The choice, and what is said of it. UserError: val has too few batches."""
    fields = {"live": {"weights": "live"}, **{a.id: a.fields for a in subject.averages}}
    if "live" not in result.sums:
        return without_noise(request, own, subject, result)
    task = subject.task or OfFunction(request.evaluation.how or "")
    by, sums = measured(result.sums, task)
    if len(sums["live"]) < FEWEST_BATCHES:
        raise UserError(
            f"{len(sums['live'])} batches are too few to choose by; expected {FEWEST_BATCHES} or more samples"
        )
    s = judged(request.target.run, own.last, by, sums, fields, result.rows, [own.last])
    values = {name_of(r): float(r[by.name]) for r in result.rows}  # type: ignore[literal-required]
    losses = {name_of(r): float(r["loss"]) for r in result.rows}
    settings = settings_by_id(subject)
    interval = f"95% interval of the {s.samples:,} evaluation samples, not of another seed"
    if s.id == "live" or s.gain <= 0:
        second = f"Gain: 0; no average is better ({interval})."
        if s.best != "live":
            no_vote = s.id != "live"
            gain = gain_text(s.gain, s.half, s) if no_vote else gain_text(s.best_gain, s.best_half, s)
            where = "on samples that had no vote in the choice" if no_vote else "where it was chosen"
            sign = " (minus: it loses)" if gain.startswith("-") else ""
            second = (
                f"Gain: 0; the best average, {s.best}, gains {gain} {where}{sign}: too little to tell from none "
                f"({interval})."
            )
        return Answer(s, by, "live", values, (no_help(own, request.target.key), second, NO_COMMAND), None, losses)
    live, value = (by.metric.text(values[id]) for id in ("live", s.id))
    unclear = "; inconclusive: it includes 0" if s.gain <= s.half else ""
    gain = gain_text(s.gain, s.half, s)
    second = (
        f"Gain over the last checkpoint: {gain}, on samples that had no vote in the choice ({interval}{unclear}); "
        f"on all of them, as in the table, {by.name} {live} -> {value}."
    )
    command = command_of(request, own, settings[s.id])
    return Answer(s, by, s.id, values, (f"Take {said(settings[s.id], own)}.", second, command), command, losses)


def no_help(own: Numbered, key: str | None) -> str:
    last = own.paths[own.last]
    if any(STATISTICS.search(name) for source in open_checkpoint(last, key).sources for name in source.tensors):
        return (
            f"Averaging does not help here with the BatchNorm statistics of the newest checkpoint: take it, {last}. "
            "Recalibrated on training data (update_bn) an average is usually better, and may be the best."
        )
    return f"Averaging does not help here: take the last checkpoint, {last}."


def without_noise(request: Request, own: Numbered, subject: Subject, result: ReadOut) -> Answer:
    """The lowest loss, where the user's function gives no more than that."""
    values = {name_of(r): float(r["loss"]) for r in result.rows if math.isfinite(r["loss"])}
    best = min(values, key=lambda id: values[id])
    unknown = (
        f'its interval is not known: {request.evaluation.how} gives one loss; returned as {{"loss": ..., "losses": '
        "[one for each sample]}, the noise is measured"
    )
    if best == "live":
        return Answer(
            None, None, best, values, (no_help(own, request.target.key), f"Gain: 0; {unknown}.", NO_COMMAND), None
        )
    settings = settings_by_id(subject)[best]
    command = command_of(request, own, settings)
    live, value = values["live"], values[best]
    gain = f"Gain over the last checkpoint: {live - value:+.4f} ({live:.4f} -> {value:.4f}"
    first = f"The lowest loss has {said(settings, own)}."
    return Answer(None, None, best, values, (first, f"{gain}); {unknown}.", command), command)


def settings_by_id(subject: Subject) -> dict[str, AveragerSettings]:
    return {average.id: average.averager.settings for average in subject.replay.averages}


def said(settings: AveragerSettings, own: Numbered) -> str:
    """`lawa-k3-s20, the mean of 3 checkpoints (steps 20, 40 and 60)`."""
    needed = [own.steps[n] for n in settings.needed(own.last)]
    equal = isinstance(settings, LawaSettings | SwaSettings)
    what = "the mean" if equal else "a weighted mean"
    shown = f"{needed[0]:,} to {needed[-1]:,}" if len(needed) > 2 else " and ".join(f"{s:,}" for s in needed)
    return f"{settings.id}, {what} of {len(needed)} checkpoints ({own.unit}s {shown})"


def command_of(request: Request, own: Numbered, settings: AveragerSettings) -> str:
    """`lawa average ...`, which writes the average whose loss was measured."""
    target, flags = request.target, []
    names = [n for n in setting_names(type(settings)) if n != "warmup" or getattr(settings, n)]
    values = {name: getattr(settings, name) for name in names}
    if own.by_trajectory:
        words = ["--trajectory", target.run]
        flags += ["--at", str(own.last)]
        flags += ["--step-from", target.choice.step_from] if target.choice.step_from else []
        flags += ["--include-averages"] if target.choice.include_averages else []
    else:
        words = [str(own.paths[n]) for n in settings.needed(own.last)]
        values |= {"start": 0, **({"spacing": 1} if "spacing" in values else {"every": 1})}
        flags += ["--include-averages"] if target.choice.include_averages else []
    flags += ["--key", target.key] if target.key else []
    if settings.kind != "lawa":
        words += ["--method", settings.kind]
    for name, value in values.items():
        is_needed = name in ("k", "spacing", "every", "decay")
        if is_needed or value != default_of(AVERAGERS[settings.kind], name):
            words += [f"--{name}", as_text(value)]
    out = f"{Path(target.run).resolve().name}-{settings.id}"
    return shlex.join([*shlex.split(f"{Parser.prefix}average"), *words, *flags, "--out", out])


def table_of(answer: Answer) -> str:
    """The candidates, the best first; of equal ones that of the lowest loss."""
    by, losses = answer.by, answer.losses
    sign = -1 if by is not None and by.metric.higher_is_better else 1
    name = by.name if by else "loss"
    ids = sorted(answer.values, key=lambda id: (sign * answer.values[id], losses.get(id, 0.0)))
    shown = ids[:SHOWN] + [id for id in ("live", answer.best) if id not in ids[:SHOWN]]
    more_names = ["loss"] if name != "loss" else []
    lines = [["weights", name, *more_names, ""]]
    for id in shown:
        numbers = [f"{answer.values[id]:.4f}", *(f"{losses[id]:.4f}" for _ in more_names)]
        lines.append(["last checkpoint" if id == "live" else id, *numbers, "taken" if id == answer.best else ""])
    more = (
        f"\n{len(ids) - len(shown)} more are in the table of the folder named below." if len(ids) > len(shown) else ""
    )
    return markdown(lines) + more


def write(request: Request, name: str, subject: Subject, result: ReadOut, answer: Answer) -> Path:
    """rows, table, plots and suggestion.json; the folder."""
    compared = compare(result, result.rows, [a.id for a in subject.averages], subject.task)
    command = shlex.join([*shlex.split(f"{Parser.prefix}suggest"), *words_of(request)])
    with claimed(request, subject.root, f"{name}-suggest{subject.suffix}") as out:
        write_rows(out / "metrics.jsonl", result.rows)
        write_text_atomically(out / "suggestion.json", as_json_of(answer))
        write_metrics(out, subject.metrics)
        chosen = "\n".join(f"- {line}" for line in answer.lines)
        write_summary(out, compared, result.rows, subject.named, chosen, subject.notes, command)
    return out


def words_of(request: Request) -> list[str]:
    e = request.evaluation
    pairs = (("--data", e.data), ("--evaluate", e.how), ("--model", e.model), ("--samples", e.samples))
    return [request.target.run, *(word for flag, value in pairs if value for word in (flag, value))]


def as_json_of(answer: Answer) -> str:
    """The suggestion, with the command and the values of all weights."""
    own: dict[str, Any] = json.loads(as_json(answer.suggestion)) if answer.suggestion else {"id": answer.best}
    more = {"command": answer.command, "values": answer.values, "lines": answer.lines}
    return json.dumps({**own, **more}, indent=1) + "\n"
