"""Faults that are injected on purpose: a name and a typed dataclass for each."""

from __future__ import annotations

from lawa_exp.axes.fault.batches import BadBatches
from lawa_exp.axes.fault.fault import NoFault
from lawa_exp.axes.fault.rate import RateBurst

FAULTS: dict[str, type] = {"none": NoFault, "batches": BadBatches, "rate": RateBurst}
