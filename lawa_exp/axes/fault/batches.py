"""Batches of noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.fault.fault import Fault
from lawa_exp.config.rules import setting, steps
from lawa_exp.seams.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.seams.callback import Saved
    from lawa_exp.seams.dataset import Inputs
    from lawa_exp.seams.samples import Pass, Samples


@dataclass(frozen=True)
class BadBatches(Fault):
    """Training batches of noise (`noise_batch` of the data set): of tokens and targets uniform over the vocabulary, of
    pixels uniform over their range with classes at random. The samples that they displace count as seen."""

    at: int = setting(steps(), "the step after which the first batch of noise comes")
    length: int = setting(steps(1), "how many batches are noise")

    @property
    def described(self) -> str:
        return "batches of noise"

    def sampler(self, inner: Sampler) -> Sampler:
        return NoiseBurst(inner, self.at, self.length)


class NoiseBurst(Sampler):
    """`inner`, but with noise in the steps at+1 .. at+length."""

    def __init__(self, inner: Sampler, at: int, length: int) -> None:
        self.inner, self.at, self.length = inner, at, length

    def samples(self, step: int) -> Samples:
        return replace(self.inner.samples(step), noise=self.at < step <= self.at + self.length)

    def decided_until(self, step: int) -> int:
        return self.inner.decided_until(step)

    def candidates(self, step: int) -> Samples | None:
        return self.inner.candidates(step)

    def read_samples(self, step: int) -> int | None:
        return self.inner.read_samples(step)

    def choose(self, step: int, batches: Iterable[tuple[Pass, tuple[Inputs, Tensor]]]) -> None:
        self.inner.choose(step, batches)

    def begin(self, live: Mapping[str, Tensor]) -> None:
        self.inner.begin(live)

    def before_step(self, step: int) -> None:
        self.inner.before_step(step)

    def before_pass(self, at: Pass) -> None:
        self.inner.before_pass(at)

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        return self.inner.after_passes(step)

    def after_update(self, step: int, live: Mapping[str, Tensor]) -> None:
        self.inner.after_update(step, live)

    def waits(self, step: int) -> bool:
        return self.inner.waits(step)

    def arrived(self, step: int, numbers: Mapping[str, float]) -> Mapping[str, float]:
        return self.inner.arrived(step, numbers)

    def state(self) -> Saved:
        return self.inner.state()

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.inner.load(tensors, scalars)
