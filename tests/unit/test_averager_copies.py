"""Averagers as objects: whole averages load into tied models, copies go on alone, a changed model is named."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lawa_exp.averaging import Bema, Ema, Lawa, ModelAverager, Swa, Window


class Tied(nn.Module):
    """One weight under three names, one of them inside an activation checkpoint; and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 5), nn.BatchNorm1d(5)
        self.head, again = nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        self.head.weight = again.weight = self.embed.weight
        self.again = checkpoint_wrapper(again)


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


MAKERS: dict[str, Callable[[nn.Module], ModelAverager]] = {
    "lawa": lambda model: Lawa(model, k=2, spacing=1),
    "ema": lambda model: Ema(model, decay=0.5),
    "swa": Swa,
    "bema": lambda model: Bema(model, every=1),
}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_the_whole_average_of_a_tied_model_loads_into_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Tied()
    lawa = Lawa(wrap(model), k=2, spacing=1)
    for step in (1, 2):
        fill(model, step)
        lawa.update(step)
    whole = lawa.full_average()
    assert whole.keys() == model.state_dict().keys()
    assert len({t.data_ptr() for t in whole.values()}) == len(whole), "tensors share memory"
    fresh = Tied()
    fresh.load_state_dict(whole)
    assert all((p == 1.5).all() for p in fresh.parameters())
    once = lawa.full_average(tied_once=True)
    assert whole.keys() - once.keys() == {"head.weight", "again.weight"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["copy", "pickle"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_copy_goes_on_alone(
    make: Callable[[nn.Module], ModelAverager], copied: Callable[[ModelAverager], ModelAverager]
) -> None:
    averager, twin = make(Tied()), make(Tied())
    for each in (averager, twin):
        fill(each.model, 1)
        each.update(1)
    other = copied(averager)
    fill(averager.model, 100)
    averager.update(2)
    for each in (other, twin):
        fill(each.model, 3)
        each.update(2)
    assert torch.equal(other.average()["embed.weight"], twin.average()["embed.weight"])
    assert not torch.equal(other.average()["embed.weight"], averager.average()["embed.weight"])
    with other.applied():
        assert torch.equal(other.model.head.weight, twin.average()["embed.weight"])
        with pytest.raises(RuntimeError, match="an average is in place"):
            copied(other)


def test_copies_of_two_averagers_share_a_window_on_the_disk_as_they_did(tmp_path) -> None:
    model = Tied()
    window = Window(tmp_path)
    window.fence_before(torch.optim.SGD(model.parameters(), lr=0.1))
    two = [Lawa(model, k=2, spacing=1, window=window), Lawa(model, k=1, spacing=1, window=window)]
    fill(model, 1)
    for averager in two:
        averager.update(1)
    first, second = copy.deepcopy(two)
    assert first.window is second.window is not window and first.model is second.model is not model
    fill(first.model, 2)
    first.update(2)
    second.update(2)
    assert first.average()["head.bias"].tolist() == [1.5] * 5 and second.average()["head.bias"].tolist() == [2] * 5
    assert two[1].average()["head.bias"].tolist() == [1] * 5


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_parameter_that_changes_its_shape_is_named(make: Callable[[nn.Module], ModelAverager]) -> None:
    model = Tied()
    averager = make(model)
    averager.update(1)
    model.head.bias.data = torch.ones(7)
    with pytest.raises(ValueError, match=r"the model has changed, head\.bias had shape \[5\] and has \[7\]"):
        averager.update(2)
    model.head.bias = nn.Parameter(torch.ones(5))
    model.late = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="late is a parameter that it did not have"):
        averager.update(2)
    del model.late
    averager.update(2)


def test_a_parameter_without_a_shape_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"1\.weight has no shape yet: run one forward pass"):
        Lawa(model)
    model(torch.ones(1, 2))
    Lawa(model)


def test_an_averager_says_what_it_is() -> None:
    averager = Lawa(nn.Linear(2, 2), k=2, spacing=3)
    assert repr(averager) == "<Lawa(k=2, spacing=3, start=0) of Linear: undefined>"
    for step in range(1, 8):
        averager.update(step)
    assert repr(averager) == "<Lawa(k=2, spacing=3, start=0) of Linear: defined after step 7>"
    assert repr(pickle.loads(pickle.dumps(averager))) == repr(averager) == repr(copy.deepcopy(averager))
