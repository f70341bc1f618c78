"""What is trained: (model, batch) -> the terms of a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lawa_exp.seams.callback import Callback, Saved
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.seams.dataset import Inputs
    from lawa_exp.seams.samples import Pass, Samples
    from lawa_exp.system.distributed import Ranks


class Objective(nn.Module, Callback):
    """`model` is what is evaluated, averaged and kept as snapshots. An objective that has modules of its own trains,
    clips and saves them with it; they are in no snapshot and no average. A teacher, which is not trained, is kept in a
    tuple, so that it is no module of the objective.

    DDP calls `forward` before the first step, on samples of val: it may not need `before_pass` or `look`. Who overrides
    `arrived`, `state` or `load` calls those of this class, too.

    A term is a sum over a pass; divided by its denominator (`counts`) and summed over passes and ranks it is a mean
    over the batch. `loss` is the plain loss of the task, which rows have.

    weights: how much each term counts in what is trained; the others are only computed. reported: the terms that
    training rows have, besides `loss` and, where it is another number, `objective`, which is what is trained.
    """

    weights: Mapping[str, float] = {"loss": 1.0}
    reported: Sequence[str] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        """The terms of one pass, scalars: `loss`, and others."""
        raise NotImplementedError

    def counts(self, samples: Samples, targets: int) -> Mapping[str, int]:
        """The denominator of each term, of the whole batch, on the host; a term without one is a mean over samples.

        targets: how many targets of the batch count for the task.
        """
        return {"loss": targets}

    def look(self, at: Pass, inputs: Inputs, targets: Tensor) -> None:
        """One of this rank's passes over the whole batch, without gradients, before those that train."""

    def looked(self, step: int, ranks: Ranks) -> None:
        """The last `look` of this step is done, on every rank."""

    @property
    def looks(self) -> bool:
        """Whether `look` is overridden."""
        return type(self).look is not Objective.look

    def own(self) -> dict[str, Tensor]:
        """Its parameters and buffers that are not the model's, by name: `objective.` before their own.

        What is tied to the model's is the model's.
        """
        of_model = {id(t) for t in (*self.model.parameters(), *self.model.buffers())}
        named = (*self.named_parameters(), *self.named_buffers())
        return {f"objective.{name}": t for name, t in named if id(t) not in of_model}

    def arrived(self, step: int, numbers: Mapping[str, float]) -> Mapping[str, float]:
        return {name: numbers[name] for name in ("objective", *self.reported) if name in numbers}

    def state(self) -> Saved:
        return {name: local(t.detach()) for name, t in self.own().items()}, {}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        for name, tensor in self.own().items():
            local(tensor).copy_(tensors[name])


def check_terms(terms: object, weights: Mapping[str, float]) -> None:
    """UserError where a pass did not give what `Objective.forward` says, or no term that is trained."""
    if not isinstance(terms, dict) or any(not isinstance(t, Tensor) or t.ndim for t in terms.values()):
        raise UserError("objective: its forward is to give scalar tensors by name, the terms of the loss")
    if "loss" not in terms:
        raise UserError(f"objective: its forward gives {', '.join(terms)}; expected loss among them, the task's own")
    if not terms.keys() & weights.keys():
        raise UserError(f"objective: its weights name {', '.join(weights)}, its forward gives {', '.join(terms)}")


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, else the tensor."""
    rows: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return rows
