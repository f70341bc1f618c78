"""One rank for each task of an srun step: torch's variables from SLURM's."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from lawa_exp.system.environment import number
from lawa_exp.system.errors import UserError

NEEDED = (
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"),
    "SLURM_STEP_ID",
)
FIRST_PORT, PORTS = 20000, 12000  # under those that Linux gives to whoever asks for any


def join_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; not where they are set
    already (torchrun), nor outside a step of several tasks (a batch script has SLURM_NTASKS, but is no step)."""
    world = number("SLURM_STEP_NUM_TASKS", 1, 1, environment)
    if world == 1 or "RANK" in environment:
        return
    if missing := [name for name in NEEDED if not environment.get(name)]:
        raise UserError(f"SLURM_STEP_NUM_TASKS={world}: {missing[0]} is not set; srun sets both, else unset them")
    node = number("SLURM_NODEID", 0, 0, environment)
    tasks = tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])
    if node >= len(tasks):
        raise UserError(f"SLURM_NODEID={node}: SLURM_STEP_TASKS_PER_NODE names {len(tasks)} nodes")
    job, step = (number(name, 0, 0, environment) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = str(world)
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["LOCAL_WORLD_SIZE"] = str(tasks[node])
    environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
    environment.setdefault("MASTER_PORT", str(FIRST_PORT + (37 * job + step) % PORTS))


def tasks_of_nodes(text: str) -> list[int]:
    """`2(x3),1` is [2, 2, 2, 1]."""
    found = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(tasks)] * int(times or 1)
    return found


def first_host(nodes: str) -> str:
    """`node03` of `node[03-07,11],other`."""
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    assert first, nodes
    return first[1] + (first[2] or "")
