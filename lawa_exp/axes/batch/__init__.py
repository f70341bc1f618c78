"""Batch sizes by step: a name and a typed dataclass for each."""

from __future__ import annotations

from lawa_exp.axes.batch.constant import ConstantBatch
from lawa_exp.axes.batch.ramp import RampBatch
from lawa_exp.axes.batch.steps import StepsBatch

BATCHES: dict[str, type] = {"constant": ConstantBatch, "steps": StepsBatch, "ramp": RampBatch}
