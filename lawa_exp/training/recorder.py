"""The rows of a training: numbers that come back from the device, and evaluations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lawa_exp.results.progress import Progress
from lawa_exp.storage.rows import Row, Rows, Timing, add_fields
from lawa_exp.system.memory import peak_memory
from lawa_exp.system.readback import Readback

if TYPE_CHECKING:
    from lawa_exp.training.restore import Saved
    from lawa_exp.training.setup import Setup
    from lawa_exp.training.state import State


class Recorder:
    """Writes metrics.jsonl and timing.jsonl (rank 0); knows on every rank whether the training is still finite."""

    def __init__(self, t: Setup, state: State, saved: Saved) -> None:
        self.t, self.state, self.readback = t, state, Readback(t.device)
        self.rows = Rows(t.run.metrics, saved.metrics_bytes) if t.ranks.is_main else None
        self.timing = Rows(t.run.timing) if t.ranks.is_main else None
        self.progress = Progress(t.config.steps, state.step, t.ranks.is_main, t.data.unit, t.run.heartbeat)

    def close(self) -> None:
        self.progress.close()
        for file in (self.rows, self.timing):
            if file:
                file.close()

    def step(self, step: int, rate: float, numbers: dict[str, Tensor]) -> None:
        """The numbers of a step, which are read when they have arrived."""
        self.readback.push(step, rate, tuple(numbers), torch.stack([n.float() for n in numbers.values()]))

    def bad(self, wait: bool = False) -> bool:
        """Writes the rows of the steps that have arrived (wait: of all); True if one of them is not finite."""
        t = self.t
        for step, rate, numbers in self.readback.rest() if wait else self.readback.ready():
            bad, size = bool(numbers.pop("bad")), t.batches.size(step)
            loss, norm = numbers["loss"], numbers["grad_norm"]
            row = Row(step=step, split="train", weights="live", loss=loss, lr=rate, grad_norm=norm, batch_size=size)
            for arrived in t.callbacks.arrived:
                add_fields(row, arrived(step, numbers))
            if self.rows and (step % t.config.logger.every == 0 or bad):
                self.rows.write(row)
            if bad:
                self.state.step = step - 1  # from here on the updates have changed nothing
                return True
            self.progress.trained(size * t.data.tokens_per_sample, loss)
        return False

    def evaluation(self, rows: list[Row]) -> bool:
        """Writes the rows of an evaluation; False if the live loss is not finite."""
        (seconds, speed), memory = self.progress.timing(), peak_memory(self.t.device)
        timing = Timing(step=self.state.step, seconds=seconds, tokens_per_second=speed, memory=memory)
        if self.rows and self.timing:
            for row in rows:
                self.rows.write(row)
            self.rows.flush()
            self.timing.write(timing)
            self.timing.flush()
        self.progress.evaluated(self.state.step, rows, self.t.data.task.metrics)
        return math.isfinite(rows[0]["loss"])
