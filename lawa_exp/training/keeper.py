"""What a training keeps: snapshots and averages while it goes on, and complete states."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lawa_exp.averaging import Averager, observes
from lawa_exp.averaging.kept import spill, write_average, write_snapshot
from lawa_exp.system.background import Background
from lawa_exp.training.evaluating import as_evaluated

if TYPE_CHECKING:
    from lawa_exp.storage.rundir import RunDir
    from lawa_exp.storage.store import Store
    from lawa_exp.training.recorder import Recorder
    from lawa_exp.training.restore import Saved
    from lawa_exp.training.setup import Setup
    from lawa_exp.training.state import Staged, State


class Keeper:
    """Writes in the background, in order; what a state says was there before it is on the disk before it."""

    def __init__(self, t: Setup, state: State, saved: Saved) -> None:
        self.t, self.state, self.environment = t, state, saved.environment
        self.background = Background()
        self.saving: Future[None] | None = None
        self.on_disk = t.config.trajectory.window == "disk"
        state.window.fence_before(t.optimizer)

    def close(self) -> None:
        self.background.close()

    def snapshot_due(self, step: int) -> bool:
        return self.t.config.trajectory.keep != "none" and step % self.t.config.trajectory.every == 0

    def copies(self, step: int) -> bool:
        """Whether the weights of `step` are copied: a snapshot is never of weights that are not finite."""
        windows = (a.settings for a in self.state.averagers.values() if a.settings.windowed)
        return self.snapshot_due(step) or any(observes(settings, step) for settings in windows)

    def observe(self, step: int) -> None:
        """Averagers and snapshots of the weights of `step`, which nothing changes any more."""
        t, state = self.t, self.state
        seen = self.snapshot_due(step) or any(observes(a.settings, step) for a in state.averagers.values())
        weights = t.standing if seen else t.live
        for averager in state.averagers.values():
            averager.update(step, weights)
        if self.snapshot_due(step):
            snapshot = state.window.take(step, weights, t.averaged)
            if t.store.writes:
                keep = t.config.trajectory.keep
                self.background.submit(write_snapshot, t.store, t.run.trajectory, snapshot, keep)
            if self.on_disk:
                snapshot.on_disk = True  # before anything that is queued from here on
                self.background.submit(spill, t.store, snapshot, t.run.trajectory)

    def settle(self) -> None:
        """From here on the window's snapshots can be read, on every rank, and the live weights be changed in place."""
        self.state.window.fence()
        if self.on_disk:
            self.background.drain()
            self.t.ranks.barrier()

    def average(self, id: str, averager: Averager, weights: dict[str, Tensor]) -> None:
        """Writes the average of the last step."""
        if self.t.store.writes:
            root, settings = self.t.run.averages / id, averager.settings
            self.background.submit(write_average, self.t.store, root, self.state.step, weights, settings)

    def save(self, record: Recorder) -> None:
        """A complete state: copied now, written while training goes on, committed before the next one is copied."""
        t, step = self.t, self.state.step
        assert not t.swap.away, "averaged weights are in place of the live ones"
        if self.saving:
            self.saving.result()
        if not t.store.writes:
            return
        size, crc = record.rows.sync() if record.rows else (None, None)
        scalars = {"metrics_bytes": size, "metrics_crc32": crc, "environment": self.environment}
        staged = self.state.staged(scalars)
        # A kept one comes before what a restart goes on from: it would not come back here.
        roots = [t.run.states] * (step in t.config.save.keep) + [t.run.resume]
        self.saving = self.background.submit(write_state, t.store, staged, roots, t.run)

    def end(self, how: str, record: Recorder) -> None:
        """Everything is on the disk, on every rank, when this returns."""
        if how == "diverged":  # on a GPU a running average may have seen the last weights twice more
            self.settle()
            with self.t.swap.session() as place:
                for id, averager in self.state.averagers.items():
                    if (weights := averager.average()) is not None:
                        self.average(id, averager, as_evaluated(self.t, averager, weights, place))
        self.background.drain()
        if record.rows:
            record.rows.sync()
            self.t.run.remove_old_states(self.state.step)  # a kill may have come between the last save and this
        self.t.ranks.barrier()


def write_state(store: Store, staged: Staged, roots: Sequence[Path], run: RunDir) -> None:
    """Commits a complete state in each of `roots`; then the old ones go."""
    for root in roots:
        staged.commit(store, root)
    if store.ranks.is_main:
        run.remove_old_states(staged.step)
