"""The optimizers: a name and a typed dataclass with `build(model)`; torch is imported only when one is built.

The rate is set before each update: of a parameter group, the schedule's times its `rate_ratio` (default 1). An
optimizer may have `evaluated(live)`: the weights that it stands for, by name, where these are not the ones trained.
"""

from lawa_exp.axes.optimizer.adamw import AdamW
from lawa_exp.axes.optimizer.layerwise import LAMB, LARS
from lawa_exp.axes.optimizer.muon import Muon
from lawa_exp.axes.optimizer.schedule_free import ScheduleFree
from lawa_exp.axes.optimizer.sgd import SGD

OPTIMIZERS: dict[str, type] = {
    "adamw": AdamW,
    "sgd": SGD,
    "lars": LARS,
    "lamb": LAMB,
    "schedule_free": ScheduleFree,
    "muon": Muon,
}
