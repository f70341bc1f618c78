"""Nothing in an update waits for the device, from a process's second update on: every choice that acts in one."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import tiny
from torch import Tensor, nn
from training import training, updates
from waits import Waited, no_waits

from lawa_exp.axes.optimizer import OPTIMIZERS
from lawa_exp.training.setup import Setup

CONF = Path(__file__).parents[2] / "conf"
ACTING = ("optimizer", "objective", "layers", "update", "feedback", "watch", "fault")  # groups with a part in an update
NEEDS = {  # what a choice needs besides itself
    "schedule_free": ["lr=constant"],
    "noise_scale": ["logger.every=1", "trainer.micro_batch=2"],
    "lookahead": ["feedback.every=2"],
    "lawa_restart": ["feedback.every=2", "feedback.k=2", "feedback.spacing=1"],
    "switch_ema": ["feedback.every=2"],
    "rate": ["fault.at=1", "fault.length=2", "fault.factor=2"],
    "batches": ["fault.at=1", "fault.length=2"],
}
CHOICES = [
    (group, file.stem)
    for group in ACTING
    for file in sorted((CONF / group).glob("*.yaml"))
    if file.stem != "custom"  # a user's own
]
NORMED = [*tiny("batch.size=8"), "model=custom", "model.builder=normed:Normed", "model.context=32"]
NORMED = [o for o in NORMED if not o.startswith(("model.layers", "model.width", "model.heads"))]
RESNET = ["model=resnet20", "model.layers=8", "dataset=digits", "batch.size=8", "steps=10", "trainer.threads=1"]
ROBERTA = ["model=roberta_base", "model.layers=1", "model.width=16", "model.heads=2", "model.context=48"]
ROBERTA += [
    "model.vocab_size=null",
    "dataset=pydocs_mlm",
    "batch.size=4",
    "steps=10",
    "lr.warmup_steps=2",
    "lr.horizon=null",
]
ADAPTIVE = ["model=transformer_lm_wiki103", "model.layers=1", "model.width=16", "model.heads=2", "model.hidden=16"]
ADAPTIVE += ["model.context=16", "model.vocab_size=null", "model.cutoffs=[100,200]", "dataset=pydocs", "batch.size=4"]
ADAPTIVE += ["steps=10", "lr.warmup_steps=2", "evaluate.every=10", "spacing=1", "k=2"]
MODELS = {
    "gpt": tiny(),
    "accumulation": tiny("trainer.micro_batch=1"),
    "clipping": tiny("optimizer.clip_norm=0.1"),
    "bfloat16": tiny("trainer.dtype=bfloat16"),
    "recomputed": tiny("trainer.checkpoint_activations=true"),
    "resnet": RESNET,
    "resnet-recomputed": [*RESNET, "trainer.checkpoint_activations=true", "batch.norm_group=2"],
    "norm_group": [*NORMED, "batch.norm_group=2", "trainer.micro_batch=4"],
    "cct": ["model=cct_2", "model.width=16", "dataset=digits", "batch.size=8", "steps=10", "lr.warmup_steps=2"],
}
# The host must know the width of the longest text, or how many of the words are rare.
WAITING = {"roberta": ROBERTA, "adaptive_lm": ADAPTIVE}


def without_waits(t: Setup) -> dict[str, Tensor]:
    """The numbers of the last of four updates; from the second on nothing may wait."""
    return updates(t, 4, lambda step: no_waits() if step > 1 else nullcontext())


@pytest.mark.parametrize("group, name", CHOICES, ids=[f"{group}={name}" for group, name in CHOICES])
def test_no_choice_waits(group: str, name: str, tmp_path: Path) -> None:
    numbers = without_waits(training([*tiny("steps=10"), f"{group}={name}", *NEEDS.get(name, [])], tmp_path))
    assert numbers["loss"].isfinite() and not numbers["bad"]


@pytest.mark.parametrize("form", ["scaled_velocity", "scaled_update"])
def test_no_form_of_lars_waits(form: str, tmp_path: Path) -> None:
    without_waits(training(tiny("optimizer=lars", f"optimizer.momentum_form={form}"), tmp_path))


@pytest.mark.parametrize("name", MODELS)
def test_no_model_waits(name: str, tmp_path: Path) -> None:
    without_waits(training(MODELS[name], tmp_path))


@pytest.mark.parametrize("name", WAITING)
def test_models_that_are_known_to_wait(name: str, tmp_path: Path) -> None:
    """Where this fails one of them was mended: its line belongs to MODELS."""
    with pytest.raises(Waited, match=r"by a mask|nonzero|__int__"):
        without_waits(training(WAITING[name], tmp_path))


def test_norm_groups_with_a_cumulative_average_do_not_wait(tmp_path: Path) -> None:
    """Their shares follow from `num_batches_tracked`, which the host counts too: what was read is what is there."""
    t = training([*NORMED, "batch.norm_group=2", "trainer.micro_batch=4"], tmp_path)
    for module in t.model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None
    without_waits(t)
    assert t.live["norm.num_batches_tracked"] == 4 * 4


def test_every_optimizer_is_among_the_choices() -> None:
    kinds = {line.split()[1] for g, n in CHOICES if g == "optimizer" for line in lines_of(CONF / g / f"{n}.yaml")}
    assert set(OPTIMIZERS) - {"custom"} <= kinds, "one without a file in conf/optimizer"


def lines_of(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.startswith("kind:")]


X = torch.tensor([1.0, 2.0])
WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: 1 if (x > 1).any() else 0,
    "range": lambda x: range(x.long().sum()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", torch.float64),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "mask": lambda x: x[x > 1],
    "mask_assigned": lambda x: x.clone().__setitem__(x > 1, X[:1]),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "in": lambda x: 1.0 in x,
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "backward": lambda x: backward_hook(x),
}


def backward_hook(x: Tensor) -> None:
    weight = nn.Parameter(x.clone())
    weight.register_hook(lambda gradient: gradient * gradient.sum().item())
    weight.sum().backward()


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_seen(name: str) -> None:
    WAITS[name](X)
    with pytest.raises(Waited), no_waits():
        WAITS[name](X)


def test_what_does_not_wait_passes() -> None:
    with no_waits():
        torch.where(X > 1, X, 0.0).masked_fill_(X > 1, 0.0).sum().add_(1).clamp(min=0).isfinite().float()
