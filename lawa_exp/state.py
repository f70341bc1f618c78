"""Everything that a resumed run needs, in one object; saved as a committed folder of tensors and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lawa_exp.averaging.window import Snapshot, Window
from lawa_exp.checkpoint.commit import commit, step_name
from lawa_exp.checkpoint.tensors import read_tensors, write_tensors


@dataclass
class State:
    """`live` are the model's own tensors (no copies); averagers are by id, and read the one window."""

    step: int
    model: nn.Module
    live: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    averagers: dict[str, Any]
    window: Window

    def save(self, root: Path, scalars: dict[str, Any]) -> Path:
        """Commits `root/step_XXXXXXXX`; `scalars` is kept with it and given back by `load`."""
        averagers = {id: a.state() for id, a in self.averagers.items()}
        optimizer, groups = _optimizer_state(self.optimizer, self.model)
        described = {
            "step": self.step,
            "scalars": scalars,
            "optimizer_groups": groups,
            "averagers": {id: s for id, (_, s) in averagers.items()},
            "window": sorted(self.window.snapshots),
        }
        tensors = {"model": self.live, "optimizer": optimizer}
        tensors |= {f"averagers/{id}": t for id, (t, _) in averagers.items()}
        tensors |= {f"window/{step_name(s)}": snapshot.tensors for s, snapshot in self.window.snapshots.items()}
        files = {f"{name}.safetensors": _writer(t) for name, t in tensors.items()}
        files["state.json"] = lambda path: path.write_text(json.dumps(described, indent=1)) and None
        commit(root / step_name(self.step), files)
        return root / step_name(self.step)

    def load(self, folder: Path) -> dict[str, Any]:
        """Takes over a committed state, for the averagers that it holds; returns the scalars saved with it."""
        described = json.loads((folder / "state.json").read_text())
        self.step = described["step"]
        load_live(self.live, read_tensors(folder / "model.safetensors"))
        tensors = read_tensors(folder / "optimizer.safetensors")
        _load_optimizer(self.optimizer, self.model, tensors, described["optimizer_groups"])
        device = next(iter(self.live.values())).device
        for id, scalars in described["averagers"].items():
            if id in self.averagers:
                tensors = read_tensors(folder / f"averagers/{id}.safetensors")
                self.averagers[id].load({n: t.to(device) for n, t in tensors.items()}, scalars)
        for step in described["window"]:
            tensors = read_tensors(folder / f"window/{step_name(step)}.safetensors")
            self.window.snapshots[step] = Snapshot(step, {n: t.to(device) for n, t in tensors.items()})
        return described["scalars"]


def saved_averagers(folder: Path) -> list[str]:
    """The ids of the averagers that a committed state holds."""
    return list(json.loads((folder / "state.json").read_text())["averagers"])


@torch.no_grad()
def load_live(live: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Copies `tensors` over the live ones; names and shapes must be the same."""
    assert live.keys() == tensors.keys(), "the state does not fit the model"
    for name, tensor in live.items():
        tensor.copy_(tensors[name])


def _writer(tensors: dict[str, Tensor]) -> Any:
    return lambda path: write_tensors(path, tensors)


def _optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimizer's tensors as `<parameter>/<key>`, and what its groups hold besides parameters."""
    names = {id(p): n for n, p in model.named_parameters()}
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{names[id(parameter)]}/{key}"] = value
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return tensors, groups


def _load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    order = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    number = {n: order[id(p)] for n, p in model.named_parameters() if id(p) in order}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(number[name], {})[entry] = tensor
    described = optimizer.state_dict()
    described["state"] = state
    described["param_groups"] = [
        saved | {"params": group["params"]} for saved, group in zip(groups, described["param_groups"], strict=True)
    ]
    optimizer.load_state_dict(described)
