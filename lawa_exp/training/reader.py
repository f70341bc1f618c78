"""This rank's passes, step by step, each with its batch on the device; what is decided of later steps is read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lawa_exp.axes.dataset import loading
from lawa_exp.seams.samples import Pass, check_samples
from lawa_exp.system.errors import UserError
from lawa_exp.system.hashing import hash_of

if TYPE_CHECKING:
    from lawa_exp.seams.dataset import Inputs
    from lawa_exp.seams.samples import Samples
    from lawa_exp.training.setup import Setup


class Reader:
    """A batch is a function of its samples, so nothing that is read ahead is a state: what is dropped is read again."""

    def __init__(self, t: Setup, done: int) -> None:
        """done: the last step that was completed."""
        self.t, self.until = t, done  # the last step whose samples are decided
        self.waiting: deque[Pass] = deque()  # passes whose batches are being read
        self.loading: loading.Batches | None = None

    def close(self) -> None:
        if self.loading:
            self.loading.close()

    def decided(self, step: int) -> bool:
        """Whether the samples of `step` are."""
        return step <= self.until

    def decide(self, step: int) -> None:
        """The numbers of all steps before `step` have arrived: the sampler decides, and reading goes on."""
        t, sampler = self.t, self.t.sampler
        if step > sampler.decided_until(step - 1) and (candidates := sampler.candidates(step)) is not None:
            torch.manual_seed(int(hash_of(t.config.seed, step, t.ranks.rank, 1)) >> 1)
            with t.looking():
                sampler.choose(step, self._read(list(self._passes(step, candidates, to_train=False))))
        self.until = min(max(sampler.decided_until(step - 1), step), t.config.steps)
        self.close()
        self.waiting.clear()
        coming = (at for s in range(step, self.until + 1) for at in self._passes(s, sampler.samples(s)))
        self.loading = loading.train_batches(self.t.data, self.t.config.seed, self._noted(coming), self.t.device)

    def passes(self, step: int) -> Iterator[tuple[Pass, tuple[Inputs, Tensor]]]:
        """Those of `step`."""
        assert self.loading
        while True:
            batch = next(self.loading)
            at = self.waiting.popleft()
            assert at.step == step, f"the sampler gave no samples for step {step}"
            yield at, batch
            if at.last:
                return

    def _noted(self, coming: Iterator[Pass]) -> Iterator[Samples]:
        for at in coming:
            self.waiting.append(at)
            yield at.samples

    def _read(self, passes: list[Pass]) -> Iterator[tuple[Pass, tuple[Inputs, Tensor]]]:
        loaded = loading.train_batches(self.t.data, self.t.config.seed, (at.samples for at in passes), self.t.device)
        for at, batch in zip(passes, loaded, strict=True):
            self.t.statistics.before_pass(at)
            yield at, batch

    def _passes(self, step: int, batch: Samples, to_train: bool = True) -> Iterator[Pass]:
        """This rank's part of `batch`, phase after phase: in each, micro-batches go round the ranks."""
        t = self.t
        check_samples(batch, t.data.sizes["train"])
        size, targets, usual = len(batch), t.data.train_targets(t.config.seed, batch), t.batches.size(step)
        if size % usual or not size or (to_train and size != usual):
            expected = f"{usual}" if to_train else f"a multiple of {usual} to choose from"
            raise UserError(f"sampling: {size} samples for step {step}; expected {expected}")
        counts = {"loss": targets, **t.objective.counts(batch, targets)}
        split, phases = t.splits[usual], t.config.objective.phases
        passes = split.accumulate * (size // usual)
        of_phase = passes // phases
        for number in range(passes):
            phase, micro = divmod(number, of_phase)
            first = phase * (size // phases) + (micro * t.ranks.world + t.ranks.rank) * split.micro
            samples = batch.cut(first, split.micro)
            yield Pass(step, first, phase, samples, size, targets, counts, number == passes - 1)
