"""Faults that are injected on purpose: a name and a typed dataclass for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.fault.fault import Fault

FAULTS: Table[Fault] = Table(
    __name__,
    none="none:NoFault",
    batches="batches:BadBatches",
    rate="rate:RateBurst",
    custom="custom:CustomFault",
)
