"""How long `python -m lawa_exp.status` takes for a sweep of 1,000 runs: whole processes, from the command to its table.

One small run is trained for real and copied; then 940 copies are done, 20 running (another machine's heartbeats, just
renewed), 10 each failed, stopped, lost and not started. Files are cached: this is the command's own work.

    python benchmarks/status.py --out results/speed/status.md
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

RUNS = 1_000
LIMIT = 0.5  # seconds
STATES = {"running": 20, "failed": 10, "stopped": 10, "lost": 10, "not started": 10}  # the others are done
TRAINED = [
    *("dataset=pydocs", "model.layers=1", "model.width=32", "model.heads=2", "model.context=32", "batch.size=4"),
    *("steps=2000", "evaluate.every=10", "evaluate.samples=8", "avg=none", "logger.every=1", "trajectory.keep=none"),
]


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sweep = make_sweep(root, train(root / "one"))
        status = [sys.executable, "-m", "lawa_exp.status", str(sweep)]
        rows = []
        for flags in ([], ["--json"]):
            seconds, busy = [], []
            for _ in range(options.repeat + 1):
                beat(root)
                start, before = time.perf_counter(), cpu_time()
                said = subprocess.run([*status, *flags], check=True, capture_output=True, text=True).stdout
                seconds.append(time.perf_counter() - start)
                busy.append(cpu_time() - before)
            check(said, flags)
            rows.append(line(" ".join(["python -m lawa_exp.status SWEEP", *flags]), seconds[1:], busy[1:]))

    from pairs import machine, publish, table

    publish(
        f"Status of {RUNS:,} runs",
        [
            f"Wall and CPU time of whole processes, files cached; {RUNS:,} run directories, 2,200 rows each: "
            + ", ".join(f"{n} {state}" for state, n in STATES.items())
            + ", the others done.",
            table(("command", "median", "least to most", "limit", "CPU time", "repetitions"), rows),
            machine(len(os.sched_getaffinity(0)), load),
        ],
        options.out,
    )


def train(folder: Path) -> Path:
    command = [sys.executable, "-m", "lawa_exp", *TRAINED, f"run_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def kinds() -> Iterator[str]:
    for state, n in STATES.items():
        yield from [state] * n
    while True:
        yield "done"


def make_sweep(root: Path, one: Path) -> Path:
    """The small files of `one`, RUNS times, and a manifest."""
    (root / "runs").mkdir()
    entries = []
    for i, kind in enumerate(islice(kinds(), RUNS)):
        run = root / "runs" / f"gpt-seed{i}-{kind.replace(' ', '_')}"
        entries.append({"overrides": [f"seed={i}"], "run_dir": str(run), "steps": 2000, "averages": []})
        if kind == "not started":
            continue
        run.mkdir()
        small = ("config.yaml", "metrics.jsonl", "timing.jsonl", "provenance.jsonl", "report.md", "DONE")
        for name in (".checksums", *small):
            shutil.copy(one / name, run / name)
        if kind != "done":
            (run / "DONE").unlink()
            (run / ".checksums").unlink()
        if kind == "stopped":
            (run / "STOPPED").write_text('{"step": 1000}')
        if kind == "failed":
            (run / "FAILED").write_text(json.dumps({"reason": "ValueError: x", "traceback": "line\n" * 50}))
    sweep = root / "sweeps" / "thousand"
    sweep.mkdir(parents=True)
    (sweep / "manifest.json").write_text(json.dumps({"command": "", "entries": entries}))
    return sweep


def beat(root: Path) -> None:
    """The heartbeats of the running runs are new, those of the lost ones old."""
    for run in (root / "runs").iterdir():
        if run.name.endswith(("running", "lost")):
            at = time.time() - (300 if run.name.endswith("lost") else 0)
            facts = {"step": 500, "steps": 2000, "stepped": at, "unit": "token", "tokens_per_second": 1e4}
            who = {"time": at, "host": "elsewhere", "process": 1, "job": None, "seconds_left": 60}
            (run / ".heartbeat").write_text(json.dumps({**who, **facts}))


def check(said: str, flags: list[str]) -> None:
    """What was timed is the right answer."""
    if flags:
        counts = json.loads(said)["counts"]
        assert {state: counts[state] for state in STATES} == STATES, counts
    else:
        assert len(said.splitlines()) == RUNS + 3, said[:200]


def cpu_time() -> float:
    """Seconds that the processes which ended so far have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(what: str, seconds: list[float], busy: list[float]) -> tuple[str, ...]:
    median = statistics.median(seconds)
    verdict = "" if max(seconds) < LIMIT else ", MISSED"
    spread = f"{min(seconds):.2f} to {max(seconds):.2f} s"
    own = f"{statistics.median(busy):.2f} s"
    return (f"`{what}`", f"{median:.2f} s", spread, f"{LIMIT:g} s{verdict}", own, str(len(seconds)))


if __name__ == "__main__":
    main()
