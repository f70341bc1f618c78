"""No scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class NoScaling:
    """The rate is the schedule's at any batch size."""

    warmup: ClassVar[str] = "steps"

    def factor(self, size: int, tokens_per_sample: int) -> float:
        return 1.0
