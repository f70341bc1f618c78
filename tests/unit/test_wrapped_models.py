"""What is averaged of models in wrappers, with ties and with hooks: every parameter, whatever it is called, or none."""

import random
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.nn.utils import parametrizations, parametrize

from lawa_exp.averaging import Ema, EmaSettings, Lawa, Swa, build_averager
from lawa_exp.averaging.tensors import averaged_names, live_tensors, statistics_in, statistics_names
from lawa_exp.averaging.window import Window

CLOSED_FORMS = [  # of weights 1, 2, 3 after three steps
    (lambda model: Lawa(model, k=3, spacing=1), 2.0),
    (lambda model: Ema(model, decay=0.5), 2.25),
    (lambda model: Swa(model), 2.0),
]


def set_weights(model: nn.Module, step: int) -> list[nn.Parameter]:
    """The n-th parameter to n * step, buffers to the step; the parameters that are floating-point numbers."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    with torch.no_grad():
        for n, parameter in enumerate(parameters, 1):
            parameter.fill_(n * step)
        for buffer in model.buffers():
            buffer.fill_(step)
    return parameters


def check(model: nn.Module) -> None:
    """By what the model computes with, so that no name matters; and by what is written."""
    averagers = [(make(model), value) for make, value in CLOSED_FORMS]
    for step in (1, 2, 3):
        parameters = set_weights(model, step)
        for averager, _ in averagers:
            averager.update(step)
    for averager, value in averagers:
        with averager.applied():
            for n, parameter in enumerate(parameters, 1):
                assert (parameter == n * value).all(), (averager.id, n)
        for n, parameter in enumerate(parameters, 1):
            assert (parameter == n * 3).all(), "the live weights are not back"
        averages = sorted(t.flatten()[0].item() for t in averager.average().values() if t.is_floating_point())
        buffers = [t for t in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values()]
        others = [t.flatten()[0].item() for t in buffers if t.is_floating_point() and id(t) not in map(id, parameters)]
        assert averages == sorted([*others, *(n * value for n in range(1, len(parameters) + 1))])


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Leaf(nn.Module):
    """A parameter and buffers of its own beside a layer."""

    def __init__(self, layer: nn.Module, narrow: bool) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16 if narrow else torch.float32))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.codes = nn.Parameter(torch.arange(4), requires_grad=False)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("dropped", torch.zeros(2), persistent=False)


Hook = Callable[[dict, str], None]


def adds(state: dict, prefix: str) -> None:
    state[f"{prefix}extra"] = torch.full((2,), 7.0)


def renames(state: dict, prefix: str) -> None:
    state[f"{prefix}other_name"] = state.pop(f"{prefix}scale")


def casts(state: dict, prefix: str) -> None:
    state[f"{prefix}scale"] = state[f"{prefix}scale"].double()


def copies(state: dict, prefix: str) -> None:
    state[f"{prefix}scale"] = state[f"{prefix}scale"].clone()


def splits(state: dict, prefix: str) -> None:
    state[f"{prefix}first"], state[f"{prefix}rest"] = state.pop(f"{prefix}scale").split([1, 2])


def drops(state: dict, prefix: str) -> None:
    del state[f"{prefix}scale"]


def adds_a_part(state: dict, prefix: str) -> None:
    state[f"{prefix}first"] = state[f"{prefix}scale"][:1]


HARMLESS = [None, adds, renames]  # hooks of a leaf's state dict
REFUSED = {
    "scale cannot be averaged: the model's state_dict": [casts, copies, splits, drops],
    "first cannot be averaged: it is no parameter, and lies in the memory of .*scale;": [adds_a_part],
}


def leaf(chance: random.Random, earlier: list[nn.Module], hook: Hook | None) -> nn.Module:
    layer = chance.choice([nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.LSTM(3, 3)])
    if isinstance(layer, nn.Linear):
        if (tied := [m for m in earlier if isinstance(m, nn.Linear)]) and chance.random() < 0.4:
            layer.weight = chance.choice(tied).weight
        elif (how := chance.random()) < 0.2:
            parametrize.register_parametrization(layer, "weight", Doubled())
        elif how < 0.4:
            parametrizations.weight_norm(layer)
        else:
            earlier.append(layer)
    made = Leaf(layer, chance.random() < 0.3)
    if hook:
        made.register_state_dict_post_hook(lambda module, state, prefix, metadata: hook(state, prefix))
    return made


WRAPPERS = [
    lambda m: m,
    checkpoint_wrapper,
    offload_wrapper,
    lambda m: torch.compile(m, backend="eager"),
    nn.parallel.DistributedDataParallel,
    nn.DataParallel,
    lambda m: nn.ModuleDict({"module": m}),
    lambda m: nn.Sequential(m),
]


def tree(chance: random.Random, depth: int, earlier: list[nn.Module], hooks: list[Hook | None]) -> nn.Module:
    if depth == 0:
        made = leaf(chance, earlier, hooks.pop())
    else:
        parts = [tree(chance, depth - 1, earlier, hooks) for _ in range(2)]
        if chance.random() < 0.2:
            parts.append(parts[0])  # the same module twice
        made = nn.ModuleList(parts)
    return chance.choice(WRAPPERS)(made)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("seed", range(30))
def test_every_parameter_is_averaged(seed: int, one_rank: None) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    check(tree(chance, 2, [], chance.choices(HARMLESS, k=4)))


CASES = [(hook, said) for said, hooks in REFUSED.items() for hook in hooks]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hook, said", CASES, ids=[hook.__name__ for hook, _ in CASES])
def test_a_parameter_that_cannot_be_averaged_is_named(hook: Hook, said: str, seed: int, one_rank: None) -> None:
    chance = random.Random(seed)
    hooks = [hook, *chance.choices(HARMLESS, k=3)]
    chance.shuffle(hooks)
    model = tree(chance, 2, [], hooks)
    for make, _ in CLOSED_FORMS:
        with pytest.raises(ValueError, match=said) as error:
            make(model)
        assert "\n" not in str(error.value) and not re.search("_orig_mod|_checkpoint_wrapped", str(error.value))


def checkpointed() -> nn.Module:
    """Blocks with BatchNorm, wrapped as trainers with FSDP do; the head is tied to what lies inside a wrapper."""
    model = nn.Sequential(
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False)
    )
    model[2].weight = model[0][0].weight
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, nn.Sequential) and m is not model)
    return model


def test_names_under_activation_checkpoints_are_those_of_the_state_dict() -> None:
    model = checkpointed()
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    layer, norms = ["0.0.weight", "0.0.bias"], ["0.1", "1"]
    assert averaged_names(model) == {*layer, *(f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias"))}
    assert list(statistics_in(model)) == norms
    assert statistics_names(model) == {f"{norm}.running_{kind}" for norm in norms for kind in ("mean", "var")}
    check(model)


def test_statistics_under_activation_checkpoints_are_averaged() -> None:
    model = checkpointed()
    names = statistics_names(model)
    averager = build_averager(EmaSettings(0.5, 1, 0, False), averaged_names(model), Window(), names)
    for step in (1, 2, 3):
        set_weights(model, step)
        averager.update(step, live_tensors(model))
    found = averager.statistics()
    assert found.keys() == names and all((t == 2.25).all() for t in found.values())


def test_a_statistic_that_the_state_dict_casts_is_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))

    def cast(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
        state["0.running_var"] = state["0.running_var"].double()

    model.register_state_dict_post_hook(cast)
    check(model)
    with pytest.raises(ValueError, match=r"0\.running_var: the model's state_dict\(\) holds a copy"):
        statistics_names(model)


def test_a_model_that_changes_is_named_when_it_is_observed() -> None:
    model = Leaf(nn.Linear(3, 3), False)

    def drop(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
        state.pop("frozen", None)

    model.register_state_dict_post_hook(drop)
    for make, _ in CLOSED_FORMS:
        averager = make(model)  # what is frozen and left out is its own average
        averager.update(1)
        model.frozen.requires_grad_()
        with pytest.raises(ValueError, match="frozen cannot be averaged"):
            averager.update(2)
        model.frozen.requires_grad_(False)
        model.bias = nn.Parameter(torch.ones(2))
        with pytest.raises(ValueError, match="the model has changed, bias is a parameter that it did not have"):
            averager.update(2)
        del model.bias
        averager.update(2)


def test_the_state_dict_is_made_again_only_where_the_model_has_changed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    made: list[int] = []
    model.register_state_dict_post_hook(lambda *_: made.append(len(made)))
    ema = Ema(model, decay=0.5)
    set_weights(model, 1)
    ema.update(1)
    before = len(made)
    set_weights(model, 2)
    ema.update(2)
    assert len(made) == before and ema.average()["1.running_mean"].tolist() == [2, 2, 2]

    def rebind() -> None:
        model[1].running_mean = torch.full((3,), 7.0)

    def replace() -> None:
        model[0].weight = nn.Parameter(torch.full((3, 3), 7.0))

    def hook() -> None:
        model.register_state_dict_post_hook(lambda *_: None)

    for step, change in enumerate((rebind, replace, hook, model.double), 3):
        change()
        before = len(made)
        ema.update(step)
        assert len(made) > before, change
    assert ema.average()["1.running_mean"].tolist() == [7, 7, 7]
    assert ema.average()["0.weight"].flatten()[0] == 7 - (7 - 1.75) / 2**3


def test_what_else_cannot_be_averaged_is_named() -> None:
    model = nn.Linear(3, 3)
    model.spectrum = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="spectrum has dtype complex64, which is not averaged"):
        Lawa(model)
    model = nn.ModuleDict({"_orig_mod": nn.Linear(3, 3)})
    model.weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"0\._orig_mod\.weight: the model has two tensors of this name"):
        Lawa(nn.ModuleList([model]))
    model = nn.Linear(3, 3)
    model.register_buffer("shown", model.weight.data[0])
    with pytest.raises(
        ValueError, match="shown cannot be averaged: it is no parameter, and lies in the memory of weig"
    ):
        Lawa(model)
    flat = torch.zeros(5)  # one storage for a parameter and a buffer, but not the same bytes of it
    model.weight, model.shown = nn.Parameter(flat[:3]), flat[3:]
    check(model)
