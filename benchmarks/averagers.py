"""Each averager alone: the time of an update against the bytes that it must move, and the memory that it holds.

On the weights of the 10.6M model. The machine's copy rate is measured beside it, on as many bytes: a copy reads and
writes each once. Rounds go over all of them in turn; medians are shown with the range of the middle half.

    python benchmarks/averagers.py --out results/speed/averagers.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loop
import torch
from pairs import machine, publish, table

from lawa_exp.averaging import (
    BemaSettings,
    EmaSettings,
    LawaSettings,
    PowerEmaSettings,
    SwaSettings,
    WmaSettings,
    build_averager,
)
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.averaging.window import Window
from lawa_exp.evaluation.numerics import seeded_model, set_up_arithmetic

# Settings, bytes moved for each float32 weight by an update, and what these are.
CASES: list[tuple[Any, int, str]] = [
    (LawaSettings(5, 1, 0), 8, "a snapshot: read, write"),
    (WmaSettings(5, 1, 0), 8, "a snapshot: read, write"),
    (SwaSettings(1, 0), 20, "read; read and write float64"),
    (EmaSettings(0.99, 1, 0, False), 12, "read; read and write"),
    (EmaSettings("half_life:4%", 1, 0, True), 12, "read; read and write"),
    (PowerEmaSettings(0.1, 1), 12, "read; read and write"),
    (BemaSettings(1, 0, 0.5, 0.2, 10), 20, "read; read and write; read and write the latest"),
]


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"trainer.threads={options.threads}"] if options.threads else []
        config = loop.prepared("10.6M", overrides, Path(folder)).config
    set_up_arithmetic(config)
    model = seeded_model(config, torch.device("cpu"))
    live, averaged = live_tensors(model), averaged_names(model)
    weights = sum(t.numel() for t in live.values())
    target = {n: torch.empty_like(t) for n, t in live.items()}
    averagers = [build_averager(settings, averaged, Window()) for settings, _, _ in CASES]

    def copy(step: int) -> None:
        torch._foreach_copy_(list(target.values()), list(live.values()))

    seconds: list[list[float]] = [[] for _ in range(len(CASES) + 1)]
    updates: list[Callable[[int], Any]] = [copy, *((lambda step, a=a: a.update(step, live)) for a in averagers)]
    for step in range(1, options.rounds + 11):
        for taken, update in zip(seconds, updates, strict=True):
            start = time.perf_counter()
            update(step)
            if step > 10:  # windows are full, memory is there
                taken.append(time.perf_counter() - start)
    rate = 8 * weights / statistics.median(seconds[0])
    lines = [("a copy", spread(seconds[0]), f"{8 * weights / 1e6:.0f} MB", "1.00", "-", "read, write")]
    for (settings, per_weight, what), averager, taken in zip(CASES, averagers, seconds[1:], strict=True):
        must = per_weight * weights
        ratio = statistics.median(taken) / (must / rate)
        lines.append((settings.id, spread(taken), f"{must / 1e6:.0f} MB", f"{ratio:.2f}", held(averager), what))
    publish(
        "Each averager alone",
        [
            f"{weights:,} float32 weights; {options.rounds} rounds after a warm-up of 10. Time / bytes: the time "
            f"divided by that of moving the bytes at the rate of the copy, {rate / 1e9:.1f} GB/s.",
            table(("averager", "an update", "bytes it must move", "time / bytes", "memory held", "what"), lines),
            "A snapshot is copied here before `update` returns; in a training it goes on beside the next step.",
            machine(config.trainer.threads, load),
        ],
        options.out,
    )


def spread(taken: list[float]) -> str:
    low, middle, high = statistics.quantiles(taken, n=4)
    return f"{middle * 1e3:.2f} ms ({low * 1e3:.2f} to {high * 1e3:.2f})"


def held(averager: Any) -> str:
    """Bytes of the running tensors and of the window."""
    if averager.settings.windowed:
        tensors = [t for s in averager.window.snapshots.values() for t in s.tensors.values()]
    else:
        tensors = [t for slot in averager.running.values() for t in slot.values()]
    return f"{sum(t.numel() * t.element_size() for t in tensors) / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
