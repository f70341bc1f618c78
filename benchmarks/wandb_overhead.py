"""What logger=wandb costs a training step: the run's rows sent offline by W&B's process, against that process stopped.

One training of gpt_tiny with a training row at each step, whose process for W&B is stopped and continued (SIGSTOP,
SIGCONT) between timed units of steps: both sides share weights, data, memory and thread. While it is stopped the loop
writes the same rows. What the process costs beside training (its share of the cores) is in A, its start is not: that
is the time of one call, measured apart. Beside it stands the CPU time of the process and of W&B's service for runs
of few and of many rows, which other work on the machine disturbs little (--pairs none: only this).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import tempfile
import time
from pathlib import Path

import loop
from pairs import HEADER, Pairs, machine, publish, row, table

from lawa_exp.axes.logger import follow
from lawa_exp.axes.logger.wandb.offline import Offline
from lawa_exp.axes.logger.wandb.settings import WandbLogger
from lawa_exp.storage.rundir import RunDir

UNIT = 20  # steps timed together
FEW, MANY = 100, 5100  # rows of the runs whose CPU time is taken


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", choices=("timed", "none"), default="timed")
    parser.add_argument("--within", type=float, default=0.005, help="half-width of the 95%% interval to reach")
    parser.add_argument("--seconds", type=float, default=180, help="stop after so long all the same")
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    few, many = (statistics.median(cpu_seconds(n) for _ in range(3)) for n in (FEW, MANY))
    cpu = (
        f"CPU time of W&B's process and service, at low priority beside training: {few:.2f} s for a run of {FEW:,} "
        f"rows, {many:.2f} s for one of {MANY:,} (medians of 3): {(many - few) / (MANY - FEW) * 1e3:.2f} ms a row, the "
        "rest is the start and the end. The training itself writes its rows as without W&B."
    )
    if options.pairs == "none":
        publish("What logger=wandb costs", [cpu, machine(options.threads or os.cpu_count(), load)], options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        pairs, threads, starts, rows = measure(options, Path(folder))
    publish(
        "What logger=wandb costs a training step",
        [
            f"A: the rows go to an offline W&B run; B: W&B's process is stopped. A row at each step; times are "
            f"for one step of gpt_tiny, units of {UNIT} steps. The offline file had {rows:,} of the steps at the end.",
            table(HEADER, [row("gpt_tiny, 16x128, a row at each step", "wandb", "stopped", pairs, UNIT)]),
            cpu,
            f"Starting the process takes the training {statistics.median(starts) * 1e3:.1f} ms, once.",
            machine(threads, load),
        ],
        options.out,
    )


def cpu_seconds(rows: int) -> float:
    """Of sending a run of so many training rows, offline."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.path.mkdir()
        lines = [
            {
                "step": s,
                "split": "train",
                "weights": "live",
                "loss": 3 / s,
                "lr": 0.003,
                "grad_norm": 1 / s,
                "batch_size": 16,
            }
            for s in range(1, rows + 1)
        ]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        run.mark("DONE", step=rows)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = follow.launch(WandbLogger(300.0, "offline", "benchmark", None, False), run)
        process.communicate()
        assert process.returncode == 0, (run.path / "wandb" / "log.txt").read_text()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (path,) = run.path.glob("wandb/offline-run-*/*.wandb")
        assert len(Offline(path).history) == rows
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(options: argparse.Namespace, folder: Path) -> tuple[Pairs, int | None, list[float], int]:
    words = [f"trainer.threads={options.threads}"] if options.threads else []
    p = loop.prepared("gpt_tiny", [*words, "logger.every=1"], folder)
    pairs = Pairs(options.within, max_seconds=options.seconds, warm_up=2)
    run = RunDir(p.run_dir)
    settings = WandbLogger(60.0, "offline", "benchmark", None, False)
    starts: list[float] = []
    unit: list[float] = []
    process = None

    def after_step(seconds: float) -> bool:
        nonlocal process
        if process is None:
            start = time.perf_counter()
            process = follow.launch(settings, run)
            starts.append(time.perf_counter() - start)
        if not list(run.path.glob("wandb/offline-run-*/*.wandb")):  # it has not begun yet
            return False
        unit.append(seconds)
        if len(unit) == UNIT:
            pairs.record(sum(unit))
            unit.clear()
            os.kill(process.pid, signal.SIGCONT if pairs.turn == 0 else signal.SIGSTOP)
        return pairs.done

    loop.watch(p, after_step)
    assert process is not None and process.stdin is not None
    os.kill(process.pid, signal.SIGCONT)
    process.stdin.close()
    process.wait(60)
    (path,) = run.path.glob("wandb/offline-run-*/*.wandb")
    return pairs, p.config.trainer.threads, starts, len(Offline(path).history)


if __name__ == "__main__":
    main()
