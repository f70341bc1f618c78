"""Everything that a resumed run needs, in one object; saved as a committed folder of tensors and JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lawa_exp.averaging import Averager
from lawa_exp.averaging.averager import SLOT
from lawa_exp.averaging.tensors import is_sharded, reshard, unwrapped_name
from lawa_exp.averaging.window import Snapshot, Window
from lawa_exp.axes.feedback.feedback import Feedback
from lawa_exp.axes.model.gpt.gpt import GPT
from lawa_exp.convert.hugging_face import from_hugging_face, is_hugging_face
from lawa_exp.storage.commit import step_name
from lawa_exp.storage.origin import weight_files
from lawa_exp.storage.safetensors import map_stored, map_tensors, stored
from lawa_exp.storage.store import Store
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass
class State:
    """`live` are the model's own tensors (no copies), or this rank's rows of them; averagers are by id, and read the
    one window. Of a sharded model all ranks save and load together.
    """

    step: int
    model: nn.Module
    live: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    averagers: dict[str, Averager]
    window: Window
    feedback: Feedback | None = None
    measured_rate: float | None = None  # of a schedule that measures, once it has
    store: Store = field(default_factory=Store)

    def save(self, root: Path, scalars: Mapping[str, object]) -> Path:
        """Commits `root/step_XXXXXXXX`; `scalars` is kept with it and given back by `load`."""
        averagers = {id: a.state() for id, a in self.averagers.items()}
        optimizer, groups = _optimizer_state(self.optimizer, self.model, self.store)
        described: dict[str, object] = {
            "step": self.step,
            "scalars": scalars,
            "optimizer_groups": groups,
            "averagers": {id: s for id, (_, s) in averagers.items()},
            "window": sorted(self.window.snapshots),
            "measured_rate": self.measured_rate,
        }
        tensors = {"model": self.live, "optimizer": optimizer}
        tensors |= {f"averagers/{id}": t for id, (t, _) in averagers.items()}
        in_memory = {s: snapshot for s, snapshot in self.window.snapshots.items() if not snapshot.on_disk}
        tensors |= {f"window/{step_name(s)}": snapshot.tensors for s, snapshot in in_memory.items()}
        if self.feedback:
            own, described["feedback"] = self.feedback.averager.state()
            described["feedback_window"] = sorted(self.feedback.window.snapshots)
            tensors["feedback/averager"] = own
            for s, snapshot in self.feedback.window.snapshots.items():
                tensors[f"feedback/window/{step_name(s)}"] = snapshot.tensors
        texts = {"state.json": json.dumps(described, indent=1)}
        self.store.commit(root / step_name(self.step), tensors, texts, _parameter)
        return root / step_name(self.step)

    def load(self, folder: Path, trajectory: Path, branches: bool = False) -> dict[str, Any]:
        """Takes over a committed state, for the averagers that it holds; returns the scalars saved with it.

        trajectory: where the snapshots of a window are that are not in the state itself. branches: the state is another
        run's, of which nothing is needed afterwards. UserError where its tensors are not the model's.
        """
        described = json.loads((folder / "state.json").read_text())
        self.step = described["step"]
        self.measured_rate = described["measured_rate"]
        load_live(self.live, map_stored(folder), self.store)
        tensors = self._read(folder, "optimizer")
        _load_optimizer(self.optimizer, self.model, tensors, described["optimizer_groups"])
        device = next(iter(self.live.values())).device
        for id, scalars in described["averagers"].items():
            if id in self.averagers:
                tensors = self._read(folder, f"averagers/{id}")
                self.averagers[id].load({n: t.to(device) for n, t in tensors.items()}, scalars)
        self._load_window(self.window, folder, "window", described["window"], trajectory, branches)
        if self.feedback and "feedback" in described:
            tensors = self._read(folder, "feedback/averager")
            self.feedback.averager.load({n: t.to(device) for n, t in tensors.items()}, described["feedback"])
            steps = described["feedback_window"]
            self._load_window(self.feedback.window, folder, "feedback/window", steps, trajectory)
        elif self.feedback:
            self.feedback.begin(self.live)
        saved: dict[str, Any] = described["scalars"]
        return saved

    def _read(self, folder: Path, stem: str) -> dict[str, Tensor]:
        return self.store.read(folder, stem, _parameter) if stored(folder, stem) else {}

    def _load_window(
        self, window: Window, folder: Path, stem: str, steps: list[int], trajectory: Path, into_memory: bool = False
    ) -> None:
        for step in steps:
            committed = trajectory / step_name(step)
            in_state = bool(stored(folder, f"{stem}/{step_name(step)}"))
            if in_state:
                window.snapshots[step] = Snapshot(step, self.store.read(folder, f"{stem}/{step_name(step)}"))
            elif into_memory:
                window.snapshots[step] = Snapshot(step, self.store.read(committed))
            else:
                window.snapshots[step] = Snapshot(step, None, functools.partial(self.store.read, committed))


def _parameter(key: str) -> str:
    """The parameter's name of a saved tensor: it itself, an averager's `slot|name`, an optimizer's `name/entry`."""
    return unwrapped_name((key.partition(SLOT)[2] or key).partition("/")[0])


def saved_averagers(folder: Path) -> list[str]:
    """The ids of the averagers that a committed state holds."""
    return list(json.loads((folder / "state.json").read_text())["averagers"])


@torch.no_grad()
def load_live(live: dict[str, Tensor], tensors: dict[str, Tensor], store: Store | None = None) -> None:
    """Copies `tensors`, which are whole, over the live ones, of which `store` knows what is sharded.

    UserError names the first whose name or shape is another.
    """
    rows = store.rows if store else {}
    for name in sorted(live.keys() ^ tensors.keys()):
        where = "model" if name in live else "weights"
        raise UserError(f"the weights do not fit the model: {name} is only in the {where}")
    for name, tensor in live.items():
        mine = rows.get(name)
        here, there = mine.shape if mine else tuple(tensor.shape), tuple(tensors[name].shape)
        if here != there:
            raise UserError(f"the weights do not fit the model: {name} is {here} in the model, {there} in the weights")
        tensor.copy_(tensors[name][mine.first : mine.first + mine.count] if mine else tensors[name])


def load_weights(model: nn.Module, live: dict[str, Tensor], path: Path, store: Store | None = None) -> None:
    """Copies the weights of a safetensors file or folder over the live ones. UserError where they do not fit.

    A Hugging Face folder of GPT-2 fits our GPT, which has the activation's exact form where GPT-2 has its tanh form.
    """
    tensors = {name: t for file in weight_files(path) for name, t in map_tensors(file).items()}
    if isinstance(model, GPT) and is_hugging_face(path):
        tensors = from_hugging_face(tensors, path, model)
    try:
        load_live(live, tensors, store)
    except UserError as error:
        raise UserError(f"init.from={path}: {error}") from None


def _optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, store: Store
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimizer's tensors as `<parameter>/<key>`, and what its groups hold besides parameters."""
    reshard(model)
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {}
    parameter: Any
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            name = names[id(parameter)]
            if is_sharded(value):
                rows = store.rows.get(unwrapped_name(name))
                as_parameter = rows is not None and tuple(value.shape) == rows.shape
                assert as_parameter and value.placements == parameter.placements, f"{name}/{key}"
                value = value.to_local()
            tensors[f"{name}/{key}"] = value
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return tensors, groups


def _load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor], groups: list[dict[str, object]]
) -> None:
    reshard(model)
    order = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    parameters = {n: p for n, p in model.named_parameters() if id(p) in order}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter: Any = parameters[name]
        if is_sharded(parameter) and tensor.shape == parameter.to_local().shape:
            tensor = _like(parameter, tensor)
        state.setdefault(order[id(parameter)], {})[entry] = tensor
    described = optimizer.state_dict()
    described["state"] = state
    described["param_groups"] = [
        saved | {"params": group["params"]} for saved, group in zip(groups, described["param_groups"], strict=True)
    ]
    optimizer.load_state_dict(described)


def _like(parameter: DTensor, rows: Tensor) -> Tensor:
    """This rank's rows as a tensor that is distributed as `parameter` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
        run_check=False,
    )
