"""Everything that the data and the machine decide, resolved once: steps, precision, threads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lawa_exp.axes.configuration import Config, Unresolved
from lawa_exp.config.parts import NoAmounts, Part
from lawa_exp.config.rules import LARGEST, Amount
from lawa_exp.config.shared import Trainer, Trajectory
from lawa_exp.seams.batches import Batches
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import default_threads, default_workers


@dataclass(frozen=True)
class Amounts:
    """Amounts as numbers of steps, of batches that may grow.

    in_samples: of an epoch, a sample, a token. A percentage is a share of the horizon, counted in `unit`: of its steps,
    or of the samples or tokens that are seen by then.
    """

    batches: Batches
    in_samples: Mapping[str, float]
    horizon: int
    unit: str = "steps"

    def steps(self, amount: Amount) -> int:
        return self.share(amount) if self.is_share(amount) else self.batches.steps(self.samples(amount))

    def last_steps(self, amount: Amount) -> int:
        at_end = self.batches.steps_at_end
        return self.share(amount) if self.is_share(amount) else at_end(self.horizon, self.samples(amount))

    def is_share(self, amount: Amount) -> bool:
        """Whether it is a share of the horizon's steps."""
        return amount.unit == "%" and self.unit == "steps"

    def share(self, amount: Amount) -> int:
        return math.ceil(round(amount.number / 100 * self.horizon, 6))

    def samples(self, amount: Amount) -> float:
        if amount.unit != "%":
            return amount.number * self.in_samples[amount.unit]
        return round(amount.number / 100 * self.batches.seen(self.unit, self.horizon), 6) * self.in_samples[self.unit]


def resolve(unresolved: Unresolved, data: DatasetFacts, trainer: Trainer) -> Config:
    """The configuration, with every budget, `1epoch`, `75%` and default in plain numbers.

    data: the open data set. trainer: see `resolve_trainer`. Raises UserError for what contradicts the data.
    """
    model = unresolved.model.fitted(data, unresolved.dataset.name)
    batches: Batches = unresolved.batch.batches(data.tokens_per_sample, data.sizes["train"])
    in_samples = {"epochs": data.sizes["train"], "samples": 1, "tokens": 1 / data.tokens_per_sample}
    unit, budget = unresolved.budget
    if unit != "steps" and budget * in_samples[unit] > LARGEST:
        raise UserError(f"{unit}={budget:g}: expected at most {LARGEST:.0e} samples in all")
    steps = int(budget) if unit == "steps" else batches.steps(budget * in_samples[unit])
    lr = unresolved.lr.filled(horizon=steps)
    horizon = lr.value("horizon", Amounts(batches, in_samples, steps))
    lr = lr.changed(horizon=horizon)
    scaling = unresolved.scaling.resolved(Amounts(batches, in_samples, horizon))
    if scaling.warmup == "samples":
        if isinstance(lr.values["warmup_steps"], int):  # an amount is right at any batch size
            at_base = scaling.base_samples(data.tokens_per_sample)
            lr = lr.changed(warmup_steps=batches.steps(lr.values["warmup_steps"] * at_base))
        scaling = replace(scaling, warmup="steps")  # so that it is resolved once
    schedule = lr.resolved(Amounts(batches, in_samples, horizon, lr.values["unit"]))
    schedule.fits()
    if batches.starts[-1] >= steps:
        raise UserError(
            f"batch: its size becomes {batches.sizes[-1]} only at step {batches.starts[-1] + 1:,}, "
            f"beyond the budget of {steps:,} steps"
        )
    amounts = Amounts(batches, in_samples, horizon)
    averagers = {a.id: a for a in (part.resolved(amounts) for part in unresolved.averagers)}
    feedback = unresolved.feedback.resolved(amounts)
    evaluate = unresolved.evaluate.resolved(amounts)
    spacings = [a.period for a in averagers.values() if a.windowed]
    return Config(
        model=model,
        dataset=unresolved.dataset,
        optimizer=unresolved.optimizer.resolved(amounts),
        lr=schedule,
        batch=unresolved.batch,
        scaling=scaling,
        sampling=unresolved.sampling.resolved(amounts),
        objective=unresolved.objective.resolved(amounts),
        layers=tuple((name, part.resolved(amounts)) for name, part in unresolved.layers),
        update=tuple((name, part.resolved(amounts)) for name, part in unresolved.update),
        watch=tuple((name, part.resolved(amounts)) for name, part in unresolved.watch),
        init=unresolved.init,
        teacher=unresolved.teacher,
        averagers=tuple(averagers.values()),
        feedback=feedback,
        fault=unresolved.fault.resolved(amounts),
        trainer=trainer,
        logger=unresolved.logger.resolved(amounts),
        loggers=tuple((name, part.resolved(amounts)) for name, part in unresolved.loggers),
        evaluate=evaluate,
        save=unresolved.save.filled(every=evaluate.every).resolved(amounts),
        trajectory=resolve_trajectory(unresolved.trajectory, amounts, spacings, evaluate.every),
        steps=steps,
        seed=unresolved.seed,
        recipe=unresolved.recipe,
    )


def resolve_trajectory(
    part: Part[Trajectory], amounts: Amounts, spacings: Sequence[int], evaluate_every: int
) -> Trajectory:
    """spacings: of the attached windows. UserError where a window on the disk would miss snapshots."""
    trajectory = part.filled(every=math.gcd(*spacings) if spacings else evaluate_every).resolved(amounts)
    if trajectory.window == "disk":
        if trajectory.keep != "all":
            raise UserError(f"trajectory.window=disk: expected trajectory.keep=all, not {trajectory.keep}")
        for spacing in spacings:
            if spacing % trajectory.every:
                raise UserError(
                    f"trajectory.window=disk: trajectory.every={trajectory.every} does not divide the spacing {spacing}"
                )
    return trajectory


def resolve_trainer(part: Part[Trainer], device_type: str, local_world: int) -> Trainer:
    """Device, dtype `auto`, threads and workers, as they are at hand: bfloat16 on a GPU, float32 on a CPU."""
    trainer = part.filled(
        threads=default_threads(local_world), workers=default_workers(local_world) if device_type == "cuda" else 0
    ).resolved(NoAmounts())
    dtype = {"cuda": "bfloat16"}.get(device_type, "float32") if trainer.dtype == "auto" else trainer.dtype
    return replace(trainer, device=device_type, dtype=dtype)
