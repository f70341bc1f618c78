"""The ladder's 10.6M rung on one GPU, in eight minutes: a trunk with its averages, and its cool-downs.

    make gpu-ladder                                   # pages in results/gpu/; needs enwiki2015 in LAWA_DATA
    python benchmarks/gpu_ladder.py --minutes 12
    python benchmarks/gpu_ladder.py --smoke           # a tiny model for some steps, on a CPU: does it work

Data, context, batch and rules are those of results/ladder/README.md, with one seed and bfloat16, compiled. The trunk's
rate is the one that the pilot chose for the 0.12M model, divided by the ratio of the widths: there is no time for a
pilot. Horizons of 2.5, 5, 10 and 20 tokens a parameter come one after another, each with the cool-down of its last
20%, so that what a short session leaves out is the longest. One is not begun where it would not fit into the time by
the speed of the one before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ladder import EMA4, RUNGS, SMOKE, Command, Rung, Runs, cooldowns, peaks, shape, trunk
from pairs import machine, publish, table

ROOT = Path(__file__).parents[1]
WIDTH = 384
RUNG = Rung(
    shape("gpt_10.6m", 6, WIDTH, 6), "bfloat16", (12_960, 25_920, 51_840, 103_680), (), (0,), (), (), (12_960,)
)  # fmt: skip
SMALL = replace(RUNG, model=shape(SMOKE, 1, 16, 2), dtype="float32", horizons=(80, 160))
TINY = "dataset=pydocs trainer.device=cpu trainer.threads=1 evaluate.samples=8 evaluate.batch_size=8 batch.size=2"
ON_GPU = "trainer.device=cuda trainer.compile=true"


def main() -> int:
    load, begun = os.getloadavg()[0], time.perf_counter()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=8.0, help="in all; default: 8")
    p.add_argument("--peak", type=float, help="of the constant rate; default: by the rule above")
    p.add_argument("--root", type=Path, default=Path("runs/gpu_ladder"), help="folder of the runs")
    p.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the pages")
    p.add_argument("--smoke", action="store_true", help="tiny, on a CPU; no figure is a result")
    args = p.parse_args()
    import torch

    if not args.smoke and not torch.cuda.is_available():
        print("error: no CUDA device here; --smoke runs the same code tiny, on a CPU", file=sys.stderr)
        return 2
    rung, more = (SMALL, TINY.split()) if args.smoke else (RUNG, ON_GPU.split())
    peak = args.peak or scaled_peak()
    where = "a CPU (smoke test: no figure is a result)" if args.smoke else torch.cuda.get_device_name()
    rows: list[tuple[str, ...]] = []
    each, earlier, code = 0.0, 0, 0  # seconds of a step, the trunk's steps so far
    args.out.mkdir(parents=True, exist_ok=True)
    for horizon in rung.horizons:
        todo = horizon - earlier + horizon // 5
        left = 60 * args.minutes - (time.perf_counter() - begun)
        if each * todo > left:
            rows.append((f"{horizon:,}", f"not begun: {each * todo:.0f} s needed, {left:.0f} s left", *"-----"))
        else:
            start = time.perf_counter()
            commands = [trunk(rung, [peak], [horizon], [0]), branch(rung, peak, horizon)]
            code = next((c for command in commands if (c := train(command, args.root, more, left))), 0)
            seconds = time.perf_counter() - start
            each, earlier = seconds / todo, horizon
            ended = "failed" if code else f"{seconds:.0f} s"
            rows.append((f"{horizon:,}", ended, *(("-",) * 5 if code else losses(args.root, rung, peak, horizon))))
        head = ("horizon (steps)", "how long", "live", "EMA, half-life 4%", "best LAWA on val", "its loss", "cool-down")
        rule = f"Constant rate {peak:g}, seed 0; {' '.join(rung.words.split())}. Test losses, nats per byte."
        notes = [table(head, rows), rule, machine(torch.get_num_threads(), load)]
        publish(f"The ladder's 10.6M rung on {where}", notes, args.out / "ladder.md")
        if code:
            break
    lines = [json.dumps(run, sort_keys=True) + "\n" for run in found(args.root).runs]
    (args.out / "ladder.jsonl").write_text("".join(lines))
    return 1 if code else 0


def scaled_peak() -> float:
    small = RUNGS["0.12m"]
    usual = peaks(small, Runs(Path("nowhere"), ROOT / "results" / "ladder" / "rows.jsonl.gz"))["usual"]
    width = int(small.model.split("model.width=")[1].split()[0])
    return float(f"{usual * width / WIDTH:.3g}")


def branch(rung: Rung, peak: float, horizon: int) -> Command:
    return cooldowns(replace(rung, horizons=(horizon,)), peak, [0])


def train(command: Command, root: Path, more: list[str], limit: float) -> int:
    """Its exit code; 124 where the time was up."""
    words = [*command.words, f"runs_root={root}", *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        return subprocess.run(words, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return 124


def found(root: Path) -> Runs:
    return Runs(root, Path("nowhere"))


def losses(root: Path, rung: Rung, peak: float, horizon: int) -> tuple[str, ...]:
    """Live, EMA, the LAWA window that is best on val and its loss, and the cool-down, on test."""
    runs = found(root)
    want: dict[str, Any] = {**rung.kind("constant"), "seed": 0, "peak": peak}

    def test(weights: str, **key: Any) -> float:
        return runs.value({**want, **key}, horizon, weights, "test")

    (trained,) = [r for r in runs.runs if all(r["key"].get(k) == v for k, v in want.items())]
    at = [r for r in trained["rows"] if r["step"] == horizon and r["split"] == "val" and r["loss"] is not None]
    lawa = min((r for r in at if r["weights"].startswith("lawa-")), key=lambda r: r["loss"])["weights"]
    values = test("live"), test(EMA4), test(lawa), test("live", **rung.kind("wsd"), horizon=horizon)
    live, ema, of_lawa, annealed = (f"{value:.4f}" for value in values)
    return live, ema, lawa, of_lawa, annealed


if __name__ == "__main__":
    sys.exit(main())
