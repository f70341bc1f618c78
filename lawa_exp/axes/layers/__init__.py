"""What a model's layers are made of: a name and a typed dataclass for each; several are applied in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.layers.settings import LayersSettings

LAYERS: Table[LayersSettings] = Table(
    __name__,
    custom="custom:CustomLayers",
)
