"""No fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.fault.fault import Fault


@dataclass(frozen=True)
class NoFault(Fault):
    """Training without a fault."""

    absent: ClassVar[bool] = True
