"""A model without content: what its settings, and those of its layers, decide of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from lawa_exp.axes.configuration import Config


def outline(config: Config) -> nn.Module:
    """The model of this configuration, without content where it can be had so: not everything builds on meta."""
    with torch.device("cpu" if config.model.builder else "meta"):
        model = config.model.build()
        for _, settings in (*config.layers, *config.batch.layers()):
            settings.apply(model)
    return model


def has_norms(config: Config) -> bool:
    """Whether its model has BatchNorm; none of ours of language does."""
    return config.model.inputs in ("images", "any") and any(
        isinstance(module, _BatchNorm) for module in outline(config).modules()
    )
