"""What averaging costs a training step of GPT-2 small on a GPU: an EMA at every step, LAWA with a snapshot every 100.

One training (benchmarks/loop.py: bfloat16, micro-batches, 131,072 tokens a step) whose averager is switched on and off
between timed units of a few steps, so that both sides share weights, memory and stream. A unit ends when the device has
done all of it, copies into pinned memory included. Of LAWA a unit holds one snapshot, in its first step; its cost is
spread over the spacing: share of a step = (A/B - 1) * steps of a unit / spacing.

    python benchmarks/averaging_gpu.py --compile --out results/speed/averaging_gpu.md
    python benchmarks/averaging_gpu.py --device cpu --tokens 64 --layers 1 --width 96    # small
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import loop
import torch
from averagers import held, spread
from pairs import HEADER, Pairs, machine, publish, row, table
from torch import Tensor

from lawa_exp.averaging import EmaSettings, LawaSettings, build_averager
from lawa_exp.averaging.window import Window

SPACING = 100
UNIT = 5  # steps timed together
LEAST = 7  # pairs of units, however long they take
ROUNDS = 15  # of an update alone


@dataclass(frozen=True)
class Case:
    settings: Any
    bound: float  # the share of a step that it may cost
    every: int  # steps from one update to the next in a training
    moved: str  # by an update, for each float32 weight
    per_weight: int  # bytes of that

    def share(self, of_a_unit: float) -> float:
        """Of a step, from the share of a unit, in which there is one update, or one at every step."""
        return of_a_unit * UNIT / self.every if self.every > 1 else of_a_unit


CASES = {
    "EMA at every step": Case(EmaSettings(0.999, 1, 0, False), 0.005, 1, "read; read and write, on the device", 12),
    f"LAWA, k=5, spacing {SPACING}": Case(LawaSettings(5, 1, 0), 0.001, SPACING, "read; write pinned memory", 8),
}


def main() -> int:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", type=int, default=131_072, help="a step; default: 131,072")
    parser.add_argument("--layers", type=int, default=12, help="default: 12")
    parser.add_argument("--width", type=int, default=768, help="a multiple of the 12 heads; default: 768")
    parser.add_argument("--micro-batch", type=int, help="sequences in one pass; default: about 16,384 tokens")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--within", type=float, default=0.001, help="half-width of the 95%% interval to reach")
    parser.add_argument("--seconds", type=float, default=180, help="for each case: stop after so long all the same")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: no CUDA device here; --device cpu --tokens 64 --layers 1 --width 96 runs the same code",
            file=sys.stderr,
        )
        return 2

    timed, shares, alone = [], [], []
    for what, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            pairs, gate, config = measure(case, options, Path(folder))
        timed.append(row(what, "averaging", "none", pairs, UNIT))
        ratio, half = pairs.interval()
        share, half = case.share(ratio - 1), case.share(half)
        verdict = "met" if share + half <= case.bound else "not met" if share - half > case.bound else "open"
        interval = f"{share - half:.3%} to {share + half:.3%}"
        shares.append((what, f"{share:.3%}", interval, f"{case.bound:.1%}: {verdict}"))
        alone.append(alone_row(what, case, gate))
    weights = sum(t.numel() for n, t in gate.tensors.items() if n in gate.averager.averaged)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    compiled = "compiled" if options.compile else "eager"
    publish(
        f"What averaging costs a training step on {where}",
        [
            f"{config.model.name}, {config.model.layers} layers, {weights:,} float32 weights; {options.tokens:,} "
            f"tokens a step in sequences of {config.model.context}; {config.trainer.dtype}, {compiled}. Times are for "
            f"one of the {UNIT} steps of a unit; a unit of LAWA's A holds one snapshot.",
            table(HEADER, timed),
            f"As a share of a step, LAWA's over its spacing of {SPACING} steps (95% interval; what it may be):",
            table(("what", "share", "95% interval", "bound"), shares),
            f"An update by itself, {ROUNDS} rounds, until the device has done it (the middle half in brackets):",
            table(("what", "an update", "bytes moved", "rate", "memory held", "what is moved"), alone),
            machine(config.trainer.threads, load),
        ],
        options.out,
    )
    return 0


@dataclass
class GateSettings:
    member: Any
    windowed: bool = False  # whether the next step takes a snapshot: the loop then waits for the losses so far
    kind: ClassVar[str] = "gate"
    id: ClassVar[str] = "gate"
    period: ClassVar[int] = 1
    start: ClassVar[int] = 0

    def build(self, averaged: frozenset[str], window: Window, statistics: frozenset[str]) -> Gate:
        return Gate(self, averaged, window)


class Gate:
    """An averager behind a switch; it counts only the steps that are on."""

    latest: ClassVar[Gate]  # the loop builds it; the benchmark finds it here
    defined: ClassVar[bool] = False  # for evaluations, of which there are none

    def __init__(self, settings: GateSettings, averaged: frozenset[str], window: Window) -> None:
        self.settings, self.window, self.on, self.step = settings, window, True, 0
        self.averager = build_averager(settings.member, averaged, window)
        self.tensors: Mapping[str, Tensor] = {}
        Gate.latest = self

    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if self.on:
            self.step, self.tensors = self.step + 1, tensors
            self.averager.update(self.step, tensors)

    def average(self) -> None:
        """Nothing is evaluated."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}


def measure(case: Case, options: argparse.Namespace, folder: Path) -> tuple[Pairs, Gate, Any]:
    """Pairs of units with (A) and without (B), the averager and the resolved configuration."""
    context = min(1024, options.tokens)
    overrides = [
        f"model.layers={options.layers}",
        f"model.width={options.width}",
        f"model.context={context}",
        f"batch.size={options.tokens // context}",
    ]
    overrides += [f"trainer.compile={str(options.compile).lower()}", "trainer.dtype=bfloat16"]
    overrides += [f"trainer.micro_batch={options.micro_batch}"] if options.micro_batch else []
    p = loop.prepared("gpt2_small", overrides, folder, options.device)
    p = replace(p, config=replace(p.config, averagers=(GateSettings(case.settings),)))
    pairs = Pairs(options.within, max_seconds=options.seconds, min_pairs=10, warm_up=2)
    unit: list[float] = []  # seconds of its steps so far
    filling = getattr(case.settings, "k", 1) + 2  # steps until the window is full and its memory is used again

    def after_step(seconds: float) -> bool:
        nonlocal filling
        gate, start = Gate.latest, time.perf_counter()
        filling -= filling > 0
        if filling:
            synchronise()
        else:
            unit.append(seconds)
        if len(unit) == UNIT:
            synchronise()
            pairs.record(sum(unit) + time.perf_counter() - start)
            unit.clear()
        gate.on = filling > 0 or (pairs.turn == 0 and (case.every == 1 or not unit))
        gate.settings.windowed = gate.on and case.settings.windowed
        return pairs.done and len(pairs.times) >= LEAST

    loop.watch(p, after_step)
    return pairs, Gate.latest, p.config


def alone_row(what: str, case: Case, gate: Gate) -> tuple[str, ...]:
    taken = []
    for step in range(gate.step + 1, gate.step + ROUNDS + 1):
        synchronise()
        start = time.perf_counter()
        gate.averager.update(step, gate.tensors)
        gate.window.fence()
        synchronise()
        taken.append(time.perf_counter() - start)
    moved = case.per_weight * sum(t.numel() for n, t in gate.tensors.items() if n in gate.averager.averaged)
    rate = moved / sorted(taken)[ROUNDS // 2]
    return (what, spread(taken), f"{moved / 1e6:.0f} MB", f"{rate / 1e9:.1f} GB/s", held(gate.averager), case.moved)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
