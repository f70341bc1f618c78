"""BatchNorm's statistics, and others of its kind, for averaged weights in any training loop."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lawa_exp.averaging.tensors import live_tensors, statistics_in, unwrapped, unwrapped_name
from lawa_exp.seams.layers import keeping_statistics

if TYPE_CHECKING:
    from lawa_exp.averaging.model import ModelAverager

_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def recalibrated(model: nn.Module) -> None:
    """Whoever averages this model computes the statistics of its averages: no warning."""
    _warned.add(unwrapped(model))


def warn_of_statistics(model: nn.Module) -> None:
    """Once for each model that keeps statistics: its averages have those of the latest weights."""
    model = unwrapped(model)
    if model in _warned:
        return
    keeping = [(unwrapped_name(name) or "the model", type(m).__name__) for name, m, _ in keeping_statistics(model)]
    if not keeping:
        return
    _warned.add(model)
    name, kind = keeping[0]
    more = f" and {len(keeping) - 1} more" if len(keeping) > 1 else ""
    warnings.warn(
        f"{name} ({kind}){more}: an average has the running statistics of the latest weights, which do not fit it. "
        "Before you evaluate or save it: lawa_exp.averaging.recalibrate(averager, batches) inside averager.applied()",
        stacklevel=4,
    )


@torch.no_grad()
def recalibrate(
    averager: ModelAverager, batches: Iterable[object], forward: Callable[..., object] | None = None
) -> None:
    """Inside `averager.applied()`: statistics of norms anew, those of the averaged weights on `batches`.

        with lawa.applied():
            recalibrate(lawa, batches)
            evaluate(model)
            weights = lawa.full_average()  # with these statistics

    They are the mean of those of the single batches, each batch counting once whatever its size, to the bit what
    `torch.optim.swa_utils.update_bn` computes for a model without dropout (Izmailov et al. 2018, section 3.2). All
    modules are in evaluation mode but those that observe, and so dropout drops nothing, as it does in update_bn. Any
    module of the protocol in `lawa_exp.seams.layers` takes part. Outside `applied` the statistics are the latest again.

    batches: training batches, moved to the model's device. forward: what is called with each; by default the model,
    of a list or tuple with its first entry, as update_bn does. `lambda batch: model(**batch)` where a batch holds the
    arguments. Where torch.distributed is initialised every rank must call it: each passes its own batches, and all have
    the mean over the batches of all ranks. The ranks of a sharded model need the same number of batches.

    RuntimeError outside `applied`; ValueError where there are no batches.
    """
    model = averager.holder
    if model is None:
        raise RuntimeError(f"{averager.id}: call recalibrate inside `applied()`, where the average is in the model")
    modules = list(statistics_in(model).values())
    if not modules:
        return
    statistics = [t for module in modules for t in module.statistics().values()]
    device = next(iter(live_tensors(model).values())).device
    modes = [(m, m.training) for m in model.modules()]
    count = 0
    try:
        model.eval()
        with ExitStack() as observing:
            for module in modules:
                observing.enter_context(module.observe())
            for batch in batches:
                if not count:
                    for module in modules:
                        module.reset()
                count += 1
                batch = _moved(batch, device)
                if forward is not None:
                    forward(batch)
                else:
                    model(batch[0] if isinstance(batch, list | tuple) else batch)
    finally:
        for m, training in modes:
            m.training = training
    if dist.is_initialized() and dist.get_world_size() > 1:
        _mean_over_ranks(statistics, count)
    elif not count:
        raise ValueError(f"{averager.id}: recalibrate was given no batches")


def _mean_over_ranks(statistics: list[Tensor], count: int) -> None:
    """Each rank's, weighted by the number of its batches; float64 sums. ValueError where no rank had any."""
    own = [t.flatten().double() for t in statistics]
    own = [count * t if count else torch.zeros_like(t) for t in own]  # a rank without batches has the old ones
    total = torch.cat([*own, statistics[0].new_tensor([count]).double()])
    dist.all_reduce(total)
    if not total[-1]:
        raise ValueError("recalibrate was given no batches, on any rank")
    means = (total[:-1] / total[-1]).split([t.numel() for t in statistics])
    for tensor, mean in zip(statistics, means, strict=True):
        tensor.copy_(mean.view_as(tensor))


def _moved(batch: object, device: torch.device) -> object:
    """Its tensors on `device`. What moves itself, such as transformers' BatchEncoding, does."""
    if isinstance(batch, Tensor) or callable(getattr(batch, "to", None)):
        return batch.to(device)  # type: ignore[attr-defined]
    if isinstance(batch, dict):
        moved = copy.copy(batch)
        moved.update({key: _moved(value, device) for key, value in batch.items()})
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))  # type: ignore[arg-type]
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(value, device) for value in batch)
    return batch
