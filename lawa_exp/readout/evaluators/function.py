"""--evaluate package.module:function: what the user's own function says of tensors by name."""

from __future__ import annotations

from pathlib import Path

import torch

from lawa_exp.convert.checkpoints import read_checkpoint
from lawa_exp.evaluation.score import ByFunction, floating_names
from lawa_exp.readout.checkpoints import Fitted
from lawa_exp.readout.evaluators.base import Evaluator
from lawa_exp.readout.request import Request
from lawa_exp.readout.subject import Named
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import default_threads


def by_function(request: Request, reference: str, name: str, first: Path) -> Evaluator:
    """--evaluate package.module:function."""
    target = request.target
    if target.bn:
        raise UserError(f"--bn={target.bn}: not with --evaluate, whose function gets the latest statistics")
    torch.set_num_threads(target.threads or default_threads(1))
    own = read_checkpoint(first, target.key)
    return Evaluator(
        score=ByFunction(reference),
        fitted=Fitted(own, (), str(first)),
        named=Named(f"{name}, evaluated by {reference}", f"as {reference} gives it"),
        averaged=floating_names(own),
        device=torch.device("cpu"),
        no_test="--evaluate gives one loss",
        identity={"function": reference},
    )
