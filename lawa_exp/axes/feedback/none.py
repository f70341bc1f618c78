"""No feedback."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.feedback.settings import FeedbackSettings


@dataclass(frozen=True)
class NoFeedback(FeedbackSettings):
    """Training is only observed."""
