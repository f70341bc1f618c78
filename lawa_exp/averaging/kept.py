"""Snapshots, averages and windows of a training on the disk."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lawa_exp.averaging.averager import SLOT
from lawa_exp.averaging.settings import AveragerSettings
from lawa_exp.averaging.window import Snapshot, Window
from lawa_exp.config.rules import setting_names
from lawa_exp.formats.about import FILE, about
from lawa_exp.seams.callback import Saved
from lawa_exp.storage.commit import remove, step_name, steps_in
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.store import Store


def write_snapshot(store: Store, root: Path, snapshot: Snapshot, keep: int | str) -> None:
    """Commits a snapshot and, if only the latest `keep` are kept, removes those before them."""
    store.commit(root / step_name(snapshot.step), {"model": snapshot.tensors})
    if isinstance(keep, int) and store.ranks.is_main:
        for earlier in [s for s in steps_in(root) if s <= snapshot.step][:-keep]:
            remove(root / step_name(earlier))


def spill(store: Store, snapshot: Snapshot, root: Path) -> None:
    """Drops the copy in memory of a snapshot that is in the trajectory `root` (or will be, before it is read)."""
    snapshot.spill(functools.partial(store.read, root / step_name(snapshot.step)))


def write_average(store: Store, root: Path, step: int, tensors: dict[str, Tensor], settings: AveragerSettings) -> None:
    """Commits an average with what it is, in average.json; removes those of later steps (the run went back) and,
    unless the settings keep all, of earlier ones. root: of the averages with these settings, in a run directory."""
    values = {name: getattr(settings, name) for name in setting_names(type(settings))}
    steps = settings.needed(step)
    said = json.loads(about(settings.kind, values, steps, len(steps)))
    of_run = {"trajectory_id": trajectory_of(root.parents[1])} if store.ranks.is_main else {}
    text = json.dumps({**said, "step": step, **of_run}, indent=1)
    store.commit(root / step_name(step), {"model": tensors}, {FILE: f"{text}\n"})
    for other in steps_in(root) if store.ranks.is_main else ():
        if other > step or (other < step and not settings.keeps_all):
            remove(root / step_name(other))


@functools.cache
def trajectory_of(run: Path) -> str | None:
    """The trajectory's id, which config.yaml has."""
    return (RunDir(run).read_config() or {}).get("trajectory_id")


@dataclass
class SavedWindow:
    """The run's window as it is carried: snapshots in memory, and the steps of those that are on the disk.

    trajectory: where those are. into_memory: they are another run's, of which nothing is needed afterwards.
    """

    window: Window
    store: Store
    trajectory: Path
    into_memory: bool = False

    def state(self) -> Saved:
        """The tensors of a snapshot that was just taken may still be filled; its `tensors` waits for that."""
        snapshots = [self.window.snapshots[step] for step in sorted(self.window.snapshots)]
        in_memory = [s for s in snapshots if not s.on_disk]
        tensors = {f"{step_name(s.step)}{SLOT}{name}": t for s in in_memory for name, t in s.arriving.items()}
        return tensors, {"in_memory": [s.step for s in in_memory], "on_disk": [s.step for s in snapshots if s.on_disk]}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        for step in scalars["in_memory"]:
            prefix = f"{step_name(step)}{SLOT}"
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.window.snapshots[step] = Snapshot(step, own)
        for step in scalars["on_disk"]:
            read = functools.partial(self.store.read, self.trajectory / step_name(step))
            self.window.snapshots[step] = Snapshot(step, read() if self.into_memory else None, read)
