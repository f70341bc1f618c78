"""Tensors of a file under the names of a model of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def as_loaded(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers loads them into a model of its own: it gives tensors of some files other names, or joins them.

    Those of a base model get the prefix that they have here, and experts of a layer become one tensor; tensors that the
    class does not load, and does not ignore, stay. Where one is missing or has another shape, all come back as they
    are, and who compares the names says what it is.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind: Any = type(model)
    try:
        made, report = kind.from_pretrained(
            None, config=model.config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True
        )
    except Exception:  # several packages' own kinds
        return tensors
    unexpected = report.pop("unexpected_keys", ())
    return tensors if any(report.values()) else {**made.state_dict(), **{name: tensors[name] for name in unexpected}}
