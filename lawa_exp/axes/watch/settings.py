"""What the settings of every watch have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from lawa_exp.seams.callback import Callback
    from lawa_exp.seams.context import Context


class WatchSettings(Choice):
    """The settings of a callback that only reads; they are in no trajectory id."""

    def build(self, context: Context) -> Callback:
        """It has no `begin` and no `after_update`, and changes no weight, no gradient and no random state."""
        raise NotImplementedError
