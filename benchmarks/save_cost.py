"""What saving a complete state costs the training: the step after a save against an ordinary one, in pairs.

    python benchmarks/save_cost.py --size gpt2_small --out results/speed/save_cost.md

The real loop (benchmarks/loop.py) saves after every fourth step. The step after a save, whose time has the copy of the
state in it, and the second one, during which the state may still be written, are each compared with the fourth.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import loop
from pairs import Pairs, machine, publish, table

EVERY = 4
LIMIT = 1.1


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=loop.SIZES, default="gpt2_small")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2, help="samples in an update (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where states are written")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file for the table")
    options, overrides = parser.parse_known_args()
    after, second = (Pairs(max_pairs=options.pairs, warm_up=0) for _ in range(2))
    steps: list[float] = []

    def after_step(seconds: float) -> bool:
        """The first steps, up to the first save, warm up."""
        steps.append(seconds)
        if len(steps) % EVERY == 0 and len(steps) > EVERY:
            first, next_one, *_, ordinary = steps[-EVERY:]
            after.times.append((0, first, ordinary))
            second.times.append((0, next_one, ordinary))
        return len(after.times) == options.pairs

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        words = [f"batch.size={options.batch}", f"save.every={EVERY}", "trainer.threads=1", *overrides]
        loop.watch(loop.prepared(options.size, words, Path(folder), options.device), after_step)
    rows = []
    for name, pairs in (("the step after a save", after), ("the one after it", second)):
        ratio, half = pairs.interval()
        times = [f"{pairs.median(side):.2f} s" for side in (0, 1)]
        rows.append([name, f"{ratio:.3f}", f"{ratio - half:.3f} to {ratio + half:.3f}", *times])
    header = ["what", "against an ordinary step", "95% interval", "it", "ordinary"]
    verdict = f"At most {LIMIT} is the aim for the step after a save. States were written to {options.folder}."
    title = f"Saving a complete state: {options.size}, batch {options.batch}"
    publish(title, [table(header, rows), verdict, machine(1, load)], options.out)


if __name__ == "__main__":
    main()
