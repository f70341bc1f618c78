"""The model that a training learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.layers import LAYERS
from lawa_exp.axes.model import MODELS
from lawa_exp.config.rules import build
from lawa_exp.convert.recorded import check_record
from lawa_exp.convert.weights import load_weights
from lawa_exp.storage.teacher import find_teacher
from lawa_exp.system.errors import UserError


def teacher_of(config: Config, device: torch.device) -> nn.Module | None:
    """With its weights, in evaluation mode, without gradients; whole on every rank. UserError: they do not fit."""
    source = find_teacher(config.teacher)
    if source is None:
        return None
    path, written = source.weights(), source.written()
    for builder in builders_in(written or {}) - {
        config.model.builder,
        *(vars(s).get("builder") for _, s in config.layers),
    }:
        raise UserError(
            f"teacher.from={source.source}: its model is made by {builder}, which this command does not name; expected "
            "choices of ours, or those that the trained model has too"
        )
    if not written:
        check_record(source.source, config.model, "teacher.from")
    model = built(written) if written else config.model.build()
    load_weights(model, live_tensors(model), path, key="teacher.from")
    return model.eval().requires_grad_(False).to(device)


def builders_in(written: dict[str, Any]) -> set[str]:
    """What makes a run's model and its layers from outside."""
    entries = [written.get("model", {}), *written.get("layers", ())]
    return {entry["builder"] for entry in entries if entry.get("builder")}


def built(written: dict[str, Any]) -> nn.Module:
    """The model of a run's config.yaml, with its layers."""

    def settings(table: Any, entry: dict[str, Any], *words: str) -> Any:
        return build(table[entry["kind"]], {k: v for k, v in entry.items() if k not in ("kind", *words)}, "teacher")

    model: nn.Module = settings(MODELS, written["model"]).build()
    for entry in written.get("layers", ()):
        settings(LAYERS, entry, "name").apply(model)
    return model
