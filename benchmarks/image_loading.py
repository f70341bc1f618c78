"""Images per second that the loader reads from a folder, without and with processes that decode them.

The trainer's own loader (`lawa_exp.axes.dataset.loading.train_batches`) over generated photographs of ImageNet's
typical size, each
decoded, cropped at random and scaled to 224 x 224, with nobody training on them. The counts of processes take turns in
one run, in an order that rotates, so that what else the machine does falls on all of them; a ratio is of one round.

    python benchmarks/image_loading.py --out results/speed/image_loading.md
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import loop
import torch
from image_tree import SIZE, write_images
from pairs import machine, publish, table

from lawa_exp.axes.dataset.loading import train_batches

BATCH = 64
HEADER = ("processes", "images/s", "times as fast as the first, by round", "CPU ms an image")


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="0,1,2", help="counts of processes, the first is compared with; 0,1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4, help=f"of {BATCH} images, timed in a turn; default: 4")
    parser.add_argument("--images", type=int, default=256, help="in the folder; default: 256")
    parser.add_argument("--out", type=Path, help="file for the page")
    options = parser.parse_args()
    counts = [int(n) for n in options.workers.split(",")]

    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", 4, options.images // 4, 1)
        size = statistics.mean(p.stat().st_size for p in Path(folder).glob("images/train/*/*"))
        asked = [f"dataset.path={Path(folder) / 'images'}", "trainer.threads=1"]
        settings = loop.prepared("resnet50", asked, Path(folder)).config.dataset
        opened = {n: settings.open(None) for n in counts}
        for n, data in opened.items():
            data.workers = n
        rates: dict[int, list[float]] = {n: [] for n in counts}
        costs: dict[int, list[float]] = {n: [] for n in counts}
        for turn in range(options.rounds + 1):
            for n in counts[turn % len(counts) :] + counts[: turn % len(counts)]:
                rate, cost = images_per_second(opened[n], options.batches)
                if turn:  # the first is a warm-up: processes start, files come into the page cache
                    rates[n].append(rate)
                    costs[n].append(cost)

    rows = []
    for n in counts:
        ratios = [a / b for a, b in zip(rates[n], rates[counts[0]], strict=True)]
        of = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((f"{n}", spread(rates[n], "{:.0f}"), "1" if n == counts[0] else of, spread(costs[n], "{:.1f}")))
    busy = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores when it ended"
    publish(
        "Reading images ahead: processes that decode",
        [
            f"Random crops of {SIZE[0]}x{SIZE[1]} JPEG files ({size / 1000:.0f} kB on average, generated), scaled to "
            f"224x224, bytes in batches of {BATCH}; then normalised, one CPU thread. Medians of {options.rounds} "
            f"rounds of {options.batches} batches, smallest and largest in brackets.",
            table(HEADER, rows),
            f"Measured beside other work: {busy}. Where there is more work than cores, more processes get more of the "
            "cores, and images/s and their ratios tell that too. The CPU time of an image, of the process that asks "
            "and of those that decode, does not depend on it: what decoding elsewhere adds to it is the cost of "
            "sending jobs and copying bytes. Nothing here was measured on a machine with a GPU and dozens of cores.",
            machine(1, load),
        ],
        options.out,
    )


def images_per_second(data: Any, batches: int) -> tuple[float, float]:
    """And the milliseconds of CPU time for one of those that were decoded meanwhile."""
    torch.set_num_threads(1)
    coming = train_batches(data, ((0, n * BATCH, BATCH) for n in itertools.count()), torch.device("cpu"))
    next(coming)  # from here on it reads ahead, and at the end of the time as far
    begun, used = time.perf_counter(), cpu_seconds(data)
    for _ in range(batches):
        next(coming)
    seconds = time.perf_counter() - begun
    used = cpu_seconds(data) - used
    coming.close()
    return batches * BATCH / seconds, 1000 * used / (batches * BATCH)


def cpu_seconds(data: Any) -> float:
    """That this process and those that decode for it have used."""
    decoding = data.decoders.processes if data.workers else []
    fields = [Path(f"/proc/{d.process.pid}/stat").read_text().rpartition(")")[2].split() for d in decoding]
    return time.process_time() + sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float], form: str) -> str:
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


if __name__ == "__main__":
    main()
