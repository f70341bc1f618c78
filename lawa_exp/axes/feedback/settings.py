"""What the settings of every feedback have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.averaging import AveragerSettings
from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from lawa_exp.seams.callback import Callback
    from lawa_exp.seams.context import Context


class FeedbackSettings(Choice):
    """An averager, and how often its average goes back into the live weights."""

    every: int  # steps
    optimizer: str = "keep"  # what becomes of the optimizer's state then: keep or reset
    from_initial: ClassVar[bool] = False  # whether the averager begins with the initial weights

    @property
    def folder_words(self) -> tuple[str, ...]:
        from lawa_exp.axes.feedback import FEEDBACK

        return () if self.absent else (FEEDBACK.kind_of(self),)

    def build(self, context: Context) -> Callback | None:
        """It at work; None where there is none."""
        from lawa_exp.axes.feedback.feedback import Feedback

        return Feedback(self, context.averaged, context.optimizer)

    @property
    def averager(self) -> AveragerSettings:
        raise NotImplementedError
