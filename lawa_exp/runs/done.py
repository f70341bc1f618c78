"""A training that was done already: what is said of it, and read out of its snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lawa_exp.averaging import AveragerSettings
from lawa_exp.averaging.needs import next_longer, problem_with
from lawa_exp.axes.configuration import Config
from lawa_exp.evaluation.read_out import replay_run
from lawa_exp.results.tables import end_table
from lawa_exp.runs.plan import warnings
from lawa_exp.runs.prepare import Prepared
from lawa_exp.storage.origin import snapshots_of
from lawa_exp.storage.rows import Row, averager_ids, evaluated_alike, read_rows, with_newer
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError


def already_done(
    p: Prepared, before: Config, run: RunDir, ranks: Ranks, device: torch.device, step: int, say: Callable[[str], None]
) -> int:
    """Says so; what was not attached is read out of the snapshots, with the BatchNorm statistics of the others.

    before: how it was trained. UserError, after all others were read out, names the averages for which the snapshots
    do not suffice.
    """
    rows = ranks.from_main(read_rows(run.metrics, trained=False) if ranks.is_main else [])
    end = min(step, p.config.steps)
    shown = "" if end == step else f"; shown up to step {end:,}, the budget of this command"
    say(f"this training was done already, up to step {step:,}{shown}")
    rows = [r for r in rows if r["step"] <= end]
    known = set(averager_ids(rows))
    if any("bn" in r for r in rows):
        ours, theirs = statistics_of(p.config), statistics_of(before)
        if ours != theirs:
            said = " ".join(f"evaluate.{name}={value}" for name, value in theirs.items())
            say(
                f"its last evaluations are with {said}, and so is what is read out; python -m lawa_exp.readout has --bn"
            )
            p = replace(p, config=replace(p.config, evaluate=replace(p.config.evaluate, **theirs)))
    for warning in warnings(p.planned(ranks.world)):
        say(f"warning: {warning}")
    evaluated = {r["step"] for r in rows if r["split"] == "val"}
    asked_for = range(p.config.evaluate.every, end + 1, p.config.evaluate.every)
    if lacking := [s for s in asked_for if s not in evaluated]:
        say(
            f"evaluate.every={p.config.evaluate.every}: {len(lacking):,} of these {len(asked_for):,} evaluations were "
            f"not made (the first: step {lacking[0]:,}); rerun=true trains again and fills them in"
        )
    saved = set(ranks.from_main(snapshots_of(run) if ranks.is_main else {}))
    refused = []
    for settings in p.config.averagers:
        if settings.id in known or not settings.needed(end):
            continue
        out = run.readouts / settings.id
        earlier = ranks.from_main(read_rows(out / "metrics.jsonl") if ranks.is_main else [])
        alike = earlier and earlier[-1].get("bn") in (None, p.config.evaluate.bn)  # not so after a rerun with another
        if alike and earlier[-1]["step"] >= max(r["step"] for r in rows if r["split"] == "val"):
            say(f"{settings.id} was read out already, into {out}")
            rows = with_newer(rows, [r for r in earlier if r["step"] <= end])
        elif problem := problem_with(settings, saved, end):
            refused.append(f"{settings.id} cannot be read out: {problem}{instead(settings, saved, end)}")
        else:
            say(f"reading {settings.id} out of the snapshots into {out}")
            rows = with_newer(rows, replay_run(p.config, p.data, run, [settings], out, device, ranks, say, end))
    if ranks.is_main:
        rows, left_out = shown_alike(rows, p.config.evaluate.bn)
        say("\n" + end_table(rows))
        if left_out:
            say(left_out)
    if refused:
        raise UserError("; ".join(refused))
    return EXIT["done"]


def instead(settings: AveragerSettings, saved: set[int], end: int) -> str:
    """`, or ask for KEY=VALUE`: the next longer spacing of the same average that the snapshots give; empty without."""
    found = next_longer(settings, saved, end)
    return f", or ask for averagers.{settings.kind}.{found[0]}={found[1]}, which they give" if found else ""


def warn_of_statistics(config: Config, before: Config, rows: list[Row], say: Callable[[str], None]) -> None:
    """That a run of a model with BatchNorm goes on, and is evaluated in another way than up to now."""
    now, then = (" ".join(f"evaluate.{n}={v}" for n, v in statistics_of(c).items()) for c in (config, before))
    if now != then and any("bn" in r for r in rows):
        say(f"warning: evaluated with {now} from here on, and with {then} up to here; rerun=true evaluates all alike")


def statistics_of(config: Config) -> dict[str, Any]:
    """The settings of the BatchNorm statistics that weights are evaluated with."""
    names = ("bn", "bn_samples", "batch_size") if config.evaluate.bn == "recalibrate" else ("bn",)
    return {name: getattr(config.evaluate, name) for name in names}


def shown_alike(rows: list[Row], bn: str) -> tuple[list[Row], str]:
    """The rows but val rows of other BatchNorm statistics than `bn`'s, and a line that says so (empty: none are)."""
    found, last = evaluated_alike(rows, bn)
    if last is None:
        return rows, ""
    return list(found), (
        f"shown: evaluations with evaluate.bn={bn} alone; those with other BatchNorm statistics (the last: step "
        f"{last:,}) are left out, and rerun=true evaluates all alike"
    )
