"""What a training takes: parameters, FLOPs, snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lawa_exp.averaging.settings import observed_steps
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.model.outline import outline
from lawa_exp.evaluation.batchnorm import policy
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.parallel.sharing import batches_of
from lawa_exp.runs.prepare import Prepared
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.storage import custom
from lawa_exp.storage.origin import Origin

A100, MFU = 312e12, 0.4  # FLOP/s, dense, in bfloat16 (NVIDIA's data sheet), and the share of them that hours assume


@dataclass(frozen=True)
class Cost:
    """What a training takes, of which `first` steps are done already.

    parameters: those that are trained. model_bytes: of a snapshot. flops: of training, `passes` over each sample.
    on_disk: snapshots that stay there. evaluation_flops: of all evaluations, those of averages included.
    """

    first: int
    parameters: int
    model_bytes: int
    samples: int
    flops: float
    snapshots: int
    on_disk: int
    passes: float
    evaluation_flops: float
    bn: str | None  # see `evaluation.batchnorm.policy`

    @property
    def evaluation_share(self) -> float:
        """What evaluations take of the FLOPs of the whole run, 0 to 1."""
        return self.evaluation_flops / (self.flops + self.evaluation_flops)

    def gpu_hours(self, peak: float = A100, mfu: float = MFU) -> float:
        """At a share `mfu` of a GPU's `peak` FLOP/s."""
        return self.flops / (peak * mfu) / 3600


def cost(
    config: Config,
    data: DatasetFacts,
    tensors: dict[str, Any],
    trained: int,
    flops_per_sample: float,
    origin: Origin | None = None,
    bn: str | None = None,
) -> Cost:
    """tensors: the model's tensors by name (on any device); trained: its parameters.

    flops_per_sample: of one pass, a third of which is its forward part. bn: see `evaluation.batchnorm.policy`.
    """
    steps, batches, every = config.steps, batches_of(config, data), config.trajectory.every
    first = origin.first_step if origin else 0
    keep, snapshots = config.trajectory.keep, steps // every - first // every
    return Cost(
        first,
        trained,
        sum(t.numel() * t.element_size() for t in tensors.values()),
        batches.samples(steps),
        flops_per_sample * config.passes * (batches.samples(steps) - batches.samples(first)),
        snapshots,
        min(snapshots, keep) if isinstance(keep, int) else {"all": snapshots, "none": 0}[keep],
        config.passes,
        flops_per_sample / 3 * evaluated_samples(config, data, first, bn),
        bn,
    )


def evaluated_samples(config: Config, data: DatasetFacts, first: int, bn: str | None) -> int:
    """Samples that the evaluations after step `first` compute a forward pass of: val along the way, test at the end,
    of the live weights and every average that is defined; with `bn` recalibrate also those of the statistics."""
    e, end = config.evaluate, config.steps

    def filled(samples: int) -> int:
        """In whole batches, as evaluations compute them."""
        return -(-samples // e.batch_size) * e.batch_size

    def weights(start: int) -> int:
        """How many evaluations on val there are from step `start` on."""
        regular = range(-(-max(start, first + 1) // e.every) * e.every, end + 1, e.every)
        return len(regular) + (end % e.every != 0 and start <= end) + (start <= first)

    observed = [(observed_steps(a, end), a.observations) for a in config.averagers]
    defined = [steps[needed - 1] for steps, needed in observed if len(steps) >= needed]  # from when on
    live, averages = weights(0), sum(weights(start) for start in defined)
    val, test = (filled(len(fixed_set(data.sizes[split], e.samples))) for split in ("val", "test"))
    samples = (live + averages) * val + (1 + len(defined)) * test
    if bn == "recalibrate":
        size = data.sizes["train"]
        statistics = size if isinstance(e.bn_samples, str) else min(size, e.bn_samples)
        samples += live * val + test + (live + averages + 1 + len(defined)) * statistics
    return samples


def planned_model(p: Prepared) -> nn.Module:
    """The model of a plan, without content where it can be had so. UserError: it cannot be averaged."""
    if p.code:
        custom.use(p.code)
    model = outline(p.config)
    averaged_names(model)
    return model


def flops_of(p: Prepared, model: nn.Module) -> float:
    """FLOPs of one pass, forward and backward, over a sample."""
    return p.config.model.training_flops(model, p.facts.tokens_per_sample)


def tensors_and_cost(p: Prepared, model: nn.Module | None = None) -> tuple[dict[str, torch.Tensor], Cost]:
    """(the model's tensors by name, without content, what the training takes). model: see `planned_model`."""
    model = model or planned_model(p)
    tensors, bn = live_tensors(model), policy(p.config, model)
    trained = sum(t.numel() for t in model.parameters() if t.requires_grad)
    return tensors, cost(p.config, p.facts, tensors, trained, flops_of(p, model), p.origin, bn)
