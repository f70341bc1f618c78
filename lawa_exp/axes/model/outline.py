"""A model without content: what its settings, and those of its layers, decide of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lawa_exp.seams.layers import statistics_of
from lawa_exp.system.memory import allocating

if TYPE_CHECKING:
    from lawa_exp.axes.configuration import Config


def outline(config: Config) -> nn.Module:
    """The model of this configuration, without content where it can be had so: not everything builds on meta."""
    with allocating(f"model={config.model.name}"), torch.device("cpu" if config.model.outside else "meta"):
        model = config.model.build()
        for _, settings in (*config.layers, *config.batch.layers()):
            settings.apply(model)
    return model


def has_norms(config: Config) -> bool:
    """Whether its model has BatchNorm or other modules with statistics: what they do depends on the samples of a pass.

    None of ours of language has, but for what `layers` makes of it.
    """
    may = config.model.inputs in ("images", "any") or bool(config.layers)
    return may and any(statistics_of(module) for module in outline(config).modules())
