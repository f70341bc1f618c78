"""New statistics of norms for an average, in any loop."""

import warnings
from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch
from torch import nn

from lawa_exp.averaging import Ema, Lawa, recalibrate
from lawa_exp.averaging.statistics import _moved

Pair = namedtuple("Pair", "inputs targets")


class Net(nn.Module):
    """A norm that is passed twice, one without momentum, one in evaluation mode, one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.BatchNorm1d(6, momentum=None)
        self.third = nn.BatchNorm1d(6).eval()
        self.fourth = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x):
        if isinstance(x, dict):
            x = x["inputs"]
        x = self.norm(torch.tanh(self.norm(self.first(x))))
        return self.fourth(self.third(self.second(x)))


def trained(net: type[nn.Module] = Net) -> tuple[nn.Module, Lawa]:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lawa = Lawa(model, k=2, spacing=1)
    for step in range(1, 5):
        model(torch.randn(8, 4) + step).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        lawa.update(step)
    return model, lawa


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(size, 4, generator=generator) for size in (8, 8, 5)]


FORMS = {
    "tensors": (batches, None),
    "tuples": (lambda: [(x, torch.zeros(len(x))) for x in batches()], None),
    "lists": (lambda: [[x, None] for x in batches()], None),
    "named tuples": (lambda: (Pair(x, "a target") for x in batches()), None),
    "dicts": (lambda: [{"inputs": x} for x in batches()], None),
    "arguments": (lambda: [{"x": x} for x in batches()], lambda model: lambda batch: model(**batch)),
}


@pytest.mark.parametrize("form", FORMS)
def test_they_are_those_of_update_bn_to_the_bit(form):
    make, forward = FORMS[form]
    model, lawa = trained()
    reference = Net()
    reference.load_state_dict(lawa.full_average())
    torch.optim.swa_utils.update_bn(batches(), reference)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    with lawa.applied():
        recalibrate(lawa, make(), forward(model) if forward else None)
        inside = lawa.full_average()
        assert [m.training for m in model.modules()] == modes and model.second.momentum is None
    for name, tensor in reference.state_dict().items():
        assert torch.equal(inside[name], tensor), name
    assert not torch.equal(inside["norm.running_mean"], before["norm.running_mean"])
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert torch.equal(lawa.average()["norm.running_mean"], before["norm.running_mean"])


def test_closed_form_and_dropout():
    """The mean over batches of each batch's mean and unbiased variance, with nothing dropped."""

    class Dropping(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))

    model, lawa = trained(Dropping)
    average = lawa.average()
    outputs = [torch.nn.functional.linear(x, average["0.weight"], average["0.bias"]).double() for x in batches()]
    with lawa.applied():
        recalibrate(lawa, batches())
        norm = model[2]
        mean, variance = norm.running_mean.double(), norm.running_var.double()
    torch.testing.assert_close(mean, sum(o.mean(0) for o in outputs) / 3, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance, sum(o.var(0) for o in outputs) / 3, rtol=1e-6, atol=1e-6)


def test_in_another_model_and_a_moved_batch():
    model, lawa = trained()
    other = Net().double()
    with lawa.applied(other):
        recalibrate(lawa, ({"inputs": x.double()} for x in batches()))
        assert other.norm.num_batches_tracked == 6 and model.norm.num_batches_tracked == 8


def test_what_holds_a_batch_is_moved_as_what_it_is():
    meta, x = torch.device("meta"), torch.ones(1)
    of_transformers = pytest.importorskip("transformers").BatchEncoding
    batches = [of_transformers({"x": x}), OrderedDict(x=x), defaultdict(list, x=x), {"x": [x, (x, 1)]}]
    for batch in batches:
        moved = _moved(batch, meta)
        assert type(moved) is type(batch) and list(moved) == ["x"]
        if not isinstance(batch["x"], list):
            assert moved["x"].device == meta
    assert moved["x"][1][0].device == meta and batch["x"][0] is x and moved["x"][1][1] == 1


def test_a_module_of_the_protocol():
    """It needs no base class (`lawa_exp.seams.layers`)."""

    class Largest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("largest", torch.zeros(()))
            self.weight = nn.Parameter(torch.ones(4))
            self.observing = False

        def forward(self, x):
            if self.training or self.observing:
                self.largest.copy_(torch.maximum(self.largest, (x * self.weight).detach().abs().max()))
            return x * self.weight

        def statistics(self):
            return {"largest": self.largest}

        def reset(self):
            self.largest.zero_()

        def observe(self):
            from contextlib import ExitStack

            stack, self.observing = ExitStack(), True
            stack.callback(setattr, self, "observing", False)
            return stack

        def frozen(self): ...

    model, lawa = trained(Largest)
    with lawa.applied():
        recalibrate(lawa, batches())
        assert model.largest == max((x * model.weight).abs().max() for x in batches())


def test_what_is_refused():
    model, lawa = trained()
    with pytest.raises(RuntimeError, match=r"lawa-k2-s1: call recalibrate inside `applied\(\)`"):
        recalibrate(lawa, batches())
    with lawa.applied():
        latest = model.norm.running_mean.clone()
        with pytest.raises(ValueError, match="lawa-k2-s1: recalibrate was given no batches"):
            recalibrate(lawa, [])
        assert torch.equal(model.norm.running_mean, latest)


def test_an_averager_of_a_model_with_statistics_says_so_once():
    model = Net()
    with pytest.warns(UserWarning, match=r"norm \(BatchNorm1d\) and 2 more: an average has .*recalibrate") as said:
        Lawa(model)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ema(model)
        Lawa(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2, track_running_stats=False)))
    with pytest.warns(UserWarning, match=r"the model \(BatchNorm1d\): an average has"):
        Lawa(nn.BatchNorm1d(2))
