"""What `lawa suggest FOLDER --data` takes beyond its evaluations, of GPT-2 small in nanoGPT's files.

    python benchmarks/suggest_folder.py [--checkpoints 20] [--samples 10] [--out results/speed/suggest_folder.md]

The command runs as users run it, but for a clock around its forward passes (`batch_sums`, once a candidate). All other
time is start-up, reading the checkpoints, making the averages, and tables. Weights and tokens are random: only the time
is looked at. One run with the files just written, one with them in the system's cache as far as they fit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pairs import machine, publish

from lawa_exp.axes.model.gpt.settings import GPTSettings

SIZE = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "block_size": 64,
    "bias": True,
    "vocab_size": 50304,
    "dropout": 0.0,
}


def write_checkpoints(folder: Path, count: int) -> None:
    """nanoGPT's files with weights of a new GPT-2 small, a little apart from one to the next."""
    torch.manual_seed(0)
    shape = {"layers": 12, "heads": 12, "width": 768, "context": 64, "vocab_size": 50304, "bias": True}
    settings = GPTSettings(name="gpt2", dropout=0.0, scale_attn_by_inverse_layer_idx=False, **shape)
    tensors = {name: tensor.clone() for name, tensor in settings.build().state_dict().items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    for number in range(1, count + 1):
        for name, tensor in tensors.items():
            if name != "lm_head.weight":
                tensor.add_(torch.full((), 1e-4 * number))
        content = {"model": tensors, "model_args": SIZE, "iter_num": 1000 * number, "config": {"dataset": "random"}}
        torch.save(content, folder / f"ckpt_{1000 * number}.pt")


CLOCKED = """
import sys, time
from lawa_exp.evaluation import on_data
from lawa_exp.suggest import main

spent, evaluate = [], on_data.batch_sums


def clocked(*arguments):
    begin = time.perf_counter()
    sums = evaluate(*arguments)
    spent.append(time.perf_counter() - begin)
    return sums


on_data.batch_sums = clocked
code = main(sys.argv[1:])
print(f"evaluations {len(spent)} {sum(spent)}")
sys.exit(code)
"""


def run(folder: Path, data: Path, samples: int, threads: int) -> tuple[float, int, float, str]:
    """Wall time of the command; its evaluations and their wall time; its last lines."""
    with tempfile.TemporaryDirectory() as out:
        words = [str(folder), "--data", str(data), "--samples", str(samples), "--out", f"{out}/r"]
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CLOCKED, *words, "--threads", str(threads)], capture_output=True, text=True
        )
        wall = time.perf_counter() - begin
        if done.returncode:
            sys.exit(done.stderr)
        *said, last = done.stdout.splitlines()
        _, count, evaluating = last.split()
        return wall, int(count), float(evaluating), "\n".join(said[-6:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads, load = os.cpu_count() or 1, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as root:
        folder, data = Path(root) / "checkpoints", Path(root) / "data"
        folder.mkdir()
        data.mkdir()
        write_checkpoints(folder, args.checkpoints)
        tokens = np.random.default_rng(0).integers(0, 50257, 64 * 65).astype(np.uint16)
        tokens.tofile(data / "val.bin")
        size = sum(path.stat().st_size for path in folder.iterdir())
        runs = [run(folder, data, args.samples, threads) for _ in range(2)]
    rows = [
        f"| {which} | {wall:.1f} | {count} | {evaluating:.1f} | **{wall - evaluating:.1f}** |"
        for which, (wall, count, evaluating, _) in zip(("first", "again"), runs, strict=True)
    ]
    parts = [
        f"{args.checkpoints} checkpoints of GPT-2 small (124M; with 64 positions, so that an evaluation is short) in "
        f"nanoGPT's files, {size / 1e9:.1f} GB; {args.samples} samples. " + machine(threads, load),
        "| run | seconds | evaluations | seconds in them | beyond them (60 allowed) |\n|--|--:|--:|--:|--:|\n"
        + "\n".join(rows),
    ]
    publish("`lawa suggest` of a folder, beyond its evaluations", parts, args.out)
    print(runs[-1][-1])


if __name__ == "__main__":
    main()
