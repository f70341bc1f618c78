"""A model without content: what its settings decide of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lawa_exp.axes.model.settings import ModelSettings


def outline(model: ModelSettings) -> nn.Module:
    """The model of these settings, without content where it can be had so: not everything builds on meta."""
    with torch.device("cpu" if model.builder else "meta"):
        return model.build()


def has_norms(model: ModelSettings) -> bool:
    """Whether the model of these settings has BatchNorm; none of ours of language does."""
    return model.inputs in ("images", "any") and any(isinstance(m, _BatchNorm) for m in outline(model).modules())
