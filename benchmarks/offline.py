"""`python -m lawa_exp.average` against the alternatives, and against merely reading the inputs and writing the results.

Whole processes, in turns (the order changes from round to round), inputs in the page cache, results on tmpfs, as many
threads as cores. The alternatives are not kept here; they are run as they are but for what their place demands:
fairseq's script with its `file_io.py` in a package of its own (the whole of fairseq is not imported), and `lawa.py`
with our folders for its own and without an argument that nanoGPT's model does not have.

    git clone https://github.com/facebookresearch/fairseq ../fairseq
    git clone https://github.com/sanyalsunny111/Early_Weight_Avg ../Early_Weight_Avg
    git clone https://github.com/karpathy/nanoGPT ../nanoGPT
    python benchmarks/offline.py --fairseq ../fairseq --early-weight-avg ../Early_Weight_Avg --nanogpt ../nanoGPT \\
        --out results/speed/offline.md
    python benchmarks/offline.py --memory --work DISK --out results/speed/offline_memory.md
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pairs import machine, publish, table

from lawa_exp.storage.commit import commit

TMPFS = Path("/dev/shm")
COPY = Path(__file__).with_name("copy_files.py")
LAYERS, WIDTH, VOCABULARY, CONTEXT = 12, 768, 50304, 1024  # GPT-2 small as nanoGPT has it
AVERAGED, WINDOW, SNAPSHOTS, SNAPSHOT_BYTES = 5, 10, 40, 125_000_000
MEMORY_LIMIT = 200e6  # bytes

Command = Callable[[Path], list[str]]  # from the folder for its result


def main() -> None:
    load = os.getloadavg()[0]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once, not at every start
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("fairseq", "early-weight-avg", "nanogpt"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="a checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--work", type=Path, help="folder for the inputs (10 GB; with --memory 30 GB); default: a temporary one"
    )
    parser.add_argument("--memory", action="store_true", help="peak private memory on large checkpoints, and no times")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as inputs, tempfile.TemporaryDirectory(dir=TMPFS) as results:
        if options.memory:
            memory(Path(inputs), Path(results), options.out, load)
        else:
            speed(options, Path(inputs), Path(results), load)


# Speed


def speed(options: argparse.Namespace, inputs: Path, results: Path, load: float) -> None:
    safetensors, pytorch, snapshots = make_inputs(inputs)
    size = Path(safetensors[0]).stat().st_size
    average = [sys.executable, "-m", "lawa_exp.average"]
    copy = [sys.executable, str(COPY)]
    sides: dict[str, Command] = {
        "read, write": lambda out: [*copy, str(out), "1", *safetensors],
        "safetensors": lambda out: [*average, *safetensors, "--out", str(out)],
        "PyTorch": lambda out: [*average, *pytorch, "--out", str(out)],
    }
    if options.fairseq:
        script = fairseq_script(options.fairseq, inputs)
        sides["fairseq"] = lambda out: [*script, "--inputs", *pytorch, "--output", str(out / "average.pt")]
    if options.early_weight_avg and options.nanogpt:
        sides["lawa.py"] = lawa_script(options.early_weight_avg, options.nanogpt, inputs, Path(pytorch[0]).parent)
    check_same_result(sides, results)
    times = in_turns(sides, results, options.rounds)
    base = statistics.median(times["read, write"])
    best = {"safetensors": times["safetensors"], "PyTorch": times["PyTorch"]}
    rows = [line(name, seconds, base, best) for name, seconds in times.items()]

    def window(folder: str) -> Command:
        return lambda out: [*average, "--trajectory", str(inputs / folder), "--k", str(WINDOW), "--out", str(out)]

    sliding: dict[str, Command] = {
        "read 40, write 31": lambda out: [*copy, str(out), str(SNAPSHOTS - WINDOW + 1), *snapshots],
        "sliding window": window("trajectory"),
        "sliding window, manifests checked": window("committed"),
    }
    shutil.rmtree(Path(pytorch[0]).parent)  # the page cache is for what follows
    windows = in_turns(sliding, results, options.rounds)
    moved = statistics.median(windows["read 40, write 31"])
    window_rows = [
        (name, spread(seconds), f"{statistics.median(seconds) / moved:.2f}") for name, seconds in windows.items()
    ]
    publish(
        "Averaging files",
        [
            f"Whole processes, {options.rounds} rounds in turns, median (least to most). Inputs cached, results on "
            "tmpfs.",
            f"Mean of {AVERAGED} checkpoints of GPT-2 small, float32, {size / 1e9:.2f} GB each. `read, write` reads "
            "the same bytes and writes as many as the result has (`copy_files.py`). The PyTorch files have nanoGPT's "
            "layout with an empty optimizer; their CRC-32 are checked, and the result's written.",
            table(
                ("what", "time", "of the speed of read, write", "lawa_exp is faster by: safetensors", "PyTorch"), rows
            ),
            f"`--k {WINDOW}` over {SNAPSHOTS} snapshots of {SNAPSHOT_BYTES / 1e6:.0f} MB (float32): "
            f"{SNAPSHOTS - WINDOW + 1} results. A run of ours has a manifest with each file's CRC-32, which is "
            "checked; files from elsewhere have none.",
            table(("what", "time", "times read, write"), window_rows),
            machine(len(os.sched_getaffinity(0)), load),
        ],
        options.out,
    )


def in_turns(sides: dict[str, Command], results: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        names = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for name in names:
            seconds = timed(sides[name], results / "out")
            if number:
                times[name].append(seconds)
            print(f"round {number}: {name} {seconds:.2f} s", file=sys.stderr)
    return times


def timed(command: Command, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    words = command(out)
    if "lawa_exp.average" not in words and str(COPY) not in words:
        out.mkdir()
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(words[:4])} ...: {done.stderr[-2000:]}")
    return seconds


def spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def line(name: str, seconds: Sequence[float], base: float, ours: dict[str, Sequence[float]]) -> tuple[str, ...]:
    median = statistics.median(seconds)
    faster = ["" if name in (*ours, "read, write") else f"{median / statistics.median(o):.1f}" for o in ours.values()]
    who = f"`lawa_exp.average`, {name}" if name in ours else name
    return (who, spread(seconds), f"{base / median:.0%}", *faster)


def make_inputs(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """GPT-2 small as safetensors and in nanoGPT's layout, and a trajectory; noise around shared weights."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = {name: 0.02 * torch.randn(shape) for name, shape in gpt2_shapes().items()}
    shape = {"n_layer": LAYERS, "n_head": 12, "n_embd": WIDTH, "block_size": CONTEXT, "bias": False}
    args = {**shape, "vocab_size": VOCABULARY, "dropout": 0.0}
    (folder / "safetensors").mkdir()
    (folder / "pytorch").mkdir()
    safetensors, pytorch, snapshots = [], [], []
    for i in range(1, AVERAGED + 1):
        weights = {name: w + 0.002 * torch.randn(w.shape) for name, w in base.items()}
        safetensors.append(str(folder / "safetensors" / f"step_{i}.safetensors"))
        save_file(weights, safetensors[-1])
        weights["lm_head.weight"] = weights["transformer.wte.weight"]  # tied
        rest = {"optimizer": {}, "model_args": args, "iter_num": i, "best_val_loss": 3.0, "config": {}}
        pytorch.append(str(folder / "pytorch" / f"ckpt_{i}.pt"))
        torch.save({"model": weights, **rest}, pytorch[-1])
    for i in range(1, SNAPSHOTS + 1):
        step = folder / "trajectory" / f"step_{i * 100:08d}"
        step.mkdir(parents=True)
        snapshots.append(str(step / "model.safetensors"))
        save_file({f"layer.{j}": torch.randn(SNAPSHOT_BYTES // 200) for j in range(50)}, snapshots[-1])
        commit(folder / "committed" / step.name, {"model.safetensors": functools.partial(os.link, snapshots[-1])})
    return safetensors, pytorch, snapshots


def gpt2_shapes() -> dict[str, tuple[int, ...]]:
    c = WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCABULARY, c),
        "transformer.wpe.weight": (CONTEXT, c),
    }
    block = {"ln_1": (c,), "attn.c_attn": (3 * c, c), "attn.c_proj": (c, c), "ln_2": (c,), "mlp.c_fc": (4 * c, c)}
    for layer in range(LAYERS):
        for name, shape in {**block, "mlp.c_proj": (c, 4 * c)}.items():
            shapes[f"transformer.h.{layer}.{name}.weight"] = shape
    return {**shapes, "transformer.ln_f.weight": (c,)}


def fairseq_script(checkout: Path, folder: Path) -> list[str]:
    """Its script beside a package that holds nothing but its file_io."""
    package = folder / "fairseq_script" / "fairseq"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(checkout / "fairseq" / "file_io.py", package)
    script = shutil.copy(checkout / "scripts" / "average_checkpoints.py", package.parent)
    return [sys.executable, str(script)]


def lawa_script(checkout: Path, nanogpt: Path, folder: Path, inputs: Path) -> Command:
    """Its script beside nanoGPT's model."""
    text = (checkout / "nanoGPT2-Experiments" / "lawa.py").read_text()
    text = text.replace("'/scratch/07946/ss95332/out_far/'", repr(str(inputs)))
    text = text.replace('"/scratch/07946/ss95332/avg-small2/"', "__import__('sys').argv[1]")
    text = re.sub(r",\s*scale_attn_by_inverse_layer_idx=scale_attn_by_inverse_layer_idx", "", text)
    place = folder / "lawa_script"
    place.mkdir()
    (place / "lawa.py").write_text(text)
    shutil.copy(nanogpt / "model.py", place)
    return lambda out: [sys.executable, str(place / "lawa.py"), str(out)]


def check_same_result(sides: dict[str, Command], results: Path) -> None:
    """The others' averages are ours but for their rounding. Exits if not."""
    import torch
    from safetensors.torch import load_file

    out = results / "out"
    timed(sides["safetensors"], out)
    ours = load_file(out / "model.safetensors")
    for name, key in (("PyTorch", "model"), ("fairseq", "model"), ("lawa.py", "net")):
        if name in sides:
            timed(sides[name], out)
            theirs = torch.load(next(out.glob("*.pt")), weights_only=True)[key]
            worst = max((ours[n] - theirs[n]).abs().max().item() for n in ours)
            if worst > (0 if name == "PyTorch" else 1e-7):
                sys.exit(f"not the same average: {name} differs by {worst}")


# Memory


def memory(inputs: Path, results: Path, out: Path | None, load: float) -> None:
    """Peak RssAnon on 5 checkpoints of 4 GB, then on sharded ones that are together larger than the memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = []
    for what, number, size, shards in (
        ("5 files of 4 GB", 5, 4_000_000_000, 1),
        ("sharded folders, larger than the memory", int(total / 2e9) + 2, 2_000_000_000, 4),
    ):
        folders = [large_checkpoint(inputs / f"checkpoint-{i}", i, size, shards) for i in range(1, number + 1)]
        read = sum(p.stat().st_size for folder in folders for p in folder.glob("*.safetensors"))
        command = [sys.executable, "-m", "lawa_exp.average", *map(str, folders), "--out", str(results / "out")]
        peak, seconds = peak_rss_anon(command)
        verdict = "" if peak <= MEMORY_LIMIT else ", MISSED"
        rows.append((what, f"{read / 1e9:.1f} GB", f"{seconds:.0f} s", f"{peak / 1e6:.0f} MB{verdict}"))
        shutil.rmtree(results / "out")
        for folder in folders:
            shutil.rmtree(folder)
    publish(
        "Memory of averaging files",
        [
            f"Mean of float32 safetensors; the largest tensor has 1 GB. Peak of RssAnon, looked at every 2 ms, of "
            f"at most {MEMORY_LIMIT / 1e6:.0f} MB; the machine has {total / 1e9:.1f} GB.",
            table(("inputs", "read", "time (from the disk)", "peak private memory"), rows),
            machine(len(os.sched_getaffinity(0)), load),
        ],
        out,
    )


def large_checkpoint(folder: Path, seed: int, size: int, shards: int) -> Path:
    """`size` bytes in tensors of 1, 0.25 and 0.01 GB; each holds one random block again and again."""
    import json

    folder.mkdir()
    block = np.random.default_rng(seed).standard_normal(2_500_000, dtype=np.float32).data.cast("B")
    weight_map = {}
    for shard in range(1, shards + 1):
        left, header, offset = size // shards, {}, 0
        name = f"model-{shard:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        while left >= len(block):
            part = next(s for s in (1_000_000_000, 250_000_000, 10_000_000) if s <= left)
            tensor = f"shard.{shard}.{len(header)}"
            header[tensor] = {"dtype": "F32", "shape": [part // 4], "data_offsets": [offset, offset + part]}
            weight_map[tensor] = name
            left, offset = left - part, offset + part
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for _ in range(offset // len(block)):
                file.write(block)
    if shards > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def peak_rss_anon(command: Sequence[str]) -> tuple[float, float]:
    """Bytes (of all its processes; pages that they share are counted in each), and seconds of the command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(rss_anon(pid) for pid in (process.pid, *children(process.pid))))
        time.sleep(0.002)
    if process.wait():
        sys.exit(f"{' '.join(command[:3])} ended with exit code {process.returncode}")
    return peak, time.perf_counter() - start


def rss_anon(pid: int) -> float:
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return float(found[1]) * 1024 if found else 0.0


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


if __name__ == "__main__":
    main()
