"""One update: what it refuses, and that a training that has diverged changes no weight, whatever the optimizer."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training import training, updates

from lawa_exp.seams.callback import Callback, Callbacks
from lawa_exp.seams.objective import check_terms
from lawa_exp.seams.samples import Samples, check_samples
from lawa_exp.system.errors import UserError
from lawa_exp.training.setup import Setup
from seams.probes import forget, register

TOWER = [
    *("--config-dir", str(Path(__file__).parent / "conf"), "model=tower", "dataset=pydocs", "batch.size=4", "steps=9"),
    *("lr=constant", "lr.warmup_steps=0", "avg=none", "trainer.threads=1", "trainer.micro_batch=2"),
]


@pytest.fixture(autouse=True)
def probes() -> Iterator[None]:
    """The tables of this process have them meanwhile: other tests read these tables."""
    register()
    yield
    forget()


def tower(folder: Path, *words: str) -> Setup:
    return training([*TOWER, *words], folder)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "lars", "muon", "schedule_free"])
def test_weights_stay_once_a_loss_was_not_finite(optimizer: str, tmp_path: Path) -> None:
    """Three steps, then one of a loss that is not finite and two more, as on a GPU whose host does not know yet."""
    if optimizer == "schedule_free":
        pytest.importorskip("schedulefree")
    t = tower(tmp_path, f"optimizer={optimizer}")
    assert updates(t, 3)["bad"] == 0
    t.diverged.fill_(True)
    before = {name: tensor.clone() for name, tensor in {**t.live, **t.standing}.items()}
    assert updates(t, 2)["bad"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in {**t.live, **t.standing}.items())


class Spoils(Callback):
    """Makes gradients that are not finite, after clipping."""

    def __init__(self, t: Setup) -> None:
        self.parameters = t.parameters

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        for parameter in self.parameters:
            parameter.grad = torch.full_like(parameter, torch.nan)
        return {}


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_a_gradient_that_an_update_spoils_is_not_taken(optimizer: str, tmp_path: Path) -> None:
    t = tower(tmp_path, f"optimizer={optimizer}")
    t.callbacks.before_update[:] = Callbacks({"update.0": Spoils(t)}, ["update.0"]).before_update
    before = {name: tensor.clone() for name, tensor in t.live.items()}
    assert updates(t, 1)["bad"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in t.live.items())


def test_a_weight_of_a_term_that_no_pass_gives_is_refused(tmp_path: Path) -> None:
    t = tower(tmp_path)
    t.objective.weights = {"loss": 1.0, "smoth": 0.1}
    with pytest.raises(UserError, match="its weights name smoth, which no pass gave; terms: loss"):
        updates(t, 1)


class Names(Callback):
    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        return {"loss": torch.zeros(())}


class Begins(Callback):
    def begin(self, live: Mapping[str, Tensor]) -> None:
        """Something."""


def test_a_callback_takes_no_name_that_is_taken_and_begins_with_a_state_only(tmp_path: Path) -> None:
    t = tower(tmp_path)
    t.callbacks.after_passes.append(Names().after_passes)
    with pytest.raises(UserError, match="a callback gives loss, which is another number already"):
        updates(t, 1)
    with pytest.raises(UserError, match=r"update\.0: it has begin and no state"):
        Callbacks({"update.0": Begins()})


class Gives(Callback):
    """after_passes gives what it is told."""

    def __init__(self, what: object) -> None:
        self.what = what

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        return self.what  # type: ignore[return-value]


@pytest.mark.parametrize("what", [None, {"size": 3.0}, {"size": torch.zeros(2)}])
def test_numbers_of_a_callback_are_scalar_tensors(what: object, tmp_path: Path) -> None:
    t = tower(tmp_path)
    t.callbacks.after_passes.append(Gives(what).after_passes)
    with pytest.raises(UserError, match="expected scalar tensors by name, or an empty dict"):
        updates(t, 1)


def test_terms_of_an_objective_are_checked() -> None:
    one = torch.zeros(())
    check_terms({"loss": one}, {"loss": 1.0})
    for terms, weights, said in (
        (one, {"loss": 1.0}, "scalar tensors by name"),
        ({"loss": torch.zeros(2)}, {"loss": 1.0}, "scalar tensors by name"),
        ({"other": one}, {"other": 1.0}, "expected loss among them"),
        ({"loss": one}, {"mixd": 1.0}, "its weights name mixd, its forward gives loss"),
    ):
        with pytest.raises(UserError, match=said):
            check_terms(terms, weights)


def test_samples_are_checked() -> None:
    good = np.arange(3)
    check_samples(Samples(good, good), 3)
    for samples, said in (
        ([0, 1], "it gave a list; expected lawa_exp.seams.samples.Samples"),
        (Samples(good, good / 2), "arrays of integers"),
        (Samples(good, good), "indices from 0 to 2; expected 0 to 1"),
        (Samples(good, good - 1), "indices from -1 to 1; expected 0 to 1"),
    ):
        with pytest.raises(UserError, match=said):
            check_samples(samples, 2)
