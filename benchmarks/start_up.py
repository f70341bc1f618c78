"""How long a person waits: `--help`, `--cfg job`, and the default run from the command to its first training step.

The first step counts as done when its row stands in metrics.jsonl. Rows are on the disk once a state is saved, so the
default run gets `logger.every=1 save.every=1`: the time holds one save too many. It is stopped by SIGTERM then.

    python benchmarks/start_up.py --out results/speed/start_up.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lawa_exp.storage.rows import read_rows

QUICK = {  # words after `python -m`, and the seconds that they may take
    "lawa_exp --help": 1.0,
    "lawa_exp --cfg job": 1.0,
    "lawa_exp model=gpt2_medium avg=lawa k=5 spacing=1000 --cfg job": 1.0,
    "lawa_exp.readout --help": 1.0,
    "lawa_exp.data --help": 1.0,
    "lawa_exp.average --help": 1.0,
    "lawa_exp.status --help": 1.0,
    "lawa_exp.dashboard --help": 1.0,
}
FIRST_STEP = ["logger.every=1", "save.every=1"]
FIRST_STEP_LIMIT = 6.0


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10, help="of each quick command")
    parser.add_argument("--repeat-runs", type=int, default=5, help="of the default run's start")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()

    rows = []
    for words, limit in QUICK.items():
        seconds = [quick(words.split()) for _ in range(options.repeat + 1)][1:]  # the first one fills the caches
        imported = "imported" if imports_torch(words.split()) else "not imported"
        rows.append(line(f"`python -m {words}`", seconds, limit, imported))
    seconds = [first_step() for _ in range(options.repeat_runs + 1)][1:]
    rows.append(line("`python -m lawa_exp`, to its first training step", seconds, FIRST_STEP_LIMIT, "imported"))

    from pairs import machine, publish, table  # only now: they import torch, which would warm it up

    publish(
        "Start-up",
        [
            "Wall time of whole processes, files cached (a first call of each is left out).",
            table(("command", "median", "least to most", "limit", "torch", "repetitions"), rows),
            machine(len(os.sched_getaffinity(0)), load),
        ],
        options.out,
    )


def line(what: str, seconds: Sequence[float], limit: float, imported: str) -> tuple[str, ...]:
    median = statistics.median(seconds)
    verdict = "" if median < limit else ", MISSED"
    spread = f"{min(seconds):.2f} to {max(seconds):.2f} s"
    return (what, f"{median:.2f} s", spread, f"{limit:g} s{verdict}", imported, str(len(seconds)))


def quick(words: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def imports_torch(words: Sequence[str]) -> bool:
    """Whether the command imports torch, by Python's own account of its imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return any(words.rpartition("|")[2].strip() == "torch" for words in done.stderr.splitlines())


def first_step() -> float:
    """Seconds from the command of the default run to the row of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "lawa_exp", f"run_dir={run}", *FIRST_STEP]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not any(r["split"] == "train" for r in read_rows(run / "metrics.jsonl")):
                if process.poll() is not None:
                    sys.exit(f"the default run ended with exit code {process.returncode} before its first step")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
