"""A watch that touches what decides the weights is refused; one that only reads is called as it is."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from helpers import tiny
from torch import Tensor, nn
from training import training, updates

from lawa_exp.seams.callback import Callback
from lawa_exp.seams.guard import guarded
from lawa_exp.seams.samples import Pass
from lawa_exp.system.errors import Failed, UserError

CPU = torch.device("cpu")


class Net(nn.Module):
    """One layer, a buffer, and a parameter without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("seen", torch.zeros(2))


def with_gradients() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.layer(torch.ones(1, 2)).sum().backward()
    return net


class Touching(Callback):
    def __init__(self, touch: Callable[[Net], object], net: Net, at: int = 1) -> None:
        self.touch, self.net, self.at = touch, net, at

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        if step == self.at:
            self.touch(self.net)
        return {"weights": self.net.layer.weight.detach().sum()}


def in_place(net: Net) -> None:
    with torch.no_grad():
        net.layer.weight.add_(0.0)  # the same bytes: it is the write that is refused


def replaced(net: Net) -> None:
    net.layer.weight = nn.Parameter(net.layer.weight.detach().clone())


def drop_gradients(net: Net) -> None:
    net.zero_grad(set_to_none=True)


def give_gradient(net: Net) -> None:
    net.unused.grad = torch.zeros(3)


TOUCHES: dict[str, tuple[Callable[[Net], object], str]] = {
    "in_place": (in_place, "layer.weight"),
    "replaced": (replaced, "layer.weight"),
    "a_buffer": (lambda net: net.seen.add_(1), "seen"),
    "a_gradient": (lambda net: net.layer.bias.grad.mul_(2), "the gradient of layer.bias"),
    "drops_gradients": (drop_gradients, "the gradient of layer.weight"),
    "gives_a_gradient": (give_gradient, "the gradient of unused"),
    "a_random_draw": (lambda net: torch.rand(1), "the random state"),
    "a_seed": (lambda net: torch.manual_seed(3), "the random state"),
}
BY_DATA: dict[str, tuple[Callable[[Net], object], str]] = {  # where no version counter moves
    "data": (lambda net: net.layer.weight.data.add_(1), "layer.weight"),
    "data_of_a_buffer": (lambda net: net.seen.data.add_(1), "seen"),
    "data_of_a_gradient": (lambda net: net.layer.bias.grad.data.mul_(2), "the gradient of layer.bias"),
    "nan": (lambda net: net.seen.data.fill_(float("nan")), "seen"),
    "swapped": (lambda net: net.layer.bias.data.copy_(net.layer.bias.data.flip(0)), "layer.bias"),
    "numpy": (lambda net: net.seen.numpy().__setitem__(0, 5.0), "seen"),
}


@pytest.mark.parametrize("name", [*TOUCHES, *BY_DATA])
def test_a_watch_that_touches_is_refused_in_its_first_call(name: str) -> None:
    touch, what = {**TOUCHES, **BY_DATA}[name]
    net = with_gradients()
    watch = guarded("mine", Touching(touch, net), net, CPU)
    with pytest.raises(Failed, match=rf"^watch=mine: its after_passes changed {what}; a watch may only read$"):
        watch.after_passes(1)


@pytest.mark.parametrize("name", TOUCHES)
def test_and_in_a_later_one(name: str) -> None:
    touch, what = TOUCHES[name]
    net = with_gradients()
    watch = guarded("mine", Touching(touch, net, at=3), net, CPU)
    watch.after_passes(1), watch.after_passes(2)
    with pytest.raises(Failed, match=f"changed {what};"):
        watch.after_passes(3)


@pytest.mark.parametrize("moment", ["before_step", "before_pass", "arrived"])
def test_at_every_moment(moment: str) -> None:
    net = with_gradients()
    cls = type("Other", (Callback,), {moment: lambda self, *arguments: torch.rand(1)})
    watch = guarded("mine", cls(), net, CPU)
    with pytest.raises(Failed, match=f"its {moment} changed the random state"):
        getattr(watch, moment)(1, {})


@pytest.mark.parametrize("moment", ["begin", "after_update"])
def test_moments_in_which_weights_are_changed_are_refused_at_once(moment: str) -> None:
    cls = type("Other", (Callback,), {moment: lambda self, *arguments: None})
    with pytest.raises(UserError, match=f"^watch=mine: it only reads, and may have no {moment}; choose update=mine$"):
        guarded("mine", cls(), with_gradients(), CPU)


class Reading(Callback):
    """Reads weights, gradients and buffers; its numbers come back with the step's."""

    def __init__(self, objective: nn.Module) -> None:
        self.objective, self.calls = objective, list[str]()

    def before_step(self, step: int) -> None:
        self.calls.append(f"before_step {step}")

    def before_pass(self, at: Pass) -> None:
        self.calls.append(f"before_pass {at.step}")

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        self.calls.append(f"after_passes {step}")
        gradients = [p.grad.flatten() for p in self.objective.parameters() if p.grad is not None]
        return {"largest": torch.cat(gradients).abs().max(), "weight": next(self.objective.parameters()).detach().sum()}


def test_one_that_reads_passes_and_trains_the_same_bytes(tmp_path: Path) -> None:
    plain = training(tiny("steps=10"), tmp_path / "plain")
    updates(plain, 3)
    t = training(tiny("steps=10"), tmp_path / "watched")
    watch = Reading(t.objective)
    checked = guarded("mine", watch, t.objective, CPU)
    callbacks = type(t.callbacks)({**t.callbacks.named, "mine": checked})
    object.__setattr__(t, "callbacks", callbacks)
    numbers = updates(t, 3)
    assert watch.calls == [
        f"{moment} {s}" for s in (1, 2, 3) for moment in ("before_step", "before_pass", "after_passes")
    ]
    assert {"largest", "weight"} <= numbers.keys()
    assert all(torch.equal(t.live[name], of) for name, of in plain.live.items())
