"""From a resolved configuration to everything that a training works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lawa_exp.averaging.swap import Swap
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.axes.layers.statistics import TrainingStatistics
from lawa_exp.axes.lr.rates import Rates
from lawa_exp.convert.teacher import teacher_of
from lawa_exp.evaluation.batchnorm import policy
from lawa_exp.evaluation.evaluate import Evaluation, fixed_set
from lawa_exp.evaluation.hessian import TrainingLoss, gradient_step
from lawa_exp.evaluation.numerics import Autocast, autocast_for, compiled, scorer_for, set_up_arithmetic
from lawa_exp.parallel import model as parallel
from lawa_exp.parallel.sharing import batches_of, sharing
from lawa_exp.seams.callback import Callback, Callbacks
from lawa_exp.seams.context import Context
from lawa_exp.seams.guard import built_guarded
from lawa_exp.seams.layers import statistics_kept
from lawa_exp.storage.store import Store

if TYPE_CHECKING:
    from lawa_exp.axes.configuration import Config
    from lawa_exp.seams.batches import Batches, Split
    from lawa_exp.seams.dataset import Dataset
    from lawa_exp.seams.objective import Objective
    from lawa_exp.seams.sampler import Sampler
    from lawa_exp.storage.rundir import RunDir
    from lawa_exp.system.distributed import Ranks


@dataclass(frozen=True)
class Setup:
    """Made once; nothing replaces a field.

    model: what is evaluated, averaged and kept. objective: what is trained; trained: how a pass calls it. whole: how
    gradients meet. live: the model's own tensors, of a sharded one this rank's rows. bn: see `evaluation.batchnorm`.
    diverged: on the device, whether a loss or gradient was not finite.
    """

    config: Config
    data: Dataset
    batches: Batches
    splits: Mapping[int, Split]
    rates: Rates
    sampler: Sampler
    run: RunDir
    ranks: Ranks
    device: torch.device
    autocast: Autocast
    model: nn.Module
    objective: Objective
    trained: nn.Module
    sharing: str
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    live: dict[str, Tensor]
    averaged: frozenset[str]
    store: Store
    statistics: TrainingStatistics
    callbacks: Callbacks
    swap: Swap
    evaluation: Evaluation
    bn: str | None
    diverged: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "diverged", torch.zeros((), dtype=torch.bool, device=self.device))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Passes that do not train: without gradients, in the training's arithmetic; statistics take no notice."""
        with torch.no_grad(), statistics_kept(self.objective), self.autocast():
            yield

    @property
    def standing(self) -> dict[str, Tensor]:
        """What the live weights stand for: what is evaluated, kept as a snapshot and averaged."""
        return self.config.optimizer.evaluated(self.optimizer, self.live)


def set_up(
    config: Config, data: Dataset, splits: Mapping[int, Split], run: RunDir, ranks: Ranks, device: torch.device
) -> Setup:
    """In this order: the model, its layers, the objective around it, how ranks share it, the optimizer, callbacks."""
    set_up_arithmetic(config)
    autocast = autocast_for(config, device)
    kind = sharing(config, ranks.world)
    model, of_layers = parallel.first_model(config, kind, ranks, device)
    for _, settings in config.batch.layers():
        settings.apply(model)
    objective = config.objective.build(model, data.task, config.model.computes_loss(model), teacher_of(config, device))
    if kind != "fsdp":
        objective.to(device)
    if config.trainer.checkpoint_activations:
        parallel.checkpoint_activations(model)
    if kind == "fsdp":  # its units are compiled
        parallel.shard(objective, config, ranks, device)
    trained: nn.Module = objective if kind == "fsdp" else compiled(config, objective)
    if kind == "ddp":
        trained = parallel.replicate(trained, config.objective, data, device, autocast)
    optimizer = config.optimizer.build(objective if objective.own() else model)
    batches, live, averaged = batches_of(config, data), live_tensors(model), averaged_names(model)
    context = Context(
        config.seed, data, batches, objective, optimizer, averaged, ranks, device, autocast, config.logger.every
    )
    sampler = config.fault.sampler(config.sampling.build(context))

    def measure() -> float | None:
        loss = TrainingLoss(objective, data, ranks)
        return ranks.from_main(gradient_step(loss, fixed_set(data.sizes["train"], config.lr.samples)))

    rates = Rates(config.lr, config.scaling, config.fault, batches, measure)
    layers = {f"layers.{place}": callback for place, callback in of_layers.items()}
    named: dict[str, Callback] = {"rate": rates, "sampling": sampler, **layers, "objective": objective}
    named["statistics"] = statistics = TrainingStatistics(objective, config.batch.norm_group, ranks)
    updates = {f"update.{place}": settings.build(context) for place, (_, settings) in enumerate(config.update)}
    named |= updates
    if feedback := config.feedback.build(context):
        named["feedback"] = feedback
    for name, watch in config.watch:
        named[f"watch.{name}"] = built_guarded(name, partial(watch.build, context), objective, device)
    evaluation = Evaluation(scorer_for(config, model, data.task), data, config.evaluate, ranks, device, autocast)
    trainable = [p for p in objective.parameters() if p.requires_grad]
    store = Store(ranks, parallel.rows_of(objective), config.trajectory.shard_size)
    return Setup(
        config, data, batches, splits, rates, sampler, run, ranks, device, autocast, model, objective, trained, kind,
        optimizer, trainable, live, averaged, store, statistics, Callbacks(named, updates), Swap(model, live),
        evaluation, policy(config, model),
    )  # fmt: skip
