"""Memory and disk of a read-out of revisions of a model on a hub, however many there are.

The revisions are GPT-NeoX checkpoints that our own trainer makes, in float16 as those of the hub, and the hub is a
server on this machine (tests/hub.py). The command is sampled from outside every 20 ms: its private memory (RssAnon;
pages of mapped files are the kernel's to take back) and the bytes in the folder that it fetches into.

    python benchmarks/hub_readout.py --work DIR --out results/speed/hub_readout.md     # 3 GB of disk
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from pairs import machine, publish, table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hub import Served, serving  # noqa: E402

from lawa_exp.axes.model.pythia.pythia import write_configuration  # noqa: E402
from lawa_exp.runs.choices import config_from  # noqa: E402
from lawa_exp.storage.commit import steps_in  # noqa: E402
from lawa_exp.storage.rundir import RunDir  # noqa: E402
from lawa_exp.storage.safetensors import read_tensors, write_tensors  # noqa: E402

EVALUATED = ["evaluate.samples=4", "evaluate.batch_size=2", "trainer.threads=1"]


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="pythia_14m,pythia_160m", help="default: %(default)s")
    parser.add_argument("--revisions", default="4,8", help="how many there are, in turn (default: %(default)s)")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="a folder for the models")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    counts = [int(n) for n in options.revisions.split(",")]
    rows = []
    for model in options.models.split(","):
        hub, size = make_revisions(options.work.resolve() / model, model, max(counts))
        for count in counts:
            for asked in ("lawa", "lawa,ema"):
                *peaks, seconds = measured(hub, options.work / "out", count, options.k, asked)
                shown = (f"{b / 2**20:,.0f} MiB ({b / size:.2f})" for b in peaks)
                rows.append((model, f"{size / 2**20:,.0f} MiB", str(count), asked, *shown, f"{seconds:.0f} s"))
    publish(
        "A read-out of revisions: memory and disk",
        [
            f"Averages with k={options.k}; in brackets in sizes of a checkpoint (float16; the model that evaluates is "
            f"float32, so 2 of them, as is an EMA, whose state lies on the disk twice while it is renewed). The window "
            f"on the disk is to stay within k + 1 = {options.k + 1}, the memory not to grow with the revisions. At the "
            "end plots are drawn.",
            table(
                ("model", "a checkpoint", "revisions", "averages", "memory while read", "at the end", "disk", "time"),
                rows,
            ),
            machine(1, load),
        ],
        options.out,
    )


def make_revisions(folder: Path, model: str, count: int) -> tuple[Path, int]:
    """A folder of `count` revisions (step1, ...) that our trainer made, and the bytes of the weights of one."""
    hub, last = folder / "hub", folder / "hub" / f"step{count}" / "model.safetensors"
    if last.is_file():  # of an earlier start
        return hub, last.stat().st_size
    asked = [f"model={model}", "dataset=pydocs", "model.context=64", "batch.size=1", f"steps={count}", "avg=none"]
    asked += ["trajectory.every=1", f"evaluate.every={count}", f"save.every={count}", "lr.warmup_steps=1", *EVALUATED]
    run = [sys.executable, "-m", "lawa_exp", *asked, f"run_dir={folder / 'run'}"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    settings = config_from(RunDir(folder / "run").read_config() or {}).model
    for step, path in steps_in(folder / "run" / "trajectory").items():
        write_configuration(hub / f"step{step}", settings, torch.float16)
        tensors = {name: tensor.half() for name, tensor in read_tensors(path / "model.safetensors").items()}
        write_tensors(hub / f"step{step}" / "model.safetensors", tensors)
        shutil.rmtree(path)
    shutil.rmtree(folder / "run")
    return hub, last.stat().st_size


def measured(hub: Path, out: Path, count: int, k: int, averages: str) -> tuple[int, int, int, float]:
    """Of a read-out of the first revisions: peak bytes of private memory until its rows are written and afterwards,
    peak bytes on the disk, and seconds."""
    shutil.rmtree(out, ignore_errors=True)
    asked = ["hf:someone/tiny", "--revisions", f"step1..step{count}", "--avg", averages, "--k", str(k)]
    asked += ["--spacing", "1", "--dataset", "pydocs", "--out", str(out), *EVALUATED]
    memory, disk = [0, 0], 0
    with serving(Served(hub)) as served:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "lawa_exp.readout", *asked],
            env={**os.environ, "HF_ENDPOINT": served.url},
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        while process.poll() is None:
            at_end = (out / "metrics.jsonl").exists()
            memory[at_end] = max(memory[at_end], private(process.pid))
            disk = max(disk, bytes_in(out))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"the read-out ended with {process.returncode}")
    steps = {json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()}
    assert max(steps) == count, "not all of them were read"
    return memory[0], memory[1], disk, seconds


def private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def bytes_in(folder: Path) -> int:
    """On the disk, of all files there, half-fetched ones included."""
    found = 0
    for place, _, names in os.walk(folder):  # which passes over what is removed meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                found += (Path(place) / name).stat().st_blocks * 512
    return found


if __name__ == "__main__":
    main()
