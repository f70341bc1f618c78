"""Images per second that the loader reads from a folder, without and with processes that decode them.

The trainer's own loader (`lawa_exp.loading.train_batches`) over generated photographs of ImageNet's typical size, each
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

from lawa_exp.loading import train_batches

BATCH = 64


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
        for turn in range(options.rounds + 1):
            for n in counts[turn % len(counts) :] + counts[: turn % len(counts)]:
                rate = images_per_second(opened[n], options.batches)
                if turn:  # the first is a warm-up: processes start, files come into the page cache
                    rates[n].append(rate)

    rows = []
    for n in counts:
        ratios = [a / b for a, b in zip(rates[n], rates[counts[0]], strict=True)]
        of = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((f"{n}", spread(rates[n], "{:.0f}"), "1" if n == counts[0] else of))
    busy = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores when it ended"
    publish(
        "Reading images ahead: processes that decode",
        [
            f"Random crops of {SIZE[0]}x{SIZE[1]} JPEG files ({size / 1000:.0f} kB on average, generated), scaled to "
            f"224x224, bytes in batches of {BATCH}; then normalised, one CPU thread. Medians of {options.rounds} "
            f"rounds of {options.batches} batches, smallest and largest in brackets.",
            table(("processes", "images/s", f"times as fast as {counts[0]}, by round"), rows),
            f"Measured beside other work: {busy}. With the process that asks there is one more than decodes, so on as "
            "many cores as processes the last of them cannot gain its whole share. Nothing here tells what a machine "
            "with a GPU and its dozens of cores reads.",
            machine(1, load),
        ],
        options.out,
    )


def images_per_second(data: Any, batches: int) -> float:
    torch.set_num_threads(1)
    coming = train_batches(data, ((0, n * BATCH, BATCH) for n in itertools.count()), torch.device("cpu"))
    next(coming)  # from here on it reads ahead, and at the end of the time as far
    begun = time.perf_counter()
    for _ in range(batches):
        next(coming)
    seconds = time.perf_counter() - begun
    coming.close()
    return batches * BATCH / seconds


def spread(values: list[float], form: str) -> str:
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


if __name__ == "__main__":
    main()
