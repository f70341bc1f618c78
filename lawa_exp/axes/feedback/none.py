"""No feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.feedback.settings import FeedbackSettings

if TYPE_CHECKING:
    from lawa_exp.seams.context import Context


@dataclass(frozen=True)
class NoFeedback(FeedbackSettings):
    """Training is only observed."""

    absent: ClassVar[bool] = True

    def build(self, context: Context) -> None:
        return None
