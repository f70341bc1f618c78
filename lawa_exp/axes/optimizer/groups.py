"""Parameters in groups: what decays and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lawa_exp.config.rules import one_of

if TYPE_CHECKING:
    from torch import nn

EXCLUDED = one_of("vectors", "none")  # tensors of fewer than two dimensions: biases and norms


def matrices_and_vectors(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, where both exist: tensors of two or more dimensions, which decay, and the others, which do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def fusable(model: nn.Module) -> bool:
    """Whether its parameters have content, which torch's fused kernels need: a plan's have none."""
    return not any(p.is_meta for p in model.parameters())


def groups_with_adaptation(
    model: nn.Module, weight_decay: float, decay_excludes: str, adaptation_excludes: str
) -> list[dict[str, Any]]:
    """`matrices_and_vectors`; `adapts` says whether the norm of a tensor's weights scales its update."""
    groups = matrices_and_vectors(model, weight_decay)
    for group in groups:
        vectors = group["params"][0].dim() < 2
        group["adapts"] = not (vectors and adaptation_excludes == "vectors")
        if decay_excludes == "none":
            group["weight_decay"] = weight_decay
    return groups
