"""Results and trainings in Python: `lawa_exp.load`, `lawa_exp.train`."""

from lawa_exp.api.runs import Run, Runs, load
from lawa_exp.api.training import train

__all__ = ["Run", "Runs", "load", "train"]
