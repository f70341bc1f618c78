"""Everything that the data and the machine decide, resolved once: steps, precision, threads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lawa_exp.averaging import AveragerSettings
from lawa_exp.axes.feedback import FEEDBACK
from lawa_exp.axes.feedback.none import NoFeedback
from lawa_exp.axes.lr.decaying import Decaying
from lawa_exp.axes.lr.rates import check
from lawa_exp.axes.optimizer.schedule_free import ScheduleFree
from lawa_exp.config.rules import resolve_steps, setting_names
from lawa_exp.config.shared import Config
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import default_threads, default_workers
from lawa_exp.training.sharing import batches_of


def resolve(config: Config, data: Any) -> Config:
    """The configuration with every budget, `1epoch`, `75%`, device default and averager in plain numbers.

    data: the open data set. Raises UserError for what contradicts it.
    """
    config = replace(config, model=config.model.fitted(data, config.dataset.name))
    if isinstance(config.optimizer, ScheduleFree) and not isinstance(config.feedback, NoFeedback):
        raise UserError(
            f"feedback={FEEDBACK.kind_of(config.feedback)}: expected none with optimizer=schedule_free, which keeps "
            "an average of its own that would not follow"
        )
    batches = batches_of(config, data)
    in_samples = {"epochs": data.sizes["train"], "samples": 1, "tokens": 1 / data.tokens_per_sample}

    def steps_for(amount: float, unit: str) -> int:
        return int(amount) if unit == "steps" else batches.steps(amount * in_samples[unit])

    unit, amount = config.budget
    total = steps_for(amount, unit)
    horizon = resolve_steps(config.lr.horizon or total, steps_for, total, "lr.horizon", 1)

    def at_end(amount: float, unit: str) -> int:
        return batches.steps_at_end(horizon, amount * in_samples[unit])

    def fixed(value: Any, key: str, low: int = 0, steps_for: Any = steps_for) -> Any:
        if isinstance(value, tuple):
            return tuple(fixed(v, key, low) for v in value)
        return None if value is None else resolve_steps(value, steps_for, horizon, key, low)

    def of_horizon(value: Any) -> Any:
        """A percentage is one of the horizon in `lr.unit`: of its samples, where the schedule counts these."""
        unit = getattr(config.lr, "unit", "steps")
        if not (isinstance(value, str) and value.endswith("%")) or unit == "steps":
            return tuple(map(of_horizon, value)) if isinstance(value, tuple) else value
        return f"{float(value[:-1]) / 100 * batches.seen(unit, horizon):.6f}{unit}"

    names = ("warmup_steps", *config.lr.lengths)
    lengths = {name: fixed(of_horizon(getattr(config.lr, name)), f"lr.{name}") for name in names}
    if isinstance(config.lr, Decaying):
        lengths["decay_steps"] = fixed(of_horizon(config.lr.decay_steps), "lr.decay_steps", steps_for=at_end)
    if config.scaling.warmup == "samples":
        if isinstance(config.lr.warmup_steps, int):  # what was given in epochs, or of the horizon, is right already
            at_base = config.scaling.base_samples(data.tokens_per_sample)
            lengths["warmup_steps"] = batches.steps(config.lr.warmup_steps * at_base)
        config = replace(config, scaling=replace(config.scaling, warmup="steps"))  # so that it is resolved once
    lr = replace(config.lr, horizon=horizon, **lengths)
    check(lr)
    if batches.starts[-1] >= total:
        raise UserError(
            f"batch: its size becomes {batches.sizes[-1]} only at step {batches.starts[-1] + 1:,}, "
            f"beyond the budget of {total:,} steps"
        )

    def in_steps_of(settings: Any, where: str) -> Any:
        changes = {
            name: fixed(getattr(settings, name), f"{where}.{name}", 0 if name in ("start", "at") else 1)
            for name in ("spacing", "every", "start", "at", "length")
            if name in setting_names(type(settings))
        }
        return replace(settings, **changes)

    averagers: dict[str, AveragerSettings] = {}
    for settings in config.averagers:
        settings = in_steps_of(settings, f"averagers.{settings.kind}")
        averagers[settings.id] = settings
    evaluate_every = fixed(config.evaluate.every, "evaluate.every", 1)
    spacings = [a.period for a in averagers.values() if a.windowed]
    snapshot_every = fixed(config.trajectory.every, "trajectory.every", 1)
    if snapshot_every is None:
        snapshot_every = math.gcd(*spacings) if spacings else evaluate_every
    if config.trajectory.window == "disk":
        if config.trajectory.keep != "all":
            raise UserError(f"trajectory.window=disk: expected trajectory.keep=all, not {config.trajectory.keep}")
        for spacing in spacings:
            if spacing % snapshot_every:
                raise UserError(
                    f"trajectory.window=disk: trajectory.every={snapshot_every} does not divide the spacing {spacing}"
                )
    return replace(
        config,
        lr=lr,
        averagers=tuple(averagers.values()),
        feedback=in_steps_of(config.feedback, "feedback"),
        fault=in_steps_of(config.fault, "fault"),
        evaluate=replace(config.evaluate, every=evaluate_every),
        save=replace(
            config.save,
            every=fixed(config.save.every, "save.every", 1) or evaluate_every,
            keep=tuple(fixed(s, "save.keep", 1) for s in config.save.keep),
        ),
        trajectory=replace(config.trajectory, every=snapshot_every),
        budget=("steps", total),
    )


def resolve_trainer(config: Config, device_type: str, local_world: int) -> Config:
    """Device, dtype `auto`, threads and workers, as they are at hand: bfloat16 on a GPU, float32 on a CPU."""
    trainer = config.trainer
    dtype = {"cuda": "bfloat16"}.get(device_type, "float32") if trainer.dtype == "auto" else trainer.dtype
    threads = trainer.threads or default_threads(local_world)
    workers = trainer.workers
    if workers is None:
        workers = default_workers(local_world) if device_type == "cuda" else 0
    return replace(config, trainer=replace(trainer, device=device_type, dtype=dtype, threads=threads, workers=workers))
