"""Weight averaging along a training run.

In any training loop (nothing but torch and numpy is imported):

    from lawa_exp.averaging import Ema, Lawa

    lawa = Lawa(model, k=5, spacing=1000)
    for step in range(1, steps + 1):
        ...  # forward, backward, optimizer.step()
        lawa.update(step)
    with lawa.applied():
        evaluate(model)

An averager is one file: `lawa`, `wma`, `ema`, `power_ema`, `swa`, `bema` hold its settings with the closed form, its
arithmetic and its class for such a loop. The other modules are what averagers share with each other, the trainer, the
read-outs and the averaging of files.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.averaging.averager import Averager, build_averager
    from lawa_exp.averaging.bema import Bema, BemaSettings
    from lawa_exp.averaging.ema import Ema, EmaSettings
    from lawa_exp.averaging.lawa import Lawa, LawaSettings
    from lawa_exp.averaging.model import ModelAverager
    from lawa_exp.averaging.power_ema import PowerEma, PowerEmaSettings
    from lawa_exp.averaging.settings import AveragerSettings, observed_steps, observes, row_fields
    from lawa_exp.averaging.statistics import recalibrate
    from lawa_exp.averaging.swa import Swa, SwaSettings
    from lawa_exp.averaging.window import Window
    from lawa_exp.averaging.wma import Wma, WmaSettings

__all__ = [
    "AVERAGERS",
    "Averager",
    "AveragerSettings",
    "Bema",
    "BemaSettings",
    "Ema",
    "EmaSettings",
    "Lawa",
    "LawaSettings",
    "ModelAverager",
    "PowerEma",
    "PowerEmaSettings",
    "Swa",
    "SwaSettings",
    "Window",
    "Wma",
    "WmaSettings",
    "build_averager",
    "observed_steps",
    "observes",
    "recalibrate",
    "row_fields",
]


class Averagers(Table["AveragerSettings"]):
    """The averagers by name, which is the `kind` that rows and ids have."""

    def __getitem__(self, name: str) -> type[AveragerSettings]:
        settings = super().__getitem__(name)
        assert settings.kind == name, f"{settings.__name__}.kind is {settings.kind!r}: expected {name!r}, its name here"
        return settings


AVERAGERS = Averagers(
    __name__,
    lawa="lawa:LawaSettings",
    wma="wma:WmaSettings",
    ema="ema:EmaSettings",
    power_ema="power_ema:PowerEmaSettings",
    bema="bema:BemaSettings",
    swa="swa:SwaSettings",
    custom="custom:CustomSettings",
)

MODULES = {  # where else public names are
    **dict.fromkeys(("Averager", "build_averager"), "averager"),
    **dict.fromkeys(("AveragerSettings", "observed_steps", "observes", "row_fields"), "settings"),
    "ModelAverager": "model",
    "recalibrate": "statistics",
    "Window": "window",
}


def __getattr__(name: str) -> Any:
    """A public name, whose module is imported when it is looked up: commands start without, and nobody needs all."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    kind = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Settings")).lower()
    return getattr(importlib.import_module(f"{__name__}.{MODULES.get(name, kind)}"), name)
