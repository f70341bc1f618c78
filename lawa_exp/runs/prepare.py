"""From a configuration to a training that is ready to start."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lawa_exp.averaging import AVERAGERS
from lawa_exp.axes.configuration import Config, Unresolved
from lawa_exp.axes.dataset.places import DataMissing
from lawa_exp.axes.dataset.stated import Stated, stated
from lawa_exp.axes.feedback.none import NoFeedback
from lawa_exp.axes.lr.wsd import WSD
from lawa_exp.axes.model.outline import has_norms, outline
from lawa_exp.config.rules import setting_names
from lawa_exp.config.shared import Options
from lawa_exp.parallel import sharing
from lawa_exp.parallel.sharing import batches_of, micro_batches, splits_statistics
from lawa_exp.runs.choices import config_from
from lawa_exp.runs.identity import identity_of, run_folder, trajectory_id
from lawa_exp.runs.resolve import resolve, resolve_trainer
from lawa_exp.seams.batches import Split
from lawa_exp.seams.dataset import Dataset, DatasetFacts, DatasetSettings
from lawa_exp.storage import custom
from lawa_exp.storage.metrics import check_metrics
from lawa_exp.storage.origin import Origin, find_origin
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.teacher import find_teacher
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError
from lawa_exp.system.fingerprint import Code, fingerprint


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to start: everything resolved."""

    config: Config
    facts: Dataset | Stated  # what a plan needs of the data set: of the open one, or its published sizes
    splits: dict[int, Split]
    identity: dict[str, Any]
    run_dir: Path
    origin: Origin | None = None
    code: Code | None = None  # of a custom model

    @property
    def data(self) -> Dataset:
        """The open data set; a plan by published sizes has none."""
        assert not isinstance(self.facts, Stated), self.facts.note
        return self.facts

    @property
    def trajectory(self) -> str:
        return trajectory_id(self.identity)


@functools.lru_cache(maxsize=4)
def open_dataset(settings: DatasetSettings, context: int) -> Dataset:
    return settings.open(context)


def data_for(unresolved: Unresolved, plan: bool) -> Dataset | Stated:
    """The open data set. plan: its published sizes, where it is in none of the usual places and no path was given."""
    dataset, context = unresolved.dataset, unresolved.model.context
    try:
        return open_dataset(dataset, context)
    except DataMissing:
        published = stated(dataset, context) if plan and dataset.path is None else None
        if published is None:
            raise
        return published


def prepare(
    unresolved: Unresolved,
    options: Options,
    device: torch.device,
    ranks: Ranks,
    stable: Prepared | None = None,
    data: Dataset | Stated | None = None,
) -> Prepared:
    """Resolves everything that the data and the machine decide. stable: the run of which this is a cool-down.

    data: in place of what `data_for` gives.
    """
    data = data or data_for(unresolved, options.plan)
    config = resolve(unresolved, data, resolve_trainer(unresolved.trainer, device.type, ranks.local_world))
    if not isinstance(data, Stated):
        data = data.with_workers(config.trainer.workers)
        check_metrics(data.task.metrics, {name for kind in AVERAGERS.values() for name in setting_names(kind)})
    splits = sharing.splits(config, data, ranks.world)
    code = None
    if config.model.builder:
        code = fingerprint(config.model.builder, "model.builder")
        custom.use(code)
    if config.layers or config.batch.layers():
        outline(config)  # refuses layers that the model does not have
    check_teacher(config, options.plan)
    origin = branch_point(config, stable) if stable else find_origin(config.init)
    if origin:
        how = "keep" if origin.keep else "reset"
        init = replace(config.init, from_=str(origin.source), step=origin.step or None, optimizer=how)
        config = replace(config, init=init)
        check_origin(origin, config, data, stable)
    identity = identity_of(config, data, origin, {"model": code} if code else None)
    if splits_statistics(config, splits) and has_norms(config):
        identity["batch"]["norm_samples"] = micro_batches(splits)  # who has fewer ranks trains other weights
    folder = run_folder(Path(options.runs_root), config, trajectory_id(identity))
    run_dir = Path(options.run_dir) if options.run_dir else folder
    return Prepared(config, data, splits, identity, run_dir, origin, code)


def check_teacher(config: Config, plan: bool) -> None:
    """UserError where the objective and the teacher do not go together, or it is not there; a plan needs none yet."""
    teacher = find_teacher(config.teacher)
    if teacher and not config.objective.takes_teacher:
        raise UserError(f"teacher.from={teacher.source}: the objective takes no teacher; choose another")
    if config.objective.takes_teacher and not teacher:
        raise UserError("teacher.from is missing: the objective learns from a teacher")
    if teacher and not plan:
        teacher.files()


def branch_point(config: Config, stable: Prepared) -> Origin:
    """Where the (resolved) cool-down leaves the stable run."""
    assert isinstance(config.lr, WSD)
    step = config.init.step or config.lr.stable_steps
    source = stable.run_dir.resolve()  # so that the branch can be read out from another folder
    return Origin(source, step, True, {"trajectory": stable.trajectory, "step": step, "optimizer": "keep"})


def check_origin(origin: Origin, config: Config, data: DatasetFacts, stable: Prepared | None) -> None:
    """UserError where the (resolved) configuration cannot go on from it."""
    if not origin.keep:
        return
    if origin.step >= config.steps:
        raise UserError(f"init.step={origin.step}: the budget of {config.steps:,} steps is over by then")
    there = stable.config if stable else config_from(RunDir(origin.source).read_config() or {})
    seen, seen_there = (batches_of(c, data).samples(origin.step) for c in (config, there))
    check_continues(origin, config, seen, there, seen_there)


def check_continues(origin: Origin, config: Config, samples: int, there: Config, there_samples: int) -> None:
    """UserError where a kept state cannot be gone on from with these settings.

    samples, there_samples: seen after the state's step, by this training's batches and by its source's.
    """
    if config.optimizer != there.optimizer:
        raise UserError(
            "init.optimizer=keep: the optimizer is that of the source, whose settings differ "
            f"(the source has {there.optimizer}, this command {config.optimizer}); choose reset, or the same"
        )
    kinds = {type(feedback) for feedback in (config.feedback, there.feedback)} - {NoFeedback}
    if len(kinds) > 1:
        raise UserError(
            "init.optimizer=keep: the feedback has a state of the source's, which is of another kind "
            f"(the source has {there.feedback}, this command {config.feedback}); choose reset, none or the same"
        )
    at = config.fault.at
    if at is not None and at < origin.step and config.fault != there.fault:
        raise UserError(
            f"fault.at={at}: the steps up to init.step={origin.step} are the source's, which has another fault "
            f"({there.fault}); choose fault.at={origin.step} or later, none or the same"
        )
    if samples != there_samples:
        raise UserError(
            f"init.optimizer=keep: after step {origin.step:,} this batch schedule has seen {samples:,} samples, "
            f"the source's {there_samples:,}; choose reset, or batches that are the same up to there"
        )
