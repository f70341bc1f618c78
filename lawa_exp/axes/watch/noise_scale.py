"""The gradient noise scale, from the gradients that accumulation has at hand (McCandlish et al. 2018, appendix A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa_exp.axes.choice import Planned
from lawa_exp.axes.watch.settings import WatchSettings
from lawa_exp.results.statistics import estimates
from lawa_exp.seams.callback import Callback
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.seams.context import Context
    from lawa_exp.seams.samples import Pass


@dataclass(frozen=True)
class NoiseScaleSettings(WatchSettings):
    """Training rows have grad_squared and grad_variance, the two estimates of the noise scale.

    See `results.statistics.estimates`. They need two micro-batches or two ranks, and whole gradients on each rank.
    """

    def build(self, context: Context) -> NoiseScale:
        return NoiseScale(context)

    def check(self, planned: Planned) -> None:
        if planned.sharing == "fsdp":
            raise UserError(
                "watch=noise_scale: not with trainer=fsdp, whose ranks hold no gradient of their own samples; choose "
                "trainer=ddp"
            )
        for size, split in planned.splits.items():
            if split.accumulate * planned.world == 1:
                smaller = max((m for m in range(1, size) if size % m == 0), default=None)
                choice = (
                    f"choose trainer.micro_batch={smaller} or a smaller one" if smaller else "choose a larger batch"
                )
                raise UserError(f"watch=noise_scale: a batch of {size} is one micro-batch on one rank; {choice}")


class NoiseScale(Callback):
    """Sums the squared norms of the gradients of single micro-batches, on this rank, in the steps that have a row.

    Autograd gives each parameter the gradient of one backward pass just before adding it to `.grad`, and there a hook
    takes its norm. It is the increment itself, not a difference of rounded sums, and comes before DDP mixes the ranks;
    no copy is kept and nothing changed. The cost is one read of the gradients.
    """

    def __init__(self, context: Context) -> None:
        import torch

        self.context, self.on, self.weight, self.passes, self.micro = context, False, 1.0, 0, 0
        self.total = torch.zeros((), dtype=torch.float64, device=context.device)
        for parameter in context.objective.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self.add)

    def add(self, gradient: Tensor) -> None:
        import torch

        if self.on:
            self.total += torch.linalg.vector_norm(gradient).double().square() * self.weight

    def before_step(self, step: int) -> None:
        self.on, self.passes = step % self.context.logged_every == 0, 0
        self.total = self.total.new_zeros(())

    def before_pass(self, at: Pass) -> None:
        """The part that a micro-batch has of the batch's gradient is its own gradient times its share of the targets
        that micro-batches have on average."""
        self.passes, self.micro = self.passes + 1, len(at.samples)
        if self.on:
            own = self.context.data.train_targets(self.context.seed, at.samples)
            self.weight = at.targets * self.micro / at.batch / max(own, 1)

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        if not self.on:
            return {}
        ranks = self.context.ranks  # the gradient of a micro-batch is its part of the sum, times the passes
        return {"micro_squared": ranks.sum(self.total) * (self.passes / ranks.world)}

    def arrived(self, step: int, numbers: Mapping[str, float]) -> Mapping[str, float]:
        if "micro_squared" not in numbers:
            return {}
        size = self.context.batches.size(step)
        squared, variance = estimates(numbers["grad_norm"] ** 2, numbers["micro_squared"], size, self.micro)
        return {"grad_squared": squared, "grad_variance": variance}
