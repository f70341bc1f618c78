"""This checkout against an earlier commit of its own: start-up, a training step, averaging of files.

    python benchmarks/before_after.py COMMIT --out results/speed/before_after.md

COMMIT is exported to a temporary folder. Commands are timed as whole processes, in pairs. For the steps each side has
one process that trains with its own `loop.py` and answers "so many seconds for so many steps", again in pairs: while
one side trains, the other waits for its turn.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pairs import Pairs, machine, publish, run, table

ROOT = Path(__file__).parents[1]
LIMIT = 1.02  # of the upper end of the interval of after/before
COMMANDS = {  # what is timed: the words after `python -m`
    "--help": "lawa_exp --help",
    "--cfg job": "lawa_exp --cfg job",
    "plan=true": "lawa_exp plan=true",
    "average --help": "lawa_exp.average --help",
    "readout --help": "lawa_exp.readout --help",
}
STEPS = {"gpt_tiny": 10, "10.6M": 1}  # steps that are timed at once
FILES, SHAPE = 5, (20, 1024, 1024)  # safetensors of 84 MB


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", metavar="COMMIT")
    parser.add_argument("--within", type=float, default=0.01, help="half-width of the interval to reach")
    parser.add_argument("--seconds", type=float, default=120, help="the most that one comparison takes")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--train", choices=STEPS, help=argparse.SUPPRESS)  # one side's process
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    if options.commit is None:
        parser.error("COMMIT is missing")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as files:
        before = Path(folder) / "before"
        export(options.commit, before)
        make = functools.partial(Pairs, within=options.within, max_seconds=options.seconds)
        compared = {name: command_pairs(words.split(), before, make()) for name, words in COMMANDS.items()}
        out = Path(files) / "out"
        words = ["lawa_exp.average", *map(str, write_files(Path(files))), "--out", str(out)]
        compared[f"average, {FILES} files of 84 MB"] = command_pairs(words, before, make(), out)
        for size in STEPS:
            compared[f"a step, {size}"] = step_pairs(size, before, make())
    rows = []
    for name, pairs in compared.items():
        ratio, half = pairs.interval()
        times = [f"{1000 * pairs.median(side):,.1f} ms" for side in (0, 1)]
        rows.append([name, f"{ratio:.4f}", f"{ratio - half:.4f} to {ratio + half:.4f}", *times, pairs.verdict()])
    slower = [name for name, pairs in compared.items() if sum(pairs.interval()) > LIMIT]
    header = ["what", "after / before", "95% interval", "after", "before", "pairs"]
    verdict = f"Upper ends of the interval over {LIMIT}: {', '.join(slower) or 'none'}."
    title = f"Before and after: this checkout against {options.commit}"
    publish(title, [table(header, rows), verdict, machine(1, load)], options.out)


def export(commit: str, folder: Path) -> None:
    """The files of a commit."""
    done = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def environment(side: Path) -> dict[str, str]:
    """Python keeps what it compiled, as it does for users; the pairs that warm up compile it."""
    path = f"{side}:{side / 'benchmarks'}"
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def command_pairs(words: list[str], before: Path, pairs: Pairs, out: Path | None = None) -> Pairs:
    """Whole processes; what they print is dropped. out: a folder that they write, and that is removed each time."""

    def process(side: Path) -> None:
        if out:
            shutil.rmtree(out, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-P", "-m", *words], env=environment(side), stdout=subprocess.DEVNULL, check=True
        )

    return run(functools.partial(process, ROOT), functools.partial(process, before), pairs)


def step_pairs(size: str, before: Path, pairs: Pairs) -> Pairs:
    sides = [worker(size, side) for side in (ROOT, before)]
    while not pairs.done:
        pairs.record(ask(sides[pairs.turn], STEPS[size]))
    for side in sides:
        ask(side, 0)
        side.wait()
    return pairs


def worker(size: str, side: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-P", str(Path(__file__)), "--train", size]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(words, env=environment(side), text=True, **pipes)  # type: ignore[call-overload]


def ask(side: subprocess.Popen[str], steps: int) -> float:
    """Seconds of so many steps; 0 ends the training."""
    assert side.stdin and side.stdout
    side.stdin.write(f"{steps}\n")
    side.stdin.flush()
    return float(side.stdout.readline())


def train(size: str) -> None:
    """One side: trains, and answers how long each number of steps took that is read from stdin."""
    import loop  # of this side: PYTHONPATH has its folder

    wanted, seconds = 0, 0.0
    answer = os.fdopen(os.dup(1), "w")  # the loop's own output goes elsewhere

    def after_step(taken: float) -> bool:
        nonlocal wanted, seconds
        if wanted:
            wanted, seconds = wanted - 1, seconds + taken
            if not wanted:
                print(seconds, file=answer, flush=True)
        if not wanted:
            wanted, seconds = int(sys.stdin.readline()), 0.0
            if not wanted:
                print(0, file=answer, flush=True)
                return True
        return False

    with tempfile.TemporaryDirectory() as folder:
        loop.watch(loop.prepared(size, ["trainer.threads=1"], Path(folder)), after_step)


def write_files(folder: Path) -> list[Path]:
    """Checkpoints of float32."""
    import torch

    from lawa_exp.storage.safetensors import write_tensors

    paths = [folder / f"step_{i}.safetensors" for i in range(1, FILES + 1)]
    for i, path in enumerate(paths):
        write_tensors(path, {"weight": torch.randn(SHAPE, generator=torch.Generator().manual_seed(i))})
    return paths


if __name__ == "__main__":
    main()
