"""Everything that a resumed training needs, in one object; saved as a committed folder of tensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lawa_exp.averaging import Averager
from lawa_exp.averaging.averager import SLOT
from lawa_exp.averaging.tensors import load_live, unwrapped_name
from lawa_exp.averaging.window import Snapshot, Window
from lawa_exp.seams.callback import Saved
from lawa_exp.storage.commit import step_name
from lawa_exp.storage.safetensors import map_stored, stored
from lawa_exp.storage.store import Store
from lawa_exp.system.files import read_json

AVERAGERS, FEEDBACK, SAMPLING, WINDOW = "averagers/", "feedback", "sampling", "window"  # names of what is carried


class Carried(Protocol):
    """What a training carries from step to step: an optimizer, a window, an averager, a callback."""

    def state(self) -> Saved:
        """Tensors by name (of a parameter by its own, or `slot|parameter`, `parameter/entry`), and what JSON holds."""
        ...

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Staged:
    """A complete state, copied: training goes on while it is written.

    kept: tensors that nobody changes, those of `snapshots`, which may still be filled.
    """

    step: int
    copied: Mapping[str, Snapshot]
    kept: Mapping[str, Mapping[str, Tensor]]
    snapshots: Sequence[Snapshot]
    text: str

    def commit(self, store: Store, root: Path) -> None:
        for snapshot in self.snapshots:
            snapshot.wait()
        tensors = {**{name: snapshot.tensors for name, snapshot in self.copied.items()}, **self.kept}
        store.commit(root / step_name(self.step), tensors, {"state.json": self.text}, parameter_of)


@dataclass
class State:
    """`live` are the model's own tensors (no copies), or this rank's rows of them; averagers are by id, and read the
    one window. Of a sharded model all ranks save and load together.

    named: what else is carried, by name. averaged: the live tensors that only updates change.
    """

    step: int
    live: dict[str, Tensor]
    averaged: frozenset[str]
    window: Window
    averagers: dict[str, Averager]
    named: Mapping[str, Carried]
    store: Store = field(default_factory=Store)

    def carried(self) -> Iterator[tuple[str, Carried]]:
        yield from self.named.items()
        yield from ((f"{AVERAGERS}{id}", averager) for id, averager in self.averagers.items())

    def staged(self, scalars: Mapping[str, object]) -> Staged:
        """A copy; `scalars` is kept with it and given back by `load`."""
        states = {name: carried.state() for name, carried in self.carried()}
        text = {"step": self.step, "scalars": scalars, "carried": {name: s for name, (_, s) in states.items()}}
        tensors = {"model": self.live} | {name: t for name, (t, _) in states.items() if t}
        kept = {WINDOW: tensors.pop(WINDOW)} if WINDOW in tensors else {}
        copied = {n: self.window.copied(self.step, t, self._changed_late(n, t)) for n, t in tensors.items()}
        snapshots = [snapshot for snapshot in self.window.snapshots.values() if not snapshot.on_disk]
        return Staged(self.step, copied, kept, snapshots, json.dumps(text, indent=1))

    def _changed_late(self, name: str, tensors: Mapping[str, Tensor]) -> frozenset[str]:
        """Those that nothing changes before the next update, and so can be copied during its passes."""
        if name == "model":
            return self.averaged
        late = name in ("optimizer", FEEDBACK) or name.startswith(AVERAGERS)
        return frozenset(tensors) if late else frozenset()

    def load(self, folder: Path) -> tuple[dict[str, Any], frozenset[str]]:
        """Takes over a committed state, for what is carried here; returns the scalars saved with it, and the names of
        what it holds a state of. UserError where its tensors are not the model's."""
        described = read_json(folder / "state.json")
        self.step = described["step"]
        load_live(self.live, map_stored(folder), self.store.rows)
        device = next(iter(self.live.values())).device
        for name, carried in self.carried():
            if name in described["carried"]:
                tensors = self.store.read(folder, name, parameter_of) if stored(folder, name) else {}
                if name not in (WINDOW, SAMPLING):  # which stay in the host's memory
                    tensors = {n: t.to(device) for n, t in tensors.items()}
                carried.load(tensors, described["carried"][name])
        return described["scalars"], frozenset(described["carried"])


def parameter_of(key: str) -> str:
    """The parameter's name of a saved tensor: it itself, `slot|name`, or an optimizer's `name/entry`."""
    return unwrapped_name((key.partition(SLOT)[2] or key).partition("/")[0])


def saved_averagers(folder: Path) -> list[str]:
    """The ids of the averagers that a committed state holds."""
    return [n.removeprefix(AVERAGERS) for n in read_json(folder / "state.json")["carried"] if n.startswith(AVERAGERS)]
