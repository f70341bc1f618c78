"""From a configuration to a training that is ready to start."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lawa_exp.averaging import AVERAGERS
from lawa_exp.averaging.settings import AveragerSettings
from lawa_exp.axes.choice import Choice, Planned
from lawa_exp.axes.configuration import Config, Unresolved
from lawa_exp.axes.dataset.places import DataMissing
from lawa_exp.axes.dataset.stated import stated
from lawa_exp.axes.model.outline import has_norms, outline
from lawa_exp.config.parts import Part
from lawa_exp.config.rules import setting_names
from lawa_exp.config.shared import Options
from lawa_exp.convert.recorded import check_record
from lawa_exp.parallel import sharing
from lawa_exp.parallel.sharing import batches_of, micro_batches, splits_statistics
from lawa_exp.runs.builders import builders
from lawa_exp.runs.choices import config_from
from lawa_exp.runs.identity import DETERMINING, LISTED, identity_of, run_folder, trajectory_id
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
from lawa_exp.system.fingerprint import Code, digest_of, merged


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to start: everything resolved.

    facts: what a plan needs of the data set. opened: the data set; None where a plan has only its published sizes.
    """

    config: Config
    facts: DatasetFacts
    opened: Dataset | None
    splits: dict[int, Split]
    identity: dict[str, Any]
    run_dir: Path
    origin: Origin | None = None
    code: Code | None = None  # of all choices from outside together

    @property
    def data(self) -> Dataset:
        """The open data set; a plan by published sizes has none."""
        assert self.opened is not None, self.facts.note
        return self.opened

    @property
    def trajectory(self) -> str:
        return trajectory_id(self.identity)

    def planned(self, world: int) -> Planned:
        """The training as its choices see it. world: ranks."""
        config, first = self.config, self.origin.first_step if self.origin else 0
        batches, how = batches_of(config, self.facts), sharing.sharing(config, world)
        return Planned(config, self.facts, batches, self.splits, world, how, first)

    def check(self, world: int) -> None:
        """UserError where one of its choices cannot be trained so, on `world` ranks. Reading of it asks none."""
        planned = self.planned(world)
        for choice in self.config.choices.values():
            choice.check(planned)


@functools.lru_cache(maxsize=4)
def open_dataset(settings: DatasetSettings, context: int, code: str | None = None) -> Dataset:
    """code: a hash of the sources of a data set from outside."""
    return settings.open(context)


def data_for(unresolved: Unresolved, plan: bool) -> tuple[DatasetFacts, Dataset | None]:
    """What a plan needs of the data set, and the open data set.

    plan: its published sizes alone, where it is in none of the usual places and no path was given.
    """
    dataset, context = unresolved.dataset, unresolved.model.context
    try:
        opened = open_dataset(dataset, context, custom.digest(dataset.builder) if dataset.builder else None)
        return opened, opened
    except DataMissing:
        published = stated(dataset, context) if plan and dataset.path is None else None
        if published is None:
            raise
        return published, None


def prepare(
    unresolved: Unresolved,
    options: Options,
    device: torch.device,
    ranks: Ranks,
    stable: Prepared | None = None,
    facts: DatasetFacts | None = None,
) -> Prepared:
    """Resolves everything that the data and the machine decide. stable: the run of which this is a cool-down.

    facts: of the data set, for a plan that does not open it.
    """
    codes = custom.read(builders(unresolved))
    unresolved = replace(unresolved, averagers=with_digests(unresolved.averagers, codes))
    facts, opened = (facts, None) if facts else data_for(unresolved, options.plan)
    config = resolve(unresolved, facts, resolve_trainer(unresolved.trainer, device.type, ranks.local_world))
    if opened:
        facts = opened = opened.with_workers(config.trainer.workers)
        usual = opened.task
        if (task := config.objective.task_of(usual)) is not usual:
            facts = opened = opened.with_task(task)
        check_metrics(opened.task.metrics, {name for kind in AVERAGERS.values() for name in setting_names(kind)})
    splits = sharing.splits(config, facts, ranks.world)
    if config.layers or config.batch.layers():
        outline(config)  # refuses layers that the model does not have
    check_teacher(config, options.plan)
    origin = branch_point(config, stable) if stable else find_origin(config.init)
    if origin:
        how = "keep" if origin.keep else "reset"
        init = replace(config.init, from_=str(origin.source), step=origin.step or None, optimizer=how)
        config = replace(config, init=init)
        check_origin(origin, config, facts, stable)
    identity = identity_of(config, facts, origin, codes)
    if splits_statistics(config, splits) and has_norms(config):
        identity["batch"]["norm_samples"] = micro_batches(splits)  # who has fewer ranks trains other weights
    folder = run_folder(Path(options.runs_root), config, trajectory_id(identity))
    run_dir = Path(options.run_dir) if options.run_dir else folder
    return Prepared(config, facts, opened, splits, identity, run_dir, origin, merged(codes.values()) if codes else None)


def with_digests(
    averagers: tuple[Part[AveragerSettings], ...], codes: Mapping[str, Code]
) -> tuple[Part[AveragerSettings], ...]:
    """Those from outside with a hash of their sources, which is in their ids."""
    digests = [
        digest_of(codes[place].sources) if (place := f"averagers.{i}") in codes else None for i in range(len(averagers))
    ]
    return tuple(part.filled(code=digest) if digest else part for part, digest in zip(averagers, digests, strict=True))


def check_teacher(config: Config, plan: bool) -> None:
    """UserError where the objective and the teacher do not go together, or it is not there; a plan needs none yet."""
    teacher = find_teacher(config.teacher)
    if teacher and not config.objective.takes_teacher:
        raise UserError(f"teacher.from={teacher.source}: the objective takes no teacher; choose another")
    if config.objective.takes_teacher and not teacher:
        raise UserError("teacher.from is missing: the objective learns from a teacher")
    if teacher and not plan:
        teacher.weights()


def branch_point(config: Config, stable: Prepared) -> Origin:
    """Where the (resolved) cool-down leaves the stable run."""
    step = config.init.step or config.lr.stable_steps
    source = stable.run_dir.resolve()  # so that the branch can be read out from another folder
    return Origin(source, step, True, {"trajectory": stable.trajectory, "step": step, "optimizer": "keep"})


def check_origin(origin: Origin, config: Config, data: DatasetFacts, stable: Prepared | None) -> None:
    """UserError where the (resolved) configuration cannot go on from it."""
    if not origin.keep:
        return check_record(origin.source, config.model, "init.from")
    if origin.step >= config.steps:
        raise UserError(f"init.step={origin.step}: the budget of {config.steps:,} steps is over by then")
    there = stable.config if stable else config_from(RunDir(origin.source).read_config() or {})
    seen, seen_there = (batches_of(c, data).samples(origin.step) for c in (config, there))
    check_continues(origin, config, seen, there, seen_there)


def check_continues(origin: Origin, config: Config, samples: int, there: Config, there_samples: int) -> None:
    """UserError where a kept state cannot be gone on from with these settings.

    samples, there_samples: seen after the state's step, by this training's batches and by its source's.
    """
    before: dict[str, Choice] = {group: getattr(there, group) for group in DETERMINING}
    for group, choice in before.items():
        getattr(config, group).check_continues(choice, origin.step)
    for group in LISTED:
        own, theirs = ([settings for _, settings in getattr(c, group)] for c in (config, there))
        if own != theirs:
            raise UserError(f"init.optimizer=keep: {group} is {theirs} in the source, {own} here; choose reset")
    if samples != there_samples:
        raise UserError(
            f"init.optimizer=keep: after step {origin.step:,} this batch schedule has seen {samples:,} samples, "
            f"the source's {there_samples:,}; choose reset, or batches that are the same up to there"
        )
