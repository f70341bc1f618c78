"""Objects by their addresses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def load(reference: str) -> Any:
    """The object behind `package.module:name`."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
