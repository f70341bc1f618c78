"""What a library would do in the place of code of ours: locks by filelock, decoding of images by torch's DataLoader.

    python benchmarks/libraries.py --out results/speed/libraries.md

Both sides of a row take turns in one process (see pairs.py); a ratio above 1 says that ours is faster. Start-up and
memory are medians of a few starts. The decoding processes of both sides read the same generated photographs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import loop
import numpy as np
import torch
from image_tree import write_images
from pairs import HEADER, Pairs, machine, publish, row, run, table

from lawa_exp.axes.dataset.decoding import Decoders
from lawa_exp.axes.dataset.image_folder import ImageFolderSettings, pixels
from lawa_exp.system.files import locked, turn

BATCH, WORKERS, STARTS, TAKEN = 64, 2, 5, 200
AHEAD, TIMED = 5, 12  # batches: that a side may have ready, and that are timed together
HOLDER = """
import sys, time
from pathlib import Path
kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "ours":
    from lawa_exp.system.files import turn as lock
else:
    from filelock import FileLock as lock
print("ready", flush=True)
for line in sys.stdin:
    with lock(path):
        print("held", flush=True)
        sys.stdin.readline()
        released = time.perf_counter_ns()
    print(released, flush=True)
"""


class Requests(torch.utils.data.Dataset):
    """A batch's images, decoded: what a worker of a DataLoader does."""

    def __getitem__(self, requests: list[tuple[Any, ...]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([pixels(*one) for one in requests]))


def in_workers(batches: Iterator[list[tuple[Any, ...]]]) -> Iterator[torch.Tensor]:
    """As many processes as ours, started as safely (spawn: the trainer has threads), two batches ahead each."""
    return iter(
        torch.utils.data.DataLoader(
            Requests(), batch_size=None, sampler=batches, num_workers=WORKERS, multiprocessing_context="spawn"
        )
    )


def end(batches: Any) -> None:
    """A DataLoader's processes end now, rather than when Python ends."""
    if shut_down := getattr(batches, "_shutdown_workers", None):
        with suppress(RuntimeError):  # a worker may abort at its end
            shut_down()


def ours(batches: Iterator[list[tuple[Any, ...]]], size: int) -> Iterator[np.ndarray]:
    """Whole batches, the next one decoded while nobody waits, as the trainer's reader has it."""
    from concurrent.futures import ThreadPoolExecutor

    decoders = Decoders(WORKERS, (size, size, 3))
    with ThreadPoolExecutor(1) as ahead:
        coming = [ahead.submit(decoders.map, pixels, next(batches)) for _ in range(2)]
        while True:
            yield coming.pop(0).result()
            coming.append(ahead.submit(decoders.map, pixels, next(batches)))


def memory_of_children() -> float:
    """MB of this process's children: their part of what is shared counts once (PSS)."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    total = 0
    for pid in children.stdout.split():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total / 1000


def decoding(folder: Path, seconds: float) -> tuple[tuple[str, ...], str]:
    write_images(folder / "images", 4, 32, 1)
    words = [f"dataset.path={folder / 'images'}", "trainer.threads=1"]
    settings = loop.prepared("resnet50", words, folder).config.dataset
    assert isinstance(settings, ImageFolderSettings)
    paths = sorted(str(path) for path in folder.glob("images/train/*/*"))
    draws = np.random.default_rng(0)

    def batches() -> Iterator[list[tuple[Any, ...]]]:
        for number in itertools.count():
            chosen = [paths[(number * BATCH + i) % len(paths)] for i in range(BATCH)]
            yield [(settings, path, draws.random(23)) for path in chosen]

    size = settings.image_size
    started: dict[str, list[float]] = {"ours": [], "DataLoader": []}
    memory: dict[str, float] = {}
    kinds: dict[str, Callable[[], Iterator[Any]]] = {
        "ours": lambda: ours(batches(), size),
        "DataLoader": lambda: in_workers(batches()),
    }
    for _ in range(STARTS):
        for kind, make in kinds.items():
            begin = time.perf_counter()
            coming = make()
            first = next(coming)
            started[kind].append(time.perf_counter() - begin)
            memory[kind] = memory_of_children()
            assert first.shape == (BATCH, size, size, 3)
            end(coming)
    one, two = kinds["DataLoader"](), kinds["ours"]()
    pairs = Pairs(within=0.05, max_seconds=seconds, warm_up=1)
    while not pairs.done:
        coming = (one, two)[pairs.turn]
        for _ in range(AHEAD):  # decoded while the other had its turn
            next(coming)
        begin = time.perf_counter()
        for _ in range(TIMED):
            next(coming)
        pairs.record(time.perf_counter() - begin)
    end(one)
    name = f"a batch of {BATCH} images, {WORKERS} processes"
    text = ", ".join(f"{kind} {statistics.median(s):.1f} s" for kind, s in started.items())
    used = ", ".join(f"{kind} {mb:.0f} MB" for kind, mb in memory.items())
    return row(
        name, "DataLoader", "ours", pairs, per=TIMED
    ), f"Until the first batch: {text}. Memory of the processes: {used}."


def locks(folder: Path, seconds: float) -> tuple[list[tuple[str, ...]], str]:
    from filelock import FileLock

    def taken(make: Callable[[], Any]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(TAKEN):
                with make():
                    pass

        return work

    free = run(taken(lambda: FileLock(folder / "a")), taken(lambda: turn(folder / "b")), Pairs(max_seconds=seconds / 2))
    refusing = run(
        taken(lambda: FileLock(folder / "c", blocking=False)),
        taken(lambda: locked(folder / "d", "a folder")),
        Pairs(max_seconds=seconds / 2),
    )
    rows = [
        row("a lock that nobody holds, waiting where it is held", "filelock", "ours", free, per=TAKEN),
        row(
            "the same, refusing where it is held (ours writes down who holds it)",
            "filelock",
            "ours",
            refusing,
            per=TAKEN,
        ),
    ]
    waits = {kind: statistics.median(handed_over(kind, folder / kind)) for kind in ("filelock", "ours")}
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    imports = {
        name: statistics.median(
            float(subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True).stdout)
            for _ in range(STARTS)
        )
        for name in ("filelock", "fcntl")
    }
    waited = ", ".join(f"{kind} {1e3 * s:.2f} ms" for kind, s in waits.items())
    loaded = ", ".join(f"{kind} {1e3 * s:.1f} ms" for kind, s in imports.items())
    return rows, f"From a release in one process to the lock in another that waits: {waited}. Import: {loaded}."


def handed_over(kind: str, path: Path) -> list[float]:
    """Seconds between the release in another process and the lock here, of some hand-overs."""
    from filelock import FileLock

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout
    holder.stdout.readline()
    found = []
    for number in range(25):
        holder.stdin.write("take\n")
        holder.stdin.flush()
        holder.stdout.readline()
        timer = subprocess.Popen(["sleep", f"{0.2 + 0.007 * number}"])

        def release(timer: subprocess.Popen = timer) -> None:
            timer.wait()
            holder.stdin.write("release\n")
            holder.stdin.flush()

        from threading import Thread

        thread = Thread(target=release)
        thread.start()
        with (turn if kind == "ours" else FileLock)(path):
            here = time.perf_counter_ns()
        thread.join()
        found.append((here - int(holder.stdout.readline())) / 1e9)
    holder.stdin.close()
    holder.wait()
    return found


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of pairs, for each table; default: 60")
    parser.add_argument("--out", type=Path, help="file for the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        of_locks, about_locks = locks(Path(folder), options.seconds)
        of_images, about_images = decoding(Path(folder), options.seconds)
    publish(
        "Libraries in the place of code of ours",
        [table(HEADER, [*of_locks, of_images]), about_locks, about_images, machine(1, load)],
        options.out,
    )


if __name__ == "__main__":
    main()
