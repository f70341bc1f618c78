"""Where a training stands when its process starts: its own newest state, what it goes on from, or the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lawa_exp.averaging import build_averager
from lawa_exp.averaging.kept import SavedWindow
from lawa_exp.averaging.rebuild import how_rebuilt, rebuild
from lawa_exp.averaging.tensors import statistics_names
from lawa_exp.averaging.window import Window
from lawa_exp.convert.weights import load_weights
from lawa_exp.parallel.optimizer import SavedOptimizer
from lawa_exp.parallel.sharing import micro_batches
from lawa_exp.storage.origin import Origin, snapshots_of
from lawa_exp.storage.rundir import RunDir
from lawa_exp.training.state import WINDOW, Carried, State, saved_averagers

if TYPE_CHECKING:
    from lawa_exp.training.setup import Setup


@dataclass(frozen=True)
class Saved:
    """What is saved with a state. metrics_bytes: the length of metrics.jsonl. environment: see `environment_of`."""

    metrics_bytes: int
    environment: dict[str, Any]

    @property
    def is_new(self) -> bool:
        """Whether nothing of this run was saved before."""
        return self.metrics_bytes == 0


def restore(t: Setup, origin: Origin | None, say: Callable[[str], None]) -> tuple[State, Saved]:
    """The state to go on from. origin: where it begins, if not from the seed and no state of its own.

    An averager that was not attached before is rebuilt from the snapshots where they suffice; else it is left out, and
    said so.
    """
    step, folder = newest_state(t, origin, say)
    snapshots = snapshots_of(t.run)
    branch = origin if folder is None else None
    if branch and branch.keep:
        step, folder = branch.step, branch.state()
        snapshots = {s: path for s, path in snapshots_of(RunDir(branch.source)).items() if s <= step}
    window = Window()
    trajectory = RunDir(branch.source).trajectory if branch else t.run.trajectory
    named: dict[str, Carried] = {
        "optimizer": SavedOptimizer(t.optimizer, t.objective, t.store),
        WINDOW: SavedWindow(window, t.store, trajectory, into_memory=branch is not None),
        **t.callbacks.carried(),
    }
    state = State(step, t.live, t.averaged, window, {}, named, t.store)
    saved_before = saved_averagers(folder) if folder else []
    for settings in t.config.averagers:
        averager = build_averager(settings, t.averaged, window, statistics_names(t.model))
        if folder and settings.id not in saved_before:
            taken_in, problem = rebuild(averager, snapshots, step, t.device, t.store)
            if problem:
                say(f"warning: {settings.id} is not attached: {problem}")
                continue
            say(f"{settings.id} {how_rebuilt(taken_in, len(settings.needed(step)), step)}")
        state.averagers[settings.id] = averager
    environment, loaded = environment_of(t), frozenset[str]()
    scalars: dict[str, Any] = {}
    if folder:
        scalars, loaded = state.load(folder)
    elif branch:
        load_weights(t.model, t.live, branch.weights(), t.store)
    for name, callback in t.callbacks.named.items():
        if name not in loaded:
            callback.begin(t.live)
    t.run.reached = state.step
    if branch:
        say(f"going on from {branch.source}" + (f", step {step:,}" if branch.keep else ""))
    if folder is None or branch:
        return state, Saved(0, environment)
    for key, now in environment.items():
        before = scalars["environment"].get(key, now)
        if before != now:
            say(f"warning: {key} was {before} and is {now}: the run goes on, but not to the same bytes")
    say(f"continuing from step {step:,}")
    return state, Saved(scalars["metrics_bytes"], environment)


def newest_state(t: Setup, origin: Origin | None, say: Callable[[str], None]) -> tuple[int, Path | None]:
    """The run's own newest whole state, and its step; what is damaged is said and passed over."""
    step, folder, damaged = t.run.newest_state(t.ranks)
    for message in damaged:
        say(f"warning: {message}; " + (f"going on from step {step:,}" if folder else "starting from step 0"))
    every, first = t.config.save.every, origin.first_step if origin else 0
    if folder is None and t.ranks.is_main and (aside := t.run.set_rows_aside((first // every + 1) * every)):
        say(f"warning: no state to go on from: training again from its beginning; the rows there were are in {aside}")
    return step, folder


def environment_of(t: Setup) -> dict[str, Any]:
    """What decides the bytes besides the configuration."""
    return {
        "ranks": t.ranks.world,
        "parallel": t.sharing,
        "threads": t.config.trainer.threads,
        "micro_batch": micro_batches(t.splits),
        "deterministic": t.config.trainer.deterministic,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if t.device.type == "cuda" else "cpu",
    }
