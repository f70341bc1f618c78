"""A row of the live weights and of every average that is defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lawa_exp.averaging import Averager, row_fields
from lawa_exp.averaging.tensors import statistics_names
from lawa_exp.evaluation.batchnorm import policy_field, recalibrate, running_field, with_statistics
from lawa_exp.evaluation.evaluate import evaluate
from lawa_exp.seams.layers import statistics_kept
from lawa_exp.seams.sampler import seen_data
from lawa_exp.storage.rows import LIVE, Row, evaluation_row

if TYPE_CHECKING:
    from lawa_exp.training.keeper import Keeper
    from lawa_exp.training.setup import Setup
    from lawa_exp.training.state import State

Place = Callable[[Mapping[str, Tensor]], None]  # puts weights into the model


def evaluate_all(t: Setup, state: State, keep: Keeper, split: str) -> list[Row]:
    """Live weights first. Evaluated on val, averages go to the disk. One copy of the live weights serves them all."""
    keep.settle()
    seen = seen_data(t.sampler, t.batches, t.config.passes, state.step)
    standing, averages = t.standing, [(id, a) for id, a in state.averagers.items() if a.defined]
    if standing is t.live and not averages:
        return [live_row(t, state.step, split, seen)]
    with t.swap.session() as place:
        if standing is not t.live:
            place(standing)
        rows = [live_row(t, state.step, split, seen)]
        del standing  # a copy of the model, where they are not the live ones
        for id, averager in averages:
            weights = averager.average()
            assert weights is not None, id
            weights = as_evaluated(t, averager, weights, place)
            named = row_fields(averager.settings)
            scored = evaluate(t.evaluation, split)
            rows.append(evaluation_row(state.step, split, named, policy_field(t.bn), scored, seen))
            if split == "val":
                keep.average(id, averager, weights)
    return rows


def live_row(t: Setup, step: int, split: str, seen: Mapping[str, float]) -> Row:
    """Of the weights that are in place, with the statistics that `evaluate.bn` asks for."""
    scored = evaluate(t.evaluation, split)
    running = running_field(t.bn, scored["loss"])
    if t.bn == "recalibrate":
        with statistics_kept(t.model):
            recalibrate(t.model, t.evaluation, t.config)
            scored = evaluate(t.evaluation, split)
    return evaluation_row(step, split, LIVE, policy_field(t.bn), scored, running, seen)


def as_evaluated(t: Setup, averager: Averager, weights: dict[str, Tensor], place: Place) -> dict[str, Tensor]:
    """Puts an average into the model; returns it with the statistics that it is evaluated with."""
    weights = with_statistics(averager, weights, t.bn)
    place(weights)
    if t.bn == "recalibrate":
        recalibrate(t.model, t.evaluation, t.config)
        own = {name: t.live[name].clone() for name in statistics_names(t.model)}
        if all(tensor.isfinite().all() for tensor in own.values()):  # else the file has the latest ones
            weights |= own
    return weights
