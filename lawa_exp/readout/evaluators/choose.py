"""The evaluator of a request: one of the table, the user's function, or a data set's own task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lawa_exp.config.rules import near
from lawa_exp.convert.recorded import recorded
from lawa_exp.readout.evaluators import EVALUATORS
from lawa_exp.readout.evaluators.base import Checkpoints, Evaluator
from lawa_exp.readout.evaluators.data import on_data
from lawa_exp.readout.evaluators.dataset import on_dataset
from lawa_exp.readout.evaluators.function import by_function
from lawa_exp.readout.evaluators.settings import settings_from
from lawa_exp.readout.request import Request
from lawa_exp.system.errors import UserError


def evaluator_for(request: Request, name: str, first: Callable[[], Path], folder: Path) -> Evaluator:
    """The requested one. name, folder: see `Checkpoints`; first: gives a checkpoint. UserError lists the choices."""
    e = request.evaluation
    if e.data is not None:
        return on_data(request, e.data, name, first())
    if e.samples is not None:
        raise UserError(f"--samples={e.samples}: is for --data")
    settings = settings_from(EVALUATORS, e.how, e.flags)
    if settings is None and e.how:
        if ":" not in e.how:
            raise UserError(f"--evaluate={e.how}: {near(e.how, EVALUATORS)}, or package.module:function")
        return by_function(request, e.how, name, first())
    shape = {} if request.target.repository is not None else recorded(first(), request.target.key)
    if settings is None:
        return on_dataset(request, Checkpoints(name, folder, shape))
    if e.dataset and not settings.on_dataset:
        raise UserError(f"--dataset={e.dataset}: not with --evaluate {e.how}")
    return settings.evaluator(request, Checkpoints(name, folder, shape))
