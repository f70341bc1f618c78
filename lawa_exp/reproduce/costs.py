"""What the trainings of some sets cost, in steps, in steps of gpt_tiny and in hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lawa_exp.reproduce.trained import MISSING, Planned, Training
from lawa_exp.results.summary import made_with
from lawa_exp.results.tables import markdown

SHARED = "\n\nA training that several sets share counts once in the last line; hours are by the finished runs."


def cost_table(plans: Sequence[Planned], unit: float) -> str:
    """A line for each set: its trainings, steps, cost in steps of gpt_tiny, time so far or expected, what is done."""
    lines = [["set", "trainings", "done", "steps", "gpt_tiny steps", "hours of one process"]]
    pace = seconds_per_flop(plans)
    for p in plans:
        if p.problem:
            lines.append([p.set.name, p.problem[:60], "", "", "", ""])
            continue
        states = [t.state() for t in p.trainings]
        flops = sum(t.flops() for t in p.trainings)
        steps = sum(t.config.steps - t.first for t in p.trainings)
        hours = f"{flops * pace / 3600:.2f}" if pace else "-"
        over = sum(s != MISSING for s in states)
        lines.append([p.set.name, str(len(states)), str(over), f"{steps:,}", f"{flops / unit:,.0f}", hours])
    every = distinct(plans)
    flops = sum(t.flops() for t in every)
    steps = sum(t.config.steps - t.first for t in every)
    hours = f"{flops * pace / 3600:.2f}" if pace else "-"
    lines.append(["together", str(len(every)), "", f"{steps:,}", f"{flops / unit:,.0f}", hours])
    return markdown(lines) + SHARED


def distinct(plans: Sequence[Planned]) -> list[Training]:
    """Each training once, the longest where several budgets share one."""
    found: dict[Path, Training] = {}
    for p in plans:
        for t in p.trainings:
            known = found.get(t.folder)
            if known is None or t.config.steps > known.config.steps:
                found[t.folder] = t
    return list(found.values())


def seconds_per_flop(plans: Sequence[Planned]) -> float | None:
    """Of the whole runs, evaluations included, over those that were trained in one go; None: there is none yet."""
    timed = [(t.flops(), times[1]) for t in distinct(plans) if (times := t.seconds())]
    return sum(s for _, s in timed) / sum(f for f, _ in timed) if timed else None


def in_words(plans: Sequence[Planned], unit: float) -> list[str]:
    """What the trainings cost, and how much less than a training for each row of the tables."""
    every = distinct(plans)
    work = f"{sum(t.flops() for t in every) / unit:,.0f} steps of gpt_tiny"
    found = [f"{len(every)} trainings, as much work as {work} (by FLOPs, evaluations not counted)"]
    timed = [(1 + len(t.config.averagers), *times) for t in every if (times := t.seconds())]
    if timed:
        rows = sum(n for n, _, _ in timed)
        training, whole = sum(t for _, t, _ in timed), sum(w for _, _, w in timed)
        apart = sum(n * t + w - t for n, t, w in timed)
        found.append(
            f"one trajectory, many averages: {len(timed)} trainings give {rows:,} rows (live weights and averages) by "
            f"{training / 3600:.2f} h of training and {(whole - training) / 3600:.2f} h of evaluations and read-outs; "
            f"a training for each row would take {apart / 3600:.2f} h, {apart / whole:.1f} times as long "
            f"({rows / len(timed):.1f} times the steps)"
        )
    return found


def made_by(plans: Sequence[Planned]) -> str:
    """Machine, versions and data of the runs."""
    return made_with([t.folder for t in distinct(plans) if t.state() != MISSING])
