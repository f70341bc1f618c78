"""--evaluate calibration: whether probabilities are what they say, before and after one temperature is fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from lawa_exp.config.rules import integer
from lawa_exp.readout.evaluators.settings import EvaluatorSettings, flag

if TYPE_CHECKING:
    from lawa_exp.readout.evaluators.base import Checkpoints, Evaluator
    from lawa_exp.readout.request import Request


@dataclass(frozen=True)
class CalibrationSettings(EvaluatorSettings):
    """bins: of equal width, that confidences are sorted into."""

    on_dataset: ClassVar[bool] = True
    bins: int = flag(integer(2), "N", "into which confidences are sorted (default: 15)", 15)

    def evaluator(self, request: Request, checkpoints: Checkpoints) -> Evaluator:
        from lawa_exp.evaluation.calibration import MEANING, Calibration
        from lawa_exp.readout.evaluators.dataset import on_dataset

        made = on_dataset(request, checkpoints, partial(Calibration, bins=self.bins))
        return replace(
            made,
            notes=[*made.notes, f"Calibration: {MEANING} ({self.bins} bins)."],
            label="calibration",
            identity={**made.identity, "calibration": self.bins},
        )
