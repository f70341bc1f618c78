"""What the settings of every callback around the update have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from lawa_exp.seams.callback import Callback
    from lawa_exp.seams.context import Context


class UpdateSettings(Choice):
    """The settings of a callback around the update, which build it."""

    keeps_state: ClassVar[bool] = True

    def build(self, context: Context) -> Callback:
        raise NotImplementedError
