"""What is measured while training, and changes nothing: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.watch.settings import WatchSettings

WATCHES: Table[WatchSettings] = Table(
    __name__,
    noise_scale="noise_scale:NoiseScaleSettings",
    custom="custom:CustomWatch",
)
