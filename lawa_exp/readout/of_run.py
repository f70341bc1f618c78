"""A run of ours, and averages of it: from its snapshots, or as the training kept them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lawa_exp.averaging import AveragerSettings, PowerEmaSettings
from lawa_exp.averaging.flags import start_note
from lawa_exp.averaging.needs import problem_with
from lawa_exp.axes.configuration import Config
from lawa_exp.config.rules import setting_names
from lawa_exp.config.shared import Init, Options
from lawa_exp.evaluation.batchnorm import has_statistics_of
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.evaluation.read_out import Live, comparable, is_scored, live_rows
from lawa_exp.evaluation.replay import Replay, Snapshots, read_snapshot
from lawa_exp.evaluation.score import OnModel
from lawa_exp.evaluation.views import views_named
from lawa_exp.parallel.sharing import batches_of
from lawa_exp.readout.attached import Attached, Rebuilt, tracked_widths
from lawa_exp.readout.availability import instead, period_note, too_few
from lawa_exp.readout.averagers import combinations
from lawa_exp.readout.request import Request, Target
from lawa_exp.readout.subject import Named, Subject, Training
from lawa_exp.runs.builders import admit
from lawa_exp.runs.choices import config_from, unresolved_from
from lawa_exp.runs.folder import check_content
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.origin import snapshots_of
from lawa_exp.storage.rows import averager_ids, read_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks, start_device
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_links

RESERVED = ("test", "before-rerun")  # folders of readouts/ that the training writes


def our_run(request: Request) -> Subject:
    """A run directory, and the requested averages."""
    target = request.target
    run = RunDir(Path(target.run))
    written = run.read_config()
    if written is None:
        raise UserError(
            f"RUN={target.run}: no run there (config.yaml is missing); a folder of checkpoints needs --data, "
            "--model and --dataset, or --evaluate"
        )
    config = config_from(written)
    if request.name in RESERVED:
        raise UserError(f"--name={request.name} is the training's own; choose another")
    every, start = (request.averages.settings.get(name) for name in ("every", "start"))
    widths = tracked_widths(run, config.averagers, int(every) if every and every.isdigit() else None)
    period = config.trajectory.every
    tracked = widths[0].period if widths else None
    entries = combinations(request.averages, period, tracked, written["averagers"])
    subject = averages_of(target, run, written, entries, widths)
    replayed = [average.averager.settings for average in subject.replay.averages]
    notes = [*period_note(every, replayed, period), *start_note(start, {settings.kind for settings in replayed})]
    return replace(subject, notes=[*subject.notes, *notes])


def averages_of(
    target: Target,
    run: RunDir,
    written: dict[str, Any],
    entries: list[dict[str, Any]],
    widths: Sequence[PowerEmaSettings] = (),
    batches: int = 1,
    states: Mapping[int, Path] | None = None,
) -> Subject:
    """A run, and the averages that are `entries` of a configuration's `averagers`. written: its config.yaml.

    widths: the tracked power_emas that others are rebuilt from. batches: into how many, at least, val's samples are
    cut, where there are as many samples: the noise is measured on them. states: complete states by step, whose live
    weights are taken where there is no snapshot.
    """
    check_links(run.path, "RUN")
    config = config_from(written)
    p, device, ranks = prepared(target, run, written, config, entries)
    rows = read_rows(run.metrics, trained=False)
    evaluated = live_rows(rows)
    if not evaluated:
        raise UserError(f"RUN={target.run}: its live weights were not evaluated yet")
    saved, task = snapshots_of(run), p.data.task
    snapshots = Snapshots({**(states or {}), **saved}, read_snapshot)
    samples = len(fixed_set(p.data.sizes["val"], p.config.evaluate.samples))
    batch_size = min(p.config.evaluate.batch_size, max(1, samples // batches))
    score = OnModel(replace(p.config, averagers=()), p.data, device, ranks, batch_size)
    if target.bn and score.bn is None:
        raise UserError(f"--bn={target.bn}: model={config.model.name} has no BatchNorm")
    live, bn_notes = comparable(evaluated, score.bn, snapshots.paths, task.metrics)
    last = max(live)
    averages = Sources(run, averager_ids(rows), saved, evaluated, last, score, widths)
    for settings in p.config.averagers:
        averages.add(settings)
    again = [last, *(step for step, row in live.items() if target.views or not is_scored(row))]
    title = f"{config.model.name} on {config.dataset.name}, run {run.path.resolve().name}"
    at_first = [r for r in rows if r["split"] == "val" and r["step"] == 0 and has_statistics_of(r, score.bn)]
    of_averages = [r for r in rows if r["split"] == "val" and r["weights"] != "live"]
    return Subject(
        named=Named(title, task.metrics["loss"].unit),
        root=run.readouts,
        replay=Replay(averages.replayed, score.averaged, snapshots, device, again, score.statistics, score.bn),
        score=score,
        live=live,
        training=Training(last, last * p.data.sizes["train"] / batches_of(p.config, p.data).samples(last)),
        kept=averages.kept,
        rows=[*at_first, *(row for row in live.values() if row and is_scored(row)), *of_averages],
        left_out=averages.left_out,
        notes=[*([f"Data: {p.data.note}."] if p.data.note else []), *bn_notes, *averages.notes],
        suffix=f"-bn-{score.bn}" if score.bn and score.bn != config.evaluate.bn else "",
        is_main=ranks.is_main,
        views=views_named(target.views),
        task=task,
    )


def prepared(
    target: Target, run: RunDir, written: dict[str, Any], config: Config, entries: list[dict[str, Any]]
) -> tuple[Prepared, torch.device, Ranks]:
    """The run with `entries` in place of its averagers. UserError: its data set is not what it was trained on."""
    options = Options(run_dir=target.run, runs_root=".", plan=False, rerun=False)
    if lacking := [name for name in target.moved if name not in written["dataset"]]:
        raise UserError(f"dataset.{lacking[0]}={target.moved[lacking[0]]}: dataset={config.dataset.name} has none")
    changed = {
        "averagers": entries,
        "dataset": {**written["dataset"], **target.moved},
        "trajectory": {**written["trajectory"], "window": "memory"},  # a read-out has a window of its own
        "evaluate": {**written["evaluate"], "bn": target.bn or config.evaluate.bn},
        "trainer": {**written["trainer"], **({"threads": target.threads} if target.threads else {})},
        "init": dict.fromkeys(setting_names(Init)),  # what it came from may be gone
    }
    unresolved = unresolved_from({**written, **changed})
    admit(unresolved, written, run.path, target.trust)
    device, ranks = start_device(target.device or config.trainer.device)
    p = prepare(unresolved, options, device, ranks)
    if p.data.fingerprint != written["identity"]["dataset"]["fingerprint"]:
        raise UserError(f"dataset={config.dataset.name}: its content is not what {target.run} was trained on")
    check_content(run, p, ranks)
    return p, device, ranks


class Sources:
    """The averages of a run by where they come from: the snapshots (`replayed`), the training (`kept`) or nowhere."""

    def __init__(
        self,
        run: RunDir,
        attached: Container[str],
        saved: Mapping[int, Path],
        evaluated: Live,
        last: int,
        score: OnModel,
        widths: Sequence[PowerEmaSettings],
    ) -> None:
        """attached: ids of the averagers that the training had. evaluated: its own rows of the live weights."""
        self.run, self.attached, self.saved, self.last = run, attached, saved, last
        self.score, self.widths = score, widths
        self.bn_at = {step: row.get("bn") for step, row in evaluated.items() if row}  # also of the files of averages
        fits_any = score.bn in (None, "recalibrate")
        self.fitting = None if fits_any else {step for step, bn in self.bn_at.items() if bn == score.bn}
        self.replayed: list[AveragerSettings] = []
        self.kept: list[Attached | Rebuilt] = []
        self.left_out: list[str] = []
        self.notes: list[str] = []

    def add(self, settings: AveragerSettings) -> None:
        """The average of these settings, in one of the lists, with what is to be said of it."""
        run, last, bn = self.run, self.last, self.score.bn
        problem = too_few(settings, last) or problem_with(settings, self.saved, last)
        if not problem:
            self.replayed.append(settings)
        elif self.fitting is not None and last not in self.fitting:
            kept_bn = f"evaluate.bn={self.bn_at[last]}"
            self.left_out.append(
                f"{settings.id}: {problem}; kept averages have the statistics of {kept_bn}: --bn recalibrate"
            )
        elif settings.id in self.attached and last in steps_in(run.averages / settings.id):
            self.kept.append(Attached(settings, run, bn, self.fitting))
            self.notes.append(f"{settings.id} is the one that was attached while the run trained.")
        elif isinstance(settings, PowerEmaSettings) and self.widths and settings.every == self.widths[0].every:
            self.rebuild(settings)
        else:
            self.left_out.append(f"{settings.id}: {problem}{instead(settings, self.saved, last)}")

    def rebuild(self, settings: PowerEmaSettings) -> None:
        """A width that was not tracked, from those that were."""
        if self.score.bn == "average":
            self.left_out.append(f"{settings.id}: --bn=average: expected recalibrate, for what is rebuilt from others")
            return
        widths = self.widths
        rebuilt = Rebuilt(settings.sigma_rel, widths, self.run, self.score.averaged, self.score.bn, self.fitting)
        self.kept.append(rebuilt)
        self.notes.append(
            f"{rebuilt.id} was not tracked: it is rebuilt from {' and '.join(s.id for s in widths)}, and at step "
            f"{self.last:,} its profile is {rebuilt.error(self.last):.2%} off (L2 norm)."
        )
