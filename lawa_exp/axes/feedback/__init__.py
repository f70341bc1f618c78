"""Averages that go back into training: lookahead, switch_ema, lawa_restart. They determine the live weights.

Each is an averager and a period: after the optimizer's update the averager observes, and every `every` steps its
average, where it is defined, is copied over the live parameters (buffers stay). Other averagers and snapshots see the
weights after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.feedback.settings import FeedbackSettings

FEEDBACK: Table[FeedbackSettings] = Table(
    __name__,
    none="none:NoFeedback",
    lookahead="lookahead:LookaheadSettings",
    switch_ema="switch_ema:SwitchEmaSettings",
    lawa_restart="lawa_restart:LawaRestartSettings",
    custom="custom:CustomFeedback",
)
