"""`readout --evaluate NAME`: one file is one evaluator, which may fit something, and says what rows come of weights."""

from __future__ import annotations

from lawa_exp.config.tables import Table
from lawa_exp.readout.evaluators.settings import EvaluatorSettings

EVALUATORS: Table[EvaluatorSettings] = Table(
    __name__,
    zeroshot="zeroshot:ZeroShotSettings",
    perplexity="perplexity:PerplexitySettings",
    calibration="calibration:CalibrationSettings",
)
