"""What averaging costs a training step, against none: sets of three, four and eight averagers.

One training (benchmarks/loop.py) with one attached averager that holds the real ones and is switched on and off
between timed units, so that both sides share weights, data, memory and thread. While it is off the loop does what it
does without averagers, but for one call. The averagers see a step count of their own, in which only the steps that are
on count: LAWA's window and every sum are as full as in a long run.

The cost has a period of 50 steps: one step with a snapshot, 49 with EMA alone. A period of either side would take
12 s (gpt_tiny) or a minute (10.6M), and the machine drifts meanwhile, so it is cut into units that are timed in pairs:

- gpt_tiny: 5 units of 10 steps. The first step of one of the five takes the snapshot (kind s), the other four have EMA
  alone (kind e), so A/B = 4/5 of e's A/B + 1/5 of s's.
- 10.6M: 25 units of 2 steps, A/B = 24/25 of e's + 1/25 of s's; s is timed oftener than it occurs. The steps after the
  first are for what the snapshot sets off: a commit in the background, cold caches.

Beside it stands the time spent inside the updates as a share of a step that is off, (49 e + s) / (50 steps): far more
precise, but blind to what the updates do to the rest of the step.

With snapshots on the disk, a snapshot also goes to the loop's own `Background` and `write_snapshot`, and what a unit's
end still has to wait for is counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import loop
from pairs import HEADER, Pairs, machine, publish, row, table
from torch import Tensor

from lawa_exp.averaging import (
    EmaSettings,
    LawaSettings,
    PowerEmaSettings,
    SwaSettings,
    WmaSettings,
    build_averager,
)
from lawa_exp.averaging.kept import write_snapshot
from lawa_exp.averaging.window import Window
from lawa_exp.system.background import Background

SPACING = 50
THREE = (LawaSettings(5, SPACING, 0), SwaSettings(SPACING, 0), EmaSettings(0.99, 1, 0, False))
FOUR = (*THREE, PowerEmaSettings(0.1, 1))
MORE = (
    *(LawaSettings(10, SPACING, 0), WmaSettings(5, SPACING, 0)),
    *(EmaSettings("half_life:4%", 1, 0, False), PowerEmaSettings(0.05, 1)),
)
SETS = {"three": THREE, "four": FOUR, "eight": (*FOUR, *MORE)}


@dataclass(frozen=True)
class Method:
    """How one size is timed. unit: steps timed together; pattern: the kinds of the pairs in turn, e (0) or s (1);
    share: of the time given."""

    unit: int
    pattern: tuple[int, ...]
    share: float

    @property
    def weights(self) -> tuple[float, float]:
        """Of the kinds e and s in a period."""
        return 1 - self.unit / SPACING, self.unit / SPACING


METHODS = {
    "gpt_tiny": Method(10, (0, 0, 1, 0, 0), 1 / 6),
    "10.6M": Method(2, (0, 0, 1, 0), 1 / 3),
}


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=METHODS, action="append", help="default: both")
    parser.add_argument("--averagers", choices=SETS, default="three", help="default: three")
    parser.add_argument("--snapshots", choices=("in memory", "on disk"), action="append", help="default: both")
    parser.add_argument("--within", type=float, default=0.005, help="half-width of the 95%% interval to reach")
    parser.add_argument(
        "--seconds", type=float, default=300, help="for all four cases: stop after so long all the same"
    )
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument(
        "--folder", type=Path, help="where snapshots are written; default: the system's temporary files"
    )
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()

    overall, inside, threads = [], [], None
    for size in options.size or METHODS:
        for place in options.snapshots or ("in memory", "on disk"):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                pairs, switched, threads = measure(size, Path(folder), place == "on disk", options)
            what = f"{size}, 16x{128 if size == 'gpt_tiny' else 256}, snapshots {place}"
            unit = METHODS[size].unit
            overall.append(row(what, "averaging", "none", pairs, unit))
            inside.append(inside_row(what, switched, pairs.median(1) / unit))
    publish(
        "What averaging costs a training step",
        [
            f"A: {', '.join(s.id for s in SETS[options.averagers])} attached; B: none. Times are for one step, "
            "averaged over a period of 50 that is cut into units with and without the snapshot: 1 and 4 units of 10 "
            "steps for gpt_tiny (float32), 1 and 24 of 2 steps for the 10.6M model (bf16 autocast).",
            table(HEADER, overall),
            "The time inside the updates alone, medians; their share is (49 ordinary + 1 with a snapshot) / (50 steps "
            "of B).",
            table(("what", "an ordinary step", "with a snapshot", "share of a step", "a commit"), inside),
            machine(threads, load),
        ],
        options.out,
    )


def inside_row(what: str, switched: Switched, step_seconds: float) -> tuple[str, ...]:
    ordinary, snapshot = (statistics.median(switched.seconds[with_snapshot]) for with_snapshot in (False, True))
    share = ((SPACING - 1) * ordinary + snapshot) / (SPACING * step_seconds)
    commit = f"{statistics.median(switched.commits):.2f} s in the background" if switched.commits else "none"
    return (what, f"{ordinary * 1e3:.2f} ms", f"{snapshot * 1e3:.2f} ms", f"{share:.2%}", commit)


@dataclass(frozen=True)
class SwitchedSettings:
    kind: ClassVar[str] = "switched"
    id: ClassVar[str] = "switched"
    period: ClassVar[int] = 1
    start: ClassVar[int] = 0
    windowed: ClassVar[bool] = False  # for the loop; its members have their window all the same
    members: tuple[Any, ...]

    def needed(self, step: int) -> Sequence[int]:
        return ()

    def build(self, averaged: frozenset[str], window: Window, statistics: frozenset[str]) -> Switched:
        return Switched(self, averaged, window)


class Switched:
    """The averagers behind a switch."""

    defined: ClassVar[bool] = False  # for evaluations, of which there are none
    latest: ClassVar[Switched]  # the loop builds it; the benchmark finds it here

    def __init__(self, settings: SwitchedSettings, averaged: frozenset[str], window: Window) -> None:
        self.settings, self.averaged, self.window = settings, averaged, window
        self.averagers = [build_averager(s, averaged, window) for s in settings.members]
        self.on = True
        self.snapshot_next = False  # whether the next observed step is a multiple of the spacing
        self.step = 0  # as the averagers see it
        self.counts = False
        self.seconds: dict[bool, list[float]] = {True: [], False: []}  # in the updates, by whether with a snapshot
        self.commits: list[float] = []
        self.trajectory: Path | None = None
        self.background = Background()
        Switched.latest = self

    def update(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if not self.on:
            return
        start = time.perf_counter()
        to_multiple = SPACING - self.step % SPACING
        self.step += to_multiple if self.snapshot_next else 1 if to_multiple > 1 else 2
        for averager in self.averagers:
            averager.update(self.step, tensors)
        if self.snapshot_next and self.trajectory:
            snapshot = self.window.take(self.step, tensors, self.averaged)
            self.background.submit(self.write, self.trajectory, snapshot, "all")
        if self.counts:
            self.seconds[self.snapshot_next].append(time.perf_counter() - start)

    def write(self, *args: Any) -> None:
        start = time.perf_counter()
        write_snapshot(*args)
        self.commits.append(time.perf_counter() - start)

    def average(self) -> None:
        """Nothing is evaluated."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}


def measure(size: str, folder: Path, on_disk: bool, options: argparse.Namespace) -> tuple[Pairs, Switched, int | None]:
    """Pairs of units with averaging (A) and without (B), the averager, and the threads."""
    p = loop.prepared(size, [f"trainer.threads={options.threads}"] if options.threads else [], folder)
    members = SETS[options.averagers]
    p = replace(p, config=replace(p.config, averagers=(SwitchedSettings(members),)))
    method = METHODS[size]
    pairs = Pairs(
        options.within,
        max_seconds=options.seconds * method.share,
        warm_up=1,
        strata=method.weights,
        pattern=method.pattern,
    )
    unit: list[float] = []  # seconds of its steps so far
    full = False  # the window: before it is, nothing is timed

    def after_step(seconds: float) -> bool:
        nonlocal full
        switched = Switched.latest
        if full:
            unit.append(seconds)
        else:
            full = len(switched.window.snapshots) == max(s.k for s in members if s.windowed)
        if len(unit) == method.unit:
            start = time.perf_counter()
            switched.background.drain()
            pairs.record(sum(unit) + time.perf_counter() - start)
            unit.clear()
        switched.trajectory = folder / "trajectory" if on_disk and full else None
        switched.counts = full and pairs.counts
        switched.on = not full or pairs.turn == 0
        switched.snapshot_next = not full or (pairs.stratum == 1 and not unit)
        return pairs.done

    loop.watch(p, after_step)
    Switched.latest.background.close()
    return pairs, Switched.latest, p.config.trainer.threads


if __name__ == "__main__":
    main()
