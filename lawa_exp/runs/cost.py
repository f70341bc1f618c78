"""What a training takes: parameters, FLOPs, snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.model.outline import outline
from lawa_exp.parallel.sharing import batches_of
from lawa_exp.runs.prepare import Prepared
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.storage import custom
from lawa_exp.storage.origin import Origin

A100, MFU = 312e12, 0.4  # FLOP/s, dense, in bfloat16 (NVIDIA's data sheet), and the share of them that hours assume


@dataclass(frozen=True)
class Cost:
    """What a training takes, of which `first` steps are done already.

    parameters: those that are trained. model_bytes: of a snapshot. on_disk: snapshots that stay there.
    """

    first: int
    parameters: int
    model_bytes: int
    samples: int
    flops: float
    snapshots: int
    on_disk: int

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
) -> Cost:
    """tensors: the model's tensors by name (on any device); trained: its parameters."""
    steps, batches, every = config.steps, batches_of(config, data), config.trajectory.every
    first = origin.first_step if origin else 0
    keep, snapshots = config.trajectory.keep, steps // every - first // every
    return Cost(
        first,
        trained,
        sum(t.numel() * t.element_size() for t in tensors.values()),
        batches.samples(steps),
        flops_per_sample * (batches.samples(steps) - batches.samples(first)),
        snapshots,
        min(snapshots, keep) if isinstance(keep, int) else {"all": snapshots, "none": 0}[keep],
    )


def model_size(p: Prepared) -> tuple[dict[str, torch.Tensor], int, float]:
    """The model's tensors by name, without content; its trained parameters; the FLOPs of training on one sample."""
    if p.code:
        custom.use(p.code)
    model = outline(p.config)
    averaged_names(model)  # refuses what cannot be averaged
    trained = sum(t.numel() for t in model.parameters() if t.requires_grad)
    return live_tensors(model), trained, p.config.model.training_flops(model, p.facts.tokens_per_sample)


def tensors_and_cost(p: Prepared) -> tuple[dict[str, torch.Tensor], Cost]:
    """(the model's tensors by name, without content, what the training takes)."""
    tensors, trained, flops = model_size(p)
    return tensors, cost(p.config, p.facts, tensors, trained, flops, p.origin)
