"""What the settings of every sampler have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from lawa_exp.seams.context import Context
    from lawa_exp.seams.sampler import Sampler


class SamplingSettings(Choice):
    """The settings of a sampler, which build it."""

    keeps_state: ClassVar[bool] = True

    def build(self, context: Context) -> Sampler:
        raise NotImplementedError
