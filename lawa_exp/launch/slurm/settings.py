"""What `hydra/launcher=slurm` asks of the cluster; defaults are in conf/hydra/launcher/slurm.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lawa_exp.config.rules import Rule, boolean, integer, mapping, optional, setting, text
from lawa_exp.system.errors import UserError


def _duration(value: object) -> int | str:
    if isinstance(value, str) and re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", value) and not value.isdecimal():
        return value
    minutes: int = integer(1).parse(value)
    return minutes


def _lines(value: object) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, Iterable):
        raise TypeError
    return tuple(text().parse(line) for line in lines)


def _gpus(value: object) -> int | str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*:[1-9]\d*", value):
        return value
    number: int = integer(0).parse(value)
    return number


def _gres(value: object) -> str | None:
    if value is None or (isinstance(value, str) and re.fullmatch(r"gpu(:[A-Za-z][\w.-]*)?:[1-9]\d*", value)):
        return value
    raise ValueError


OURS = {  # options of sbatch that a setting stands for: in `extra` the plan and the ranks would not follow them
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "gpus_per_node=TYPE:NUMBER"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu", "tasks-per-node"), "tasks_per_node"),
    **{"cpus-per-task": "cpus_per_task", "nodes": "nodes", "time": "time", "partition": "partition"},
    **{"account": "account", "mem": "memory", "constraint": "constraint", "array": "parallel", "signal": "grace"},
}


@dataclass(frozen=True)
class Slurm:
    """time: minutes, or SLURM's days-hours:minutes:seconds. grace: seconds before its end, in which a run is saved.

    gpus_per_node: a number, or TYPE:NUMBER; gres: gpu:TYPE:NUMBER in its place. A run has `nodes` times
    `tasks_per_node` ranks (null: one for each GPU). extra: other options of sbatch, by name. setup: shell lines before
    each start. parallel: how many runs of the array may be running at once.
    """

    partition: str | None = setting(optional(text()), "sbatch's --partition")
    account: str | None = setting(optional(text()), "sbatch's --account")
    time: int | str = setting(
        Rule("minutes (at least 1), or days-hours:minutes:seconds", _duration),
        "time limit of a job, in minutes or days-hours:minutes:seconds",
    )
    grace: int = setting(integer(1), "seconds before the time limit in which a run is saved")
    nodes: int = setting(integer(1), "nodes of a run")
    gpus_per_node: int | str = setting(
        Rule("an integer of at least 0, or TYPE:NUMBER as a100:2", _gpus), "GPUs of a node, with their type if need be"
    )
    gres: str | None = setting(
        Rule("gpu:NUMBER or gpu:TYPE:NUMBER, or null", _gres),
        "the same as sbatch's --gres, for a cluster that knows no --gpus-per-node",
        before=None,
    )
    tasks_per_node: int | None = setting(optional(integer(1)), "ranks of a node; null: one for each GPU")
    cpus_per_task: int = setting(integer(1), "CPU cores of a rank")
    memory: str | None = setting(optional(text()), "sbatch's --mem, memory of a node")
    constraint: str | None = setting(optional(text()), "sbatch's --constraint")
    qos: str | None = setting(optional(text()), "sbatch's --qos", before=None)
    extra: dict[str, object] | None = setting(optional(mapping()), "other options of sbatch, as {name: value}")
    setup: tuple[str, ...] = setting(
        Rule("a shell line, or a list of them", _lines), "shell lines that run before each start"
    )
    parallel: int = setting(integer(1), "runs of the array that may be running at once")
    wait: bool = setting(boolean(), "wait until all jobs have ended")

    def __post_init__(self) -> None:
        if self.gres and self.gpus_per_node:
            raise UserError(f"gres={self.gres}: gpus_per_node={self.gpus_per_node} asks for GPUs too; give one of them")
        if self.qos and "qos" in (self.extra or {}):
            raise UserError(f"extra.qos: qos={self.qos} says it already")
        for name, value in (self.extra or {}).items():
            ours = OURS.get(name.replace("_", "-"))
            if ours is None or (name == "gres" and not re.search(r"\bgpu\b", str(value))):
                continue
            raise UserError(f"extra.{name}={value}: choose hydra.launcher.{ours}, which the plan and the ranks follow")

    @property
    def gpus(self) -> int:
        """GPUs of a node, of whatever type."""
        return int((self.gres or str(self.gpus_per_node)).rpartition(":")[2])

    @property
    def seconds(self) -> int:
        """`time` in seconds."""
        days, _, rest = str(self.time).rpartition("-")
        given = [int(part) for part in rest.split(":")]
        if not days and len(given) < 3:  # from minutes on
            given = [0, *given]
        hours, minutes, seconds = [*given, 0, 0][:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or max(1, self.gpus)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node
