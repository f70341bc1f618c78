"""Which samples each update takes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lawa_exp.seams.callback import Callback

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.seams.batches import Batches
    from lawa_exp.seams.dataset import Inputs
    from lawa_exp.seams.samples import Pass, Samples


class Sampler(Callback):
    """The same on every rank. What it learns (in `arrived`, from the losses; in `choose`) is its state, and saved."""

    def samples(self, step: int) -> Samples:
        """Those of the whole batch of the update that completes `step`, in their order.

        Batches are read ahead: what this changes in the sampler must be the same whether or not a training was resumed.
        """
        raise NotImplementedError

    def decided_until(self, step: int) -> int:
        """The last step whose samples are decided once `step` is done and its numbers have arrived.

        Batches are read ahead up to it; beyond it the training waits for what is on its way. A sampler with
        `candidates` gives `step`, or the last step that it has chosen for, which is part of its state.
        """
        return sys.maxsize

    def candidates(self, step: int) -> Samples | None:
        """Samples that `choose` looks at before those of `step` are decided, a multiple of its batch; None: none.

        Who has candidates gives `read_samples` as well.
        """
        return None

    def read_samples(self, step: int) -> int | None:
        """Samples that were read up to `step`, also those that were not trained on; None: all were."""
        return None

    def choose(self, step: int, batches: Iterable[tuple[Pass, tuple[Inputs, Tensor]]]) -> None:
        """Decides the samples of `step` from this rank's passes over its `candidates`, inputs and targets of each.

        Without gradients, in the training's arithmetic; the statistics of layers take no notice. It must decide the
        same on every rank.
        """


def seen_data(sampler: Sampler, batches: Batches, passes: float, step: int) -> dict[str, float]:
    """What rows say of the data of a training up to `step`. passes: forward and backward ones over a sample."""
    seen: dict[str, float] = {"trained_samples": batches.samples(step), "trained_tokens": batches.tokens(step)}
    if (read := sampler.read_samples(step)) is not None:
        seen["read_samples"] = read
    return seen | ({"passes": passes} if passes != 1 else {})
