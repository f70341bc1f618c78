"""The real command as a subprocess, struck by a signal at a named point, and run directories compared byte for byte.

Run as a script, this file is the command with a strike armed: `python tests/helpers.py STRIKE MODULE ARGUMENT...`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# 60 steps of a 21,600-parameter GPT on pydocs. Snapshots: 5, 10, ... 60. States: 15, 30, 45, 60. Evaluations:
# 0 (live), 20 (live, ema, swa), 40 and 60 (live, lawa, ema, swa), in the order of IDS. The LAWA window is full at 30.
TINY = [
    *["dataset=pydocs", "model.layers=1", "model.width=32", "model.heads=2", "model.context=32", "batch.size=4"],
    *[
        "steps=60",
        "k=3",
        "spacing=10",
        "evaluate.every=20",
        "save.every=15",
        "evaluate.samples=32",
        "lr.warmup_steps=5",
    ],
    *["trainer.threads=1", "trajectory.every=5", "averagers.ema.decay=0.9", "averagers.swa.start=20"],
]
IDS = ["lawa-k3-s10", "ema-d0.9-e1", "swa-e10-from20"]  # the averagers of TINY
COMPARED = ("metrics.jsonl", "trajectory", "averages", "resume", "states", "readouts")
MARKERS = ("DONE", "FAILED", "DIVERGED", "STOPPED")


@dataclass(frozen=True)
class Strike:
    """A signal that the process sends itself at the n-th call of a function whose first path holds `of`.

    at: "module:name" or "module:Class.name"; or "files": n-th change of a file or folder under `of`, counted by an
    audit hook. when: before or after the call; half: after it, with only half of what it wrote (of a folder: one file
    of it removed, and the call left out). rank: the only rank that strikes (None: each). everyone: torchrun and
    all its ranks are hit.
    """

    at: str
    when: str = "before"
    of: str = ""
    n: int = 1
    signal: str = "SIGKILL"
    rank: int | None = None
    everyone: bool = False


def run(
    *arguments: str, strike: Strike | None = None, module: str = "lawa_exp", ranks: int = 1, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENT...` to its end, under torchrun if there are several ranks."""
    return subprocess.run(
        command(*arguments, strike=strike, module=module, ranks=ranks),
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def command(*arguments: str, strike: Strike | None = None, module: str = "lawa_exp", ranks: int = 1) -> list[str]:
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    if strike:
        return [*launch, __file__, json.dumps(asdict(strike)), module, *arguments]
    return [*launch, "-m", module, *arguments]


def arm(strike: Strike) -> None:
    """Puts the strike in place, in this process."""
    if strike.rank is not None and strike.rank != int(os.environ.get("RANK", "0")):
        return
    if strike.at == "files":
        sys.addaudithook(_count_file_changes(strike))
        return
    module, _, names = strike.at.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for attribute in outer:
        owner = getattr(owner, attribute)
    setattr(owner, name, _struck(getattr(owner, name), strike))


def _struck(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        path = next((a for a in args if isinstance(a, Path)), None)
        calls += strike.of in str(path)
        if calls != strike.n or strike.of not in str(path):
            return original(*args, **kwargs)
        if strike.when == "before":
            _hit(strike)
        if strike.when == "half" and path is not None and path.is_dir():
            next(p for p in sorted(path.rglob("*")) if p.is_file()).unlink()
            _hit(strike)
        result = original(*args, **kwargs)
        if strike.when == "half":
            assert path is not None
            os.truncate(path, path.stat().st_size // 2)
        if strike.when != "before":
            _hit(strike)
        return result

    return call


def _count_file_changes(strike: Strike) -> Callable[[str, tuple[Any, ...]], None]:
    left = strike.n

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            path, _, flags = args
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            path, changes = args[0], True
        else:
            return
        inside = strike.of in str(path) or not str(path).startswith("/")  # rmtree names files relative to a folder
        if changes and inside:
            left -= 1
            if left == 0:
                _hit(strike)

    return hook


def _hit(strike: Strike) -> None:
    number = signal.Signals[strike.signal]
    if strike.everyone:
        torchrun = os.getppid()
        listed = " ".join(p.read_text() for p in Path(f"/proc/{torchrun}/task").glob("*/children"))
        for process in {torchrun, *map(int, listed.split())} - {os.getpid()}:
            os.kill(process, number)
    os.kill(os.getpid(), number)


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file that must be the same in a run that was disturbed, by its path in the run directory."""
    files = [p for name in COMPARED for p in [folder / name, *sorted((folder / name).rglob("*"))] if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_same_run(folder: Path, twin: Path) -> None:
    """Metrics, snapshots, averages, states and read-outs are byte-equal, and nothing else lies beside them."""
    mine, others = contents(folder), contents(twin)
    assert "metrics.jsonl" in others, f"{twin} holds no run"
    different = sorted(f for f in mine.keys() | others.keys() if mine.get(f) != others.get(f))
    assert not different, f"not the same bytes as the undisturbed run: {different}"


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def lines_of(folder: Path, *ids: str, name: str = "metrics.jsonl", split: str = "val") -> set[str]:
    """The rows of these weights as they stand in the file, byte for byte."""
    found = (folder / name).read_text().splitlines()
    return {line for line in found if json.loads(line)["weights"] in ids and json.loads(line)["split"] == split}


def states(folder: Path) -> list[int]:
    """The steps of the committed states, ascending."""
    return sorted(int(p.parent.name[5:]) for p in (folder / "resume").glob("step_*/manifest.json"))


def markers(folder: Path) -> list[str]:
    return [name for name in MARKERS if (folder / name).exists()]


def assert_whole(folder: Path) -> None:
    """A finished run of TINY that is worth comparing with: it learned, and every average has rows and weights."""
    found = rows(folder)
    live = {r["step"]: r["loss"] for r in found if r["split"] == "val" and r["weights"] == "live"}
    assert list(live) == [0, 20, 40, 60] and live[60] < live[0] - 1
    assert [r["step"] for r in found if r["split"] == "train"], "no training rows"
    evaluated = {id: [r["step"] for r in found if r["weights"] == id] for id in IDS}
    assert evaluated == {"lawa-k3-s10": [40, 60], "ema-d0.9-e1": [20, 40, 60], "swa-e10-from20": [20, 40, 60]}
    assert len({r["loss"] for r in found if r["step"] == 60 and r["split"] == "val"}) == 4, "averages equal to live"
    for id in IDS:
        assert (folder / "averages" / id / "step_00000060" / "model.safetensors").is_file()
    assert sorted(p.name for p in (folder / "trajectory").iterdir()) == [f"step_{s:08d}" for s in range(5, 61, 5)]
    assert states(folder) == [45, 60] and markers(folder) == ["DONE"]


if __name__ == "__main__":
    arm(Strike(**json.loads(sys.argv[1])))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
