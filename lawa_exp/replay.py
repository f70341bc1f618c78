"""Averages from a saved trajectory: the same averagers, fed with its snapshots in order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_exp import signals
from lawa_exp.averaging import build_averager, observed_steps, row_fields
from lawa_exp.averaging.swap import Swap, averaged_names
from lawa_exp.averaging.window import Window
from lawa_exp.checkpoint.commit import Damaged, steps_in, verify
from lawa_exp.checkpoint.tensors import read_tensors
from lawa_exp.config import Config, Failed, UserError
from lawa_exp.distributed import Ranks
from lawa_exp.evaluate import evaluate
from lawa_exp.files import write_text_atomically
from lawa_exp.metrics import encode, read_rows
from lawa_exp.numerics import autocast_for, objective_for, seeded_model, set_up_arithmetic
from lawa_exp.rundir import RunDir


def missing_steps(settings: Any, saved: set[int], step: int) -> list[int]:
    """The steps that the average after `step` needs and whose snapshots are not saved."""
    return [s for s in settings.needed(step) if s not in saved]


def problem_with(settings: Any, saved: set[int], step: int) -> str | None:
    """Why the average after `step` cannot be had from the saved snapshots, and what to do; None where it can."""
    missing = missing_steps(settings, saved, step)
    if not missing:
        return None
    return (
        f"it needs the weights of {len(settings.needed(step)):,} steps, of which {len(missing):,} were not saved "
        f"(the first: step {missing[0]:,}); train again with it attached: add rerun=true"
    )


def read_snapshot(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a committed snapshot; `Damaged` names a file that is not what was written."""
    verify(folder)
    return {n: t.to(device) for n, t in read_tensors(folder / "model.safetensors").items()}


def rebuild(averager: Any, settings: Any, trajectory: Path, step: int, device: torch.device) -> str | None:
    """Brings a new averager to where it would be after `step`, from the snapshots; returns why not, if so."""
    folders = steps_in(trajectory)
    problem = problem_with(settings, set(folders), step)
    if problem and not settings.windowed:  # a window fills up as training goes on
        return problem
    try:
        for s in settings.needed(step):
            if s not in folders:
                continue
            averager.update(s, read_snapshot(folders[s], device))
    except Damaged as error:
        return f"{error}; train again with it attached: add rerun=true"
    return None


class Replay:
    """Averagers over one pass of the snapshots: each is read once, and averages are asked for in step order."""

    def __init__(self, settings: list[Any], averaged: frozenset[str], trajectory: Path, device: torch.device) -> None:
        self.folders = steps_in(trajectory)
        self.device = device
        self.window = Window()
        self.averagers = {s.id: build_averager(s, averaged, self.window) for s in settings}
        self.wanted = sorted(
            {t for s in settings for t in observed_steps(s, max(self.folders, default=0)) if t in self.folders}
        )
        self.next = 0

    def advance(self, step: int) -> None:
        """Feeds every snapshot up to `step`."""
        while self.next < len(self.wanted) and self.wanted[self.next] <= step:
            t = self.wanted[self.next]
            tensors = read_snapshot(self.folders[t], self.device)
            for averager in self.averagers.values():
                averager.update(t, tensors)
            self.next += 1

    def average(self, id: str, step: int) -> dict[str, Tensor] | None:
        """The average `id` after `step`, or None: not defined yet, or it needs snapshots that were not saved."""
        averager = self.averagers[id]
        if missing_steps(averager.settings, set(self.folders), step):
            return None
        return averager.average()


def read_out(
    config: Config,
    data: Any,
    run: RunDir,
    settings: list[Any],
    out: Path,
    device: torch.device,
    ranks: Ranks,
    say: Callable[[str], None],
    end: int | None = None,
) -> list[dict[str, Any]]:
    """Evaluates averages of a run at the steps where its live weights were evaluated; writes `out/metrics.jsonl`.

    end: the last step to evaluate (default: the run's).

    One pass over the snapshots. The rows are those that the same averagers would have written online, byte for byte.
    UserError names a snapshot that is damaged.
    """
    set_up_arithmetic(config)
    model = seeded_model(config, device)
    objective = objective_for(config, model)
    swap = Swap(model)
    autocast = autocast_for(config, device)
    live = {row["step"]: row for row in read_rows(run.metrics) if row["split"] == "val" and row["weights"] == "live"}
    replay = Replay(settings, averaged_names(model), run.trajectory, device)
    rows = []
    for step in sorted(s for s in live if 0 < s <= (end or s)):
        if signals.stop_is_asked():
            raise Failed(f"stopped before step {step:,}: nothing was written; the same command begins anew")
        try:
            replay.advance(step)
        except Damaged as error:
            raise UserError(f"{error}; train again to put it right: add rerun=true") from None
        as_live = replace(config.evaluate, samples=live[step]["eval_samples"])  # the set that the live row was made on
        score = functools.partial(evaluate, objective, data, "val", as_live, ranks, device, autocast)
        seen = {key: live[step][key] for key in ("trained_samples", "trained_tokens")}
        losses = []
        for id, averager in replay.averagers.items():
            weights = replay.average(id, step)
            if weights is None:
                continue
            with swap.applied(weights):
                rows.append({"step": step, "split": "val", **row_fields(averager.settings), **score(), **seen})
            losses.append(f"{id} {rows[-1]['loss']:.4f}")
        if losses:
            say(f"step {step:>7,}  val loss: live {live[step]['loss']:.4f}  " + "  ".join(losses))
    if ranks.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out / "metrics.jsonl", "".join(encode(row) for row in rows))
    return rows
