"""Averages that go back into training: lookahead, switch_ema, lawa_restart. They determine the live weights.

Each is an averager and a period: after the optimizer's update the averager observes, and every `every` steps its
average, where it is defined, is copied over the live parameters (buffers stay). Other averagers and snapshots see the
weights after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from lawa_exp.axes.feedback.lawa_restart import LawaRestartSettings
from lawa_exp.axes.feedback.lookahead import LookaheadSettings
from lawa_exp.axes.feedback.none import NoFeedback
from lawa_exp.axes.feedback.switch_ema import SwitchEmaSettings

FEEDBACK: dict[str, type] = {
    "none": NoFeedback,
    "lookahead": LookaheadSettings,
    "switch_ema": SwitchEmaSettings,
    "lawa_restart": LawaRestartSettings,
}
