"""What is read out: a run of ours, or a folder of checkpoints with something that evaluates them."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lawa_exp.averaging import AVERAGERS, AveragerSettings, PowerEmaSettings
from lawa_exp.averaging.flags import start_note
from lawa_exp.averaging.needs import missing_steps, next_longer, problem_with
from lawa_exp.config.rules import setting_names
from lawa_exp.config.shared import Init, Options
from lawa_exp.evaluation.batchnorm import has_statistics_of
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.evaluation.read_out import comparable, is_scored, live_rows
from lawa_exp.evaluation.replay import Replay, Snapshots, read_snapshot
from lawa_exp.evaluation.score import OnModel, Score
from lawa_exp.readout.asked import combinations, typed
from lawa_exp.readout.evaluators import evaluator_for
from lawa_exp.readout.kept import Attached, Rebuilt, tracked_widths
from lawa_exp.readout.revisions import HUB, Folder, Hub, Source, chosen
from lawa_exp.results.tables import NATS
from lawa_exp.runs.choices import config_from, unresolved_from
from lawa_exp.runs.folder import check_content
from lawa_exp.runs.prepare import prepare
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.custom import admit
from lawa_exp.storage.origin import snapshots_of
from lawa_exp.storage.rows import averager_ids, read_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import UserError
from lawa_exp.system.memory import return_freed_memory
from lawa_exp.training.sharing import batches_of

SHOWN = 5  # steps that a note names
RESERVED = ("test", "before-rerun")  # folders of readouts/ that the training writes


@dataclass
class Subject:
    """What a read-out needs to know. live: as for `replay.read_out`; rows: the val rows that there are already."""

    title: str
    root: Path  # the results go to a folder of it
    snapshots: Snapshots
    live: dict[int, dict[str, Any] | None]
    score: Score
    replay: Replay
    kept: list[Attached | Rebuilt] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    no_test: str = ""  # why there is no test split
    unit: str = NATS  # of the loss
    measure: str = "val loss"  # what the terminal and the table call it
    is_main: bool = True
    suffix: str = ""  # of the results' name, where they are not evaluated as the run's own
    last: int = 0  # step of the training, read out or not
    published: list[dict[str, Any]] = field(default_factory=list)  # of the live weights, from elsewhere
    steps_per_epoch: float | None = None  # where it is known
    revisions: tuple[Source, dict[str, Any]] | None = None  # where they come from, and what decides the results


def our_run(args: argparse.Namespace) -> Subject:
    """A run directory, and the averages that the flags ask for."""
    run = RunDir(Path(args.run))
    written = run.read_config()
    if written is None:
        raise UserError(
            f"RUN={args.run}: no run there (config.yaml is missing); a folder of checkpoints needs --model and "
            "--dataset, or --evaluate"
        )
    config = config_from(written)
    if args.name in RESERVED:
        raise UserError(f"--name={args.name} is the training's own; choose another")
    widths = tracked_widths(run, config.averagers, int(args.every) if (args.every or "").isdigit() else None)
    asked = combinations(args, config.trajectory.every, widths[0].period if widths else None)
    return averages_of(args, run, written, asked, widths)


def averages_of(
    args: argparse.Namespace,
    run: RunDir,
    written: dict[str, Any],
    asked: list[dict[str, Any]],
    widths: Sequence[PowerEmaSettings] = (),
    batches: int = 1,
    states: Mapping[int, Path] | None = None,
) -> Subject:
    """A run and the averages `asked` for, as entries of its `averagers`.

    widths: the tracked power_emas that others are rebuilt from. batches: into how many, at least, val's samples are
    cut, where there are as many samples: the noise is measured on them. states: complete states by step, whose live
    weights are taken where there is no snapshot.
    """
    config = config_from(written)
    admit(config.model, written, run.path, args.trust)
    period = config.trajectory.every
    device, ranks = start_device(args.device or config.trainer.device)
    options = Options(run_dir=args.run, runs_root=".", sweep=None, plan=False, rerun=False)
    in_memory = {**written["trajectory"], "window": "memory"}  # a read-out has a window of its own
    changed = {
        "averagers": asked,
        "trajectory": in_memory,
        "evaluate": {**written["evaluate"], "bn": args.bn or config.evaluate.bn},
        "trainer": {**written["trainer"], **({"threads": args.threads} if args.threads else {})},
        "init": dict.fromkeys(setting_names(Init)),  # what it came from may be gone
    }
    p = prepare(unresolved_from({**written, **changed}), options, device, ranks)
    if p.data.fingerprint != written["identity"]["dataset"]["fingerprint"]:
        raise UserError(f"dataset={config.dataset.name}: its content is not what {args.run} was trained on")
    check_content(run, p, ranks)
    rows = read_rows(run.metrics)
    evaluated = live_rows(rows)
    if not evaluated:
        raise UserError(f"RUN={args.run}: its live weights were not evaluated yet")
    saved = snapshots_of(run)
    snapshots = Snapshots({**(states or {}), **saved}, read_snapshot)
    samples = len(fixed_set(p.data.sizes["val"], p.config.evaluate.samples))
    batch_size = min(p.config.evaluate.batch_size, max(1, samples // batches))
    score = OnModel(replace(p.config, averagers=()), p.data, device, ranks, batch_size)
    if args.bn and score.bn is None:
        raise UserError(f"--bn={args.bn}: model={config.model.name} has no BatchNorm")
    live, bn_notes = comparable(evaluated, score.bn, snapshots.paths)
    last = max(live)
    online = averager_ids(rows)
    replayed, left_out, notes = [], [], [*data_note(p.data), *bn_notes]
    kept: list[Attached | Rebuilt] = []
    bn_at = {step: row.get("bn") for step, row in evaluated.items() if row}  # also in that step's files of averages
    fitting = None if score.bn in (None, "recalibrate") else {step for step, bn in bn_at.items() if bn == score.bn}
    for settings in p.config.averagers:
        problem = too_few(settings, last) or problem_with(settings, saved, last)
        if not problem:
            replayed.append(settings)
        elif fitting is not None and last not in fitting:
            kept_bn = f"evaluate.bn={bn_at[last]}"
            left_out.append(
                f"{settings.id}: {problem}; kept averages have the statistics of {kept_bn}: --bn recalibrate"
            )
        elif settings.id in online and last in steps_in(run.averages / settings.id):
            kept.append(Attached(settings, run, score.bn, fitting))
            notes.append(f"{settings.id} is the one that was attached while the run trained.")
        elif isinstance(settings, PowerEmaSettings) and widths and settings.every == widths[0].every:
            if score.bn == "average":
                left_out.append(f"{settings.id}: --bn=average: expected recalibrate, for what is rebuilt from others")
                continue
            rebuilt = Rebuilt(settings.sigma_rel, widths, run, score.averaged, score.bn, fitting)
            kept.append(rebuilt)
            notes.append(
                f"{rebuilt.id} was not tracked: it is rebuilt from {' and '.join(s.id for s in widths)}, and at step "
                f"{last:,} its profile is {rebuilt.error(last):.2%} off (L2 norm)."
            )
        else:
            left_out.append(f"{settings.id}: {problem}{instead(settings, saved, last)}")
    notes += [*period_note(args, replayed, period), *start_note(args, {s.kind for s in replayed})]
    asked_live = [last, *(step for step, row in live.items() if not is_scored(row))]
    replay = Replay(replayed, score.averaged, snapshots, device, asked_live, score.statistics, score.bn)
    suffix = f"-bn-{score.bn}" if score.bn and score.bn != config.evaluate.bn else ""
    title = f"{config.model.name} on {config.dataset.name}, run {run.path.resolve().name}"
    at_first = [r for r in rows if r["split"] == "val" and r["step"] == 0 and has_statistics_of(r, score.bn)]
    of_averages = [r for r in rows if r["split"] == "val" and r["weights"] != "live"]
    known = [*at_first, *(row for row in live.values() if row and is_scored(row)), *of_averages]
    return Subject(
        title,
        run.readouts,
        snapshots,
        live,
        score,
        replay,
        kept,
        known,
        left_out,
        notes,
        unit=f"nats per {p.data.unit}",
        is_main=ranks.is_main,
        suffix=suffix,
        last=last,
        steps_per_epoch=last * p.data.sizes["train"] / batches_of(p.config, p.data).samples(last),
    )


def folder(args: argparse.Namespace, held: ExitStack) -> Subject:
    """Checkpoints with something that evaluates them: a folder of them, or revisions of a model on the hub.

    held: keeps what is fetched for this process alone.
    """
    hub = args.run.startswith(HUB)
    ours = not hub and RunDir(Path(args.run)).config.exists()
    root = RunDir(Path(args.run)).trajectory if ours and args.evaluate else Path(args.run)
    results = Path(args.out or "readouts")
    if not hub and results.resolve().is_relative_to(root.resolve()):
        raise UserError(f"--out={results} is inside RUN, where nothing is written; choose another folder")
    revisions = hub or args.revisions is not None
    name = args.run.split("/")[-1] if hub else root.resolve().name
    if hub:
        repository = args.run.removeprefix(HUB)
        source: Source = Hub(repository, results / f".fetched-{repository.replace('/', '--')}")
        if os.environ.get("RANK", "0") == "0":  # all ranks read what is fetched
            held.enter_context(source.held())
    else:
        source = Folder(root)
    steps = chosen(source, args.revisions)
    period = math.gcd(*steps) or 1
    asked = typed(combinations(of_averagers(args, revisions), period))
    paths = {s: source.paths[s] for s in steps}
    live = evaluated_at(args, asked, steps) if revisions else steps
    last = max(live)
    problems = [(s, too_few(s, last) or missing(s, paths, last)) for s in asked]
    left_out = [f"{s.id}: {problem}{instead(s, paths, last)}" for s, problem in problems if problem]
    replayed = [s for s, problem in problems if not problem]
    if revisions:  # of a long trajectory only what is evaluated, and what that needs
        needed = {t for s in replayed for step in live if defined(s, step) for t in s.needed(step)} | set(live)
        paths = {s: path for s, path in paths.items() if s in needed}
    absent = [note for s in replayed if (note := gaps(s, paths, live))]
    first = min(paths)
    if not replayed and revisions:
        raise UserError("none of these averages can be had: " + "; ".join(left_out))
    beside = source.beside(first)
    e = evaluator_for(args, name, lambda: source.fetch(first), beside)
    if revisions:
        return_freed_memory()
    read = e.fitted
    if not hub:
        for path in paths.values():  # headers only: what does not fit is told before hours of evaluation
            read(path)
    notes = e.notes
    if read.recorded and read.settings is not None:
        said = ", ".join(f"{key}={json.dumps(value)}" for key, value in read.recorded.items())
        notes.append(f"The model is as the checkpoints record it: {said}.")
    if read.left_out:
        notes.append(f"In the checkpoints, but not in {read.what}, and left out: {', '.join(sorted(read.left_out))}.")
    notes += [*absent, *period_note(args, replayed, period), *start_note(args, {s.kind for s in replayed})]
    steps_of = {path: step for step, path in source.paths.items()}
    snapshots = Snapshots(paths, lambda path: read(source.fetch(steps_of[path])))
    replay = Replay(replayed, e.averaged, snapshots, e.device, live, e.statistics, e.bn)
    subject = Subject(
        e.title,
        Path("readouts"),
        snapshots,
        dict.fromkeys(live),
        e.score,
        replay,
        left_out=left_out,
        notes=notes,
        no_test=e.no_test,
        unit=e.unit,
        measure=e.measure,
        is_main=e.ranks is None or e.ranks.is_main,
        suffix=(f"-{e.label}" if e.label else "") + (f"-bn-{e.bn}" if args.bn else ""),
        last=max(source.paths),
        published=[row for row in e.published if row["step"] in live],
    )
    if revisions:
        subject.revisions = (
            source,
            {"averages": [s.id for s in replayed], "live": live, **source.identity, **e.identity},
        )
    return subject


def of_averagers(args: argparse.Namespace, revisions: bool) -> argparse.Namespace:
    """The flags of the averagers: with revisions --every may only say which are evaluated."""
    uses = {name for kind in args.avg.split(",") if kind in AVERAGERS for name in setting_names(AVERAGERS[kind])}
    if not revisions or args.every is None or "every" in uses:
        return args
    return argparse.Namespace(**{**vars(args), "every": None})


def evaluated_at(args: argparse.Namespace, asked: list[AveragerSettings], steps: list[int]) -> list[int]:
    """The multiples of --every; without it the steps at which an average is new. The last one in any case."""
    if args.every is not None and (not args.every.isdigit() or not int(args.every)):
        raise UserError(f"--every={args.every}: expected a number of steps")
    periods = [int(args.every)] if args.every else [s.period for s in asked]
    return sorted({s for s in steps if any(s % period == 0 for period in periods)} | {steps[-1]})


def too_few(settings: AveragerSettings, last: int) -> str | None:
    """Why an average is not defined by the last step, if so."""
    observed = len(settings.needed(last))
    if observed >= settings.observations:
        return None
    return f"it needs {settings.observations} snapshots, and there are {observed} for it up to step {last:,}"


def defined(settings: AveragerSettings, step: int) -> bool:
    return len(settings.needed(step)) >= settings.observations


def missing(settings: AveragerSettings, paths: dict[int, Path], last: int) -> str | None:
    """Why the checkpoints do not give an average, if so."""
    lacking = [s for s in settings.needed(last) if s not in paths]
    return (
        f"no checkpoint of step {lacking[0]:,} ({len(lacking):,} of {len(settings.needed(last)):,} missing)"
        if lacking
        else None
    )


def gaps(settings: AveragerSettings, paths: dict[int, Path], live: Sequence[int]) -> str:
    """Where an average is not there for want of checkpoints in between; empty where it is wherever it can be."""
    lacking = {s: found for s in live if defined(settings, s) and (found := missing_steps(settings, paths, s))}
    if not lacking:
        return ""
    steps, without = (few(sorted(some)) for some in (lacking, set().union(*lacking.values())))
    return f"{settings.id} is not there at step {steps}: no checkpoint of step {without}."


def few(steps: list[int]) -> str:
    """`10, 20, 30 and 4 more`."""
    more = f" and {len(steps) - SHOWN:,} more" if len(steps) > SHOWN else ""
    return ", ".join(f"{s:,}" for s in steps[:SHOWN]) + more


def instead(settings: AveragerSettings, saved: dict[int, Path], last: int) -> str:
    """`, or ask for --spacing 20`: the next longer one of the same average that can be had; empty without."""
    found = next_longer(settings, saved, last)
    return f", or ask for --{found[0]} {found[1]}, which can be had" if found else ""


def data_note(data: Any) -> list[str]:
    return [f"Data: {data.note}."] if data.note else []


def period_note(args: argparse.Namespace, replayed: Sequence[AveragerSettings], period: int) -> list[str]:
    """That averages which a training updates at every step are not that here."""
    kinds = dict.fromkeys(s.kind for s in replayed if not s.windowed and s.period == period > 1)
    if args.every or not kinds:
        return []
    return [
        f"{', '.join(kinds)}: observing the weights every {period:,} steps, where snapshots are; one attached to a "
        "training can observe every step, and is another average. --every sets it."
    ]
