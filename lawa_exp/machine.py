"""What this process runs on and from, for provenance and defaults."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(local_ranks: int) -> int:
    """CPU threads of a rank: OMP_NUM_THREADS where one rank is alone here, else its share of the usable cores.

    With several, torchrun sets OMP_NUM_THREADS to 1 by itself.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if local_ranks == 1 and asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, usable_cores() // local_ranks)


def join_slurm_step(environment: MutableMapping[str, str] = os.environ) -> None:
    """A task of a SLURM step of several (srun with a task for each GPU) is a rank: what torchrun would have set.

    Only inside a step: in a batch script, and where torchrun has started this process, nothing is changed.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" in environment or tasks == "1" or "SLURM_PROCID" not in environment:
        return
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"])
    assert first, environment["SLURM_STEP_NODELIST"]
    # SLURM_STEP_TASKS_PER_NODE: `8(x2),4`, in the order of the nodes
    per_node: list[str] = []
    for entry in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, times = entry.rstrip(")").partition("(x")
        per_node += [count] * int(times or 1)
    port = 20000 + (int(environment["SLURM_JOB_ID"]) * 37 + int(environment["SLURM_STEP_ID"])) % 12000
    for key, value in {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": per_node[int(environment["SLURM_NODEID"])],
        "MASTER_ADDR": first[1] + (first[2] or ""),
        "MASTER_PORT": str(port),
    }.items():
        environment.setdefault(key, value)


def git_state() -> dict[str, Any] | None:
    """Commit, and whether dirty, of the checkout that this package is tracked in; None elsewhere."""
    package = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=package.parent, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", f"{package.name}/__init__.py")
        changed = git("status", "--porcelain", "-uno", package.name, "conf", "hydra_plugins")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    import numpy
    import torch

    import lawa_exp

    named = {"lawa_exp": lawa_exp.__version__, "torch": torch.__version__, "numpy": numpy.__version__}
    return {"python": platform.python_version(), **named}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
