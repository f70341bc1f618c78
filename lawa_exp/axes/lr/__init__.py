"""Learning-rate schedules: a name and a typed dataclass for each."""

from __future__ import annotations

from lawa_exp.axes.lr.constant import Constant
from lawa_exp.axes.lr.cosine import Cosine
from lawa_exp.axes.lr.inverse_sqrt import InverseSqrt
from lawa_exp.axes.lr.on_the_fly import OnTheFly
from lawa_exp.axes.lr.polynomial import Polynomial
from lawa_exp.axes.lr.power import Power
from lawa_exp.axes.lr.step import Steps
from lawa_exp.axes.lr.wsd import WSD

SCHEDULES: dict[str, type] = {
    "constant": Constant,
    "cosine": Cosine,
    "polynomial": Polynomial,
    "step": Steps,
    "wsd": WSD,
    "inverse_sqrt": InverseSqrt,
    "power": Power,
    "on_the_fly": OnTheFly,
}
