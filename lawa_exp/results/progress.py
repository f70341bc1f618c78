"""What a person sees while training: a bar on a terminal, and a line for each evaluation."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lawa_exp.storage.metrics import KNOWN, Metrics, own_metrics
from lawa_exp.storage.rows import Row, number_in
from lawa_exp.system.heartbeat import Heartbeat

RECENT = 120  # heartbeats, some ten minutes, that the time left is estimated from


class Progress:
    """A bar with loss, throughput and time left; only rank 0 shows it, and only a terminal gets the bar."""

    def __init__(self, steps: int, done: int, shown: bool, unit: str, heartbeat: Heartbeat) -> None:
        self.unit = unit.split()[-1]  # token or image
        self.steps, self.step, self.stepped = steps, done, time.time()
        self.recent = deque([(time.perf_counter(), done)], maxlen=RECENT)
        self.shown = shown
        self.bar = tqdm(
            total=steps,
            initial=done,
            unit="step",
            disable=not shown or not sys.stderr.isatty(),
            dynamic_ncols=True,
            mininterval=0.25,
        )
        self.training_seconds = 0.0
        self.tokens_since_mark = 0
        self.mark = time.perf_counter()
        self.speed = 0.0
        heartbeat.facts = self.facts  # at once asked for, by its thread

    def trained(self, tokens: int, loss: float) -> None:
        """A step of so many tokens is done."""
        self.step, self.stepped = self.step + 1, time.time()
        self.tokens_since_mark += tokens
        if not self.bar.disable:
            elapsed = time.perf_counter() - self.mark
            speed = self.tokens_since_mark / max(elapsed, 1e-9)
            self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} {self.unit}s/s", refresh=False)
            self.bar.update()

    def facts(self) -> dict[str, Any]:
        """What a heartbeat says (called from its thread). seconds_left: at the pace of the last ten minutes, with all
        that is not training; None while it is not known. stepped: when the last step was done.
        """
        self.recent.append((time.perf_counter(), self.step))
        (first, before), (now, after) = self.recent[0], self.recent[-1]
        left = (self.steps - after) * (now - first) / (after - before) if after > before else None
        elapsed = time.perf_counter() - self.mark  # the mark first: `evaluated` sets it last
        speed = self.tokens_since_mark / elapsed or self.speed  # as the bar's: evaluation left out
        facts = {"step": after, "steps": self.steps, "stepped": self.stepped, "unit": self.unit}
        return {**facts, "tokens_per_second": round(speed, 1), "seconds_left": left and round(left)}

    def timing(self) -> tuple[float, float]:
        """Seconds of training (evaluation left out) since this process started, and the rate since the last call."""
        elapsed = time.perf_counter() - self.mark
        self.training_seconds += elapsed
        self.speed = self.tokens_since_mark / elapsed
        return round(self.training_seconds, 3), round(self.speed, 1)

    def evaluated(self, step: int, rows: Sequence[Row], metrics: Metrics) -> None:
        """rows: of one evaluation. metrics: a task's own have a line each below that of the losses."""
        if self.shown:
            speed = f"  ({self.speed:,.0f} {self.unit}s/s)" if self.speed else ""
            for name, metric in {"loss": KNOWN["loss"], **own_metrics(metrics)}.items():
                values = "  ".join(f"{row['weights']} {metric.text(number_in(row, name))}" for row in rows)
                tqdm.write(f"step {step:>7,}  val {name}: {values}{speed if name == 'loss' else ''}", file=sys.stdout)
            sys.stdout.flush()
        self.tokens_since_mark = 0
        self.mark = time.perf_counter()

    def close(self) -> None:
        self.bar.close()
