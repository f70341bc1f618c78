"""A training in this process, update after update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from lawa_exp.launch.compose import compose, read
from lawa_exp.runs.prepare import prepare
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.training.reader import Reader
from lawa_exp.training.setup import Setup, set_up
from lawa_exp.training.update import update

CPU = torch.device("cpu")
WORDS = [
    *("model=gpt_tiny", "model.layers=1", "model.width=32", "model.heads=2", "model.context=32", "dataset=pydocs"),
    *("batch.size=4", "steps=9", "avg=[lawa,ema]", "k=2", "spacing=2", "trainer.threads=1"),
]


def training(arguments: list[str], folder: Path, ranks: Ranks | None = None) -> Setup:
    """What a command with these arguments trains with, before its first update."""
    ((values, overrides),), _ = compose(arguments)
    ranks = ranks or Ranks()
    p = prepare(*read(values, overrides), CPU, ranks)
    t = set_up(p.config, p.data, p.splits, RunDir(folder), ranks, CPU)
    for callback in t.callbacks.named.values():
        callback.begin(t.live)
    return t


def updates(
    t: Setup, last: int, inside: Callable[[int], AbstractContextManager[object]] = lambda step: nullcontext()
) -> dict[str, Tensor]:
    """Makes the updates up to `last`, and what follows on each; the numbers of the last one.

    inside: what an update is made in, by its step; reading its batch is not.
    """
    numbers: dict[str, Tensor] = {}
    with closing(Reader(t, 0)) as reading:
        reading.decide(1)
        for step in range(1, last + 1):
            rate, passes = t.rates.of(step), list(reading.passes(step))
            with inside(step):
                numbers = update(t, step, rate, passes)
                for call in t.callbacks.after_update:
                    call(step, t.live)
    return numbers
