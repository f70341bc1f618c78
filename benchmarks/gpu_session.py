"""All that is to be measured on one GPU, in five minutes: its tests, what averaging costs, how fast it trains.

    make gpu-session                                     # pages in results/gpu/, each written as its stage ends
    python benchmarks/gpu_session.py --minutes 12        # the same with more time for each stage
    python benchmarks/gpu_session.py --smoke             # every stage tiny, on a CPU: does it work

Stages are processes of their own, in the order of what a short session must not lack. Each has a part of the time; one
that needs more is stopped, said to be so, and the next begins. What was written before is kept. On a machine without a
network: launch/airgapped.sh.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pairs import machine, publish, table

MINUTES = 5.0
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Stage:
    """words: of its command, {out} the page's file. share: of the time, at most. smoke: words that make it tiny, in the
    place of `whole`."""

    name: str
    words: tuple[str, ...]
    share: float
    smoke: tuple[str, ...]
    whole: tuple[str, ...] = ()


def speed(model: str, share: float, *words: str) -> Stage:
    own = ("benchmarks/gpu_speed.py", "--models", model, "--out", "{out}", *words)
    return Stage(f"speed_{model}", own, share, ("--smoke",))


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
AVERAGING = ("benchmarks/averaging_gpu.py", "--out", "{out}")
TINY = ("--device", "cpu", "--tokens", "64", "--layers", "1", "--width", "96", "--seconds", "1", "--within", "1")
STAGES = (
    Stage("tests", (*PYTEST, "-m", "gpu"), 0.25, ("tests/unit/test_devices.py", "--co")),
    Stage("averaging", AVERAGING, 0.3, TINY, ("--compile", "--seconds", "25")),
    speed("gpt2_small", 0.2),
    speed("gpt2_medium", 0.2),
    speed("gpt2_large", 0.25),
    speed("resnet50", 0.25),
)


def main() -> int:
    load, begun = os.getloadavg()[0], time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all stages; default: {MINUTES:g}")
    parser.add_argument("--stages", help="some of them, with commas; default: all")
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU; no figure is a result")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the pages")
    options = parser.parse_args()
    known = {stage.name: stage for stage in STAGES}
    names = options.stages.split(",") if options.stages else list(known)
    if unknown := set(names) - known.keys():
        parser.error(f"--stages {sorted(unknown)[0]}: expected some of {', '.join(known)}")
    import torch

    if not options.smoke and not torch.cuda.is_available():
        print("error: no CUDA device here; --smoke runs every stage tiny, on a CPU", file=sys.stderr)
        return 2
    where = "a CPU (smoke test: no figure is a result)" if options.smoke else torch.cuda.get_device_name()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str]] = []
    for name in names:
        left = 60 * options.minutes - (time.perf_counter() - begun)
        rows.append(stage_row(known[name], min(left, 60 * options.minutes * known[name].share), options))
        publish(
            f"One session on {where}",
            [table(("stage", "how it ended", "seconds", "page"), rows), machine(torch.get_num_threads(), load)],
            options.out / "session.md",
        )
    return 1 if any("failed" in row[1] for row in rows) else 0


def stage_row(stage: Stage, limit: float, options: argparse.Namespace) -> tuple[str, str, str, str]:
    """Runs a stage for at most `limit` seconds: its line of the table."""
    page, log = options.out / f"{stage.name}.md", options.out / f"{stage.name}.log"
    if limit < 5:
        return stage.name, "not begun: no time was left", "-", "-"
    words = [word.format(out=page) for word in stage.words] + list(stage.smoke if options.smoke else stage.whole)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    began, earlier = time.perf_counter(), written(page)
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=said, stderr=said, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit)
            ended = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after its {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # with what it started, which would slow the next stage
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    shown = page.name if written(page) != earlier else log.name
    print(f"{stage.name}: {ended}; {options.out / shown}", flush=True)
    return stage.name, ended, f"{time.perf_counter() - began:.0f}", f"[{shown}]({shown})"


def written(page: Path) -> int | None:
    """When, to tell whether a stage wrote its page; None: there is none."""
    return page.stat().st_mtime_ns if page.exists() else None


if __name__ == "__main__":
    sys.exit(main())
