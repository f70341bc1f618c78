"""Parameters in groups: what decays and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def matrices_and_vectors(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, where both exist: tensors of two or more dimensions, which decay, and the others, which do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
