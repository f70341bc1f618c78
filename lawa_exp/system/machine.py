"""What this process runs on and from, for provenance and defaults."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import TypedDict

from lawa_exp.system.environment import number

MOST_WORKERS = 32  # that are started unasked
COPIED_FROM = "copied_from.json"  # beside a pinned copy of this package: the state of the checkout it came from


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(local_ranks: int) -> int:
    """CPU threads of a rank: OMP_NUM_THREADS where one rank is alone here, else its share of the usable cores.

    With several, torchrun sets OMP_NUM_THREADS to 1 by itself.
    """
    first = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]}  # of nested levels
    if local_ranks == 1 and (asked := number("OMP_NUM_THREADS", 0, 1, first)):
        return asked
    return max(1, usable_cores() // local_ranks)


def default_workers(local_ranks: int) -> int:
    """Processes that decode images for a rank on a GPU: its share of the usable cores, but for one that trains."""
    return max(1, min(MOST_WORKERS, usable_cores() // local_ranks - 1))


class GitState(TypedDict):
    """dirty: files that are tracked differ from the commit."""

    commit: str
    dirty: bool


def git_state() -> GitState | None:
    """That of the checkout this package is tracked in, or was copied from; None elsewhere."""
    package = Path(__file__).parents[1]
    copied_from = package.parent / COPIED_FROM
    if copied_from.exists():
        state: GitState | None = json.loads(copied_from.read_text())
        return state

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


def this_job() -> tuple[str | None, int]:
    """The SLURM job that this process is in (None: none), and which start of it this is (the first: 0)."""
    environment = os.environ
    array, index = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array else environment.get("SLURM_JOB_ID")
    return job, number("SLURM_RESTART_COUNT", 0)
