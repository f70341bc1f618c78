"""How dashboard and summary grow with runs, with seeds of one setting and with averages, and with a long metrics.jsonl.

Whole processes; CPU seconds, and the most memory that one had to itself. One small run is trained for real; the others
are its small files with rows that are made up: 500 evaluations of the live weights and three averages each. A ratio
above says how much more the next size costs than the one before: twice the runs, so 2 is linear.

    python benchmarks/scale.py --out results/speed/scale.md
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pairs import machine, publish, table

SIZES = (25, 50, 100, 200)
EVALUATIONS = 500
LONG = (128, 1024)  # MB of metrics.jsonl
LIMITS = {"seconds": 15.0, "memory": 1e9}  # of 200 runs; of a metrics.jsonl of 1 GB, bytes
TRAINED = [
    *("dataset=pydocs", "model.layers=1", "model.width=32", "model.heads=2", "model.context=32", "batch.size=4"),
    *("steps=40", "evaluate.every=20", "evaluate.samples=8", "k=2", "spacing=10", "trainer.threads=1"),
]
HEAD = ("what", "command", "CPU time", "to the size before", "most memory")


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="runs")
    parser.add_argument("--long", type=int, nargs="*", default=list(LONG), help="MB of metrics.jsonl")
    parser.add_argument("--out", type=Path, help="file for the tables")
    options = parser.parse_args()
    lines: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = root / "one"
        subprocess.run(
            [sys.executable, "-m", "lawa_exp", *TRAINED, f"run_dir={one}"], check=True, stdout=subprocess.DEVNULL
        )
        for kind in ("settings x 5 seeds", "seeds of one setting"):
            before: dict[str, float] = {}
            for n in options.sizes:
                sweep = make_sweep(root / kind.split()[0] / str(n), one, n, kind)
                lines += measured(f"{n} runs, {kind}", sweep, before)
                shutil.rmtree(sweep.parents[1])
        before = {}
        for n in options.sizes:
            sweep = make_sweep(root / "averages" / str(n), one, 1, "one run", averages=n)
            lines += measured(f"1 run with {n} averages", sweep, before)
            shutil.rmtree(sweep.parents[1])
        before = {}
        for size in options.long:
            sweep = make_sweep(root / "long" / str(size), one, 1, "one run", bytes_of_rows=size * 1_000_000)
            lines += measured(f"a metrics.jsonl of {size:,} MB", sweep, before, ("dashboard", "summary", "status"))
            shutil.rmtree(sweep.parents[1])
    limits = f"Limits: {LIMITS['seconds']:g} s for 200 runs on a quiet machine, 1 GB of memory for a file of 1 GB."
    publish(
        "Dashboard and summary, how they grow",
        [
            f"{EVALUATIONS} evaluations of the live weights and three averages a run, but where it says more. {limits}",
            table(HEAD, lines),
            machine(len(os.sched_getaffinity(0)), load),
        ],
        options.out,
    )


def make_sweep(root: Path, one: Path, runs: int, kind: str, averages: int = 3, bytes_of_rows: int = 0) -> Path:
    """A sweep of finished runs with made-up rows. bytes_of_rows: training rows are added up to so many."""
    ids = [f"lawa-k{k}-s10" for k in range(2, 2 + averages)]
    entries = []
    for i in range(runs):
        seed, setting = (i % 5, i // 5) if kind.startswith("settings") else (i, 0)
        run = root / f"gpt-{setting}-seed{seed}"
        run.mkdir(parents=True)
        for name in ("config.yaml", "timing.jsonl", "provenance.jsonl", "report.md", "DONE"):
            shutil.copy(one / name, run / name)
        text = (
            (one / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}").replace("peak: ", f"peak: {setting}")
        )
        (run / "config.yaml").write_text(text)
        write_rows(run / "metrics.jsonl", ids, i, bytes_of_rows)
        overrides = [f"seed={seed}", f"lr.peak={setting}", "avg=lawa"]
        entries.append({"overrides": overrides, "run_dir": str(run), "steps": 20 * EVALUATIONS, "averages": ids})
    sweep = root / "sweeps" / "many"
    sweep.mkdir(parents=True)
    (sweep / "manifest.json").write_text(json.dumps({"command": "", "entries": entries}))
    return sweep


def write_rows(path: Path, ids: list[str], seed: int, bytes_of_rows: int) -> None:
    noise = random.Random(seed)
    with path.open("w") as file:
        for step in range(20, 20 * EVALUATIONS + 1, 20):
            trained = {"split": "train", "weights": "live", "loss": 3.0, "lr": 0.003, "grad_norm": 1.0, "batch_size": 4}
            file.write(json.dumps({"step": step, **trained}) + "\n")
            for k, weights in enumerate(["live", *ids], 1):
                averaged = {} if weights == "live" else {"averager": "lawa", "k": k, "spacing": 10, "start": 0}
                loss = 5 / (1 + step / 1000) + noise.gauss(0, 0.01)
                seen = {"eval_samples": 64, "trained_samples": step * 4, "trained_tokens": step * 128}
                row = {"step": step, "split": "val", "weights": weights, **averaged, "loss": loss, **seen}
                file.write(json.dumps(row) + "\n")
        while file.tell() < bytes_of_rows:
            step += 1
            numbers = {"loss": noise.random(), "lr": 0.003, "grad_norm": noise.random(), "batch_size": 4}
            file.write(json.dumps({"step": step, "split": "train", "weights": "live", **numbers}) + "\n")


def measured(
    what: str, sweep: Path, before: dict[str, float], commands: tuple[str, ...] = ("dashboard", "summary")
) -> list[tuple[str, ...]]:
    """A line for each command. before: the CPU seconds of the size before, by command."""
    lines = []
    for name in commands:
        seconds, memory = cost([sys.executable, "-m", f"lawa_exp.{name}", str(sweep)])
        ratio = f"{seconds / before[name]:.1f} times" if name in before else ""
        before[name] = seconds
        lines.append((what, name, f"{seconds:.1f} s", ratio, f"{memory / 1e9:.2f} GB"))
        print(*lines[-1], sep=" | ", flush=True)
    return lines


def cost(command: list[str]) -> tuple[float, int]:
    """CPU seconds of a process, and the most bytes that it had to itself (RssAnon): without the code of packages."""
    process, most, ended = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0, 0
    while not ended:
        with suppress(OSError):
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            most = max(most, int(found[1]) * 1024 if found else 0)
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        time.sleep(0.02)
    assert status == 0, f"{command} failed"
    return used.ru_utime + used.ru_stime, most


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
