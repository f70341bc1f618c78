"""What the settings of every feedback have."""

from __future__ import annotations

from typing import ClassVar

from lawa_exp.averaging import AveragerSettings
from lawa_exp.config.rules import Settings


class FeedbackSettings(Settings):
    """An averager, and how often its average goes back into the live weights."""

    every: int  # steps
    optimizer: str = "keep"  # what becomes of the optimizer's state then: keep or reset
    from_initial: ClassVar[bool] = False  # whether the averager begins with the initial weights

    @property
    def averager(self) -> AveragerSettings:
        raise NotImplementedError
