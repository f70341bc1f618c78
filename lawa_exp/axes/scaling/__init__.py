"""What the batch size does to the rate: a name and a typed dataclass for each."""

from __future__ import annotations

from lawa_exp.axes.scaling.capped import Capped
from lawa_exp.axes.scaling.linear import Linear
from lawa_exp.axes.scaling.none import NoScaling
from lawa_exp.axes.scaling.power import PowerScaling
from lawa_exp.axes.scaling.sqrt import SquareRoot

SCALINGS: dict[str, type] = {
    "none": NoScaling,
    "linear": Linear,
    "sqrt": SquareRoot,
    "capped": Capped,
    "power": PowerScaling,
}
