"""Weight averaging along a training run: one trajectory, many averages.

runs = lawa_exp.load("runs/sweeps/NAME")      # or a run, or a folder of runs, wherever it was moved to
runs.rows, runs.plot(), runs[0].weights("lawa-k5-s50")
run = lawa_exp.train(["model=gpt_tiny", "steps=300"])
paper = lawa_exp.claims("lawa", runs="runs")  # a paper's claims, judged by the runs there
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lawa_exp.api import load, train
    from lawa_exp.api.claims import claims

__version__ = "0.1.0"
__all__ = ["__version__", "claims", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in ("load", "train"):
        from lawa_exp import api

        return getattr(api, name)
    if name == "claims":
        from lawa_exp.api.claims import claims

        return claims
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
