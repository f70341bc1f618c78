"""Random checkpoints: whatever renames, ties or wraps their tensors, the mean is the closed form, or a refusal."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from averaged_files import Malicious, average, optimizer_state, refused
from safetensors.torch import load_file, save_file
from torch import Tensor

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PREFIXES = ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "net.model."]  # of all names of a file
CONTAINERS = ["plain", "model", "net", "state.model", "lightning", "timm", "parameters", "safetensors"]


def tensors(seed: int, i: int) -> dict[str, Tensor]:
    """Those of step i: the same names, shapes and ties at each."""
    chance, g = random.Random(seed), torch.Generator().manual_seed(100 * seed + i)
    made: dict[str, Tensor] = {"blocks.0.weight": torch.randn(40, 30, generator=g), "head.weight": torch.ones(3) * i}
    for n in range(chance.randint(3, 12)):
        layer, shape = chance.choice(["blocks.0", "blocks.1", "head", "blocks.0.attn"]), (chance.randint(1, 9), 5)
        values, dtype = torch.randn(shape, generator=g), chance.choice(FLOATS)
        kind = chance.choice(
            ["float", "float", "view", "tie", "integer", "bool", "mean", "mask", "rotation", "parameter"]
        )
        name = f"{layer}.{kind}{n}"
        if kind == "view":
            made[name] = values.to(dtype).T
        elif kind == "tie":
            made[name] = made["blocks.0.weight"]
        elif kind == "integer":
            made[name] = torch.tensor(i)
        elif kind == "bool":
            made[name] = values > 0
        elif kind == "mean":
            made[f"{layer}.{n}.running_mean"] = values.to(dtype)
        elif kind == "mask":
            made[name] = torch.full((4, 4), -float("inf"), dtype=dtype).triu(1)
        elif kind == "rotation":
            made[name] = torch.polar(torch.ones(3), torch.arange(3.0))
        else:
            made[name] = torch.nn.Parameter(values.to(dtype)) if kind == "parameter" else values.to(dtype)
    return {name: t.detach() for name, t in made.items()}


def expected(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    means = {}
    for name, last in states[-1].items():
        if last.is_floating_point() and "running" not in name and last.isfinite().all():
            total = sum(state[name].double() for state in states)
            last = (total / len(states)).to(last.dtype)  # of two or four inputs: exact in float64, rounded once
        means[name] = last
    return means


def write(container: str, state: dict[str, Tensor], path: Path) -> None:
    if container == "safetensors":
        save_file({n: t.contiguous().clone() for n, t in state.items()}, path)
        return
    ema = {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}
    content = {
        "plain": state,
        "model": {"model": state, "optimizer": optimizer_state(), "best_val_loss": 1.0},
        "net": {"net": state, "epoch": 3, "rng": torch.get_rng_state()},
        "state.model": {"state": {"model": state, "optimizers": {"a": optimizer_state()}}},
        "lightning": {"state_dict": state, "hyper_parameters": {"path": path, "loss": torch.nn.MSELoss()}},
        "timm": {"state_dict": state, "state_dict_ema": ema},
        "parameters": {"params": {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in state.items()}},
    }[container]
    torch.save(content, path)


def read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=False)
    assert "state_dict_ema" not in content
    while not all(isinstance(value, Tensor) for value in content.values()):
        content = next(value for key, value in content.items() if isinstance(value, dict) and key != "optimizer")
    return content


def same(found: Tensor, wanted: Tensor) -> bool:
    ulp = found.dtype in (torch.bfloat16, torch.float16)  # torch rounds float64 to these twice
    close = (
        torch.isclose(found.double(), wanted.double(), rtol=2**-7 if ulp else 0, atol=0)
        if not found.is_complex()
        else None
    )
    return found.dtype == wanted.dtype and (torch.equal(found, wanted) if close is None else bool(close.all()))


@pytest.mark.parametrize("seed", range(30))
def test_the_mean_is_the_closed_form(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed + 1000)
    k, last = chance.choice([2, 4]), chance.choice(CONTAINERS)
    states = [tensors(seed, i) for i in range(1, k + 1)]
    prefix = ""
    for i, state in enumerate(states, 1):
        container = last if i == k else chance.choice(CONTAINERS if last == "safetensors" else CONTAINERS[:-1])
        prefix = chance.choice(PREFIXES)
        suffix = ".safetensors" if container == "safetensors" else ".pt"
        write(container, {prefix + n: t for n, t in state.items()}, tmp_path / f"step_{i}{suffix}")
    average(*sorted(tmp_path.iterdir()), "--out", tmp_path / "out")
    (made,) = (tmp_path / "out").iterdir()
    found, wanted = read(made), expected(states)
    assert found.keys() == {prefix + name for name in wanted}
    for name, tensor in wanted.items():
        assert same(found[prefix + name].detach(), tensor), name


BREAK = {  # what one input has otherwise, and what is said
    "a name": (lambda s: s | {"extra.weight": torch.ones(2)}, "extra.weight, but"),
    "a shape": (lambda s: s | {"head.weight": torch.ones(4)}, "head.weight has shape"),
    "a dtype": (lambda s: s | {"head.weight": torch.ones(3).half()}, "head.weight has dtype"),
    "a NaN": (lambda s: s | {"head.weight": torch.tensor([1, float("nan"), 1])}, "head.weight holds NaN or infinity"),
    "an object": (lambda s: s | {"x": torch.nn.Linear(2, 2)}, "x is torch.nn.modules.linear.Linear, which holds"),
    "a sparse tensor": (lambda s: s | {"x": torch.eye(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
    "a program": (lambda s: s | {"x": Malicious(Path("x"))}, "mkdir, which is not read"),
    "codes": (
        lambda s: s | {"q.weight": torch.ones(2, 2).char(), "q.weight_scale": torch.ones(1)},
        "no tensor q.weight",
    ),
}


@pytest.mark.parametrize("kind", BREAK)
@pytest.mark.parametrize("seed", range(2))
def test_what_has_no_mean_is_refused_by_name(kind: str, seed: int, tmp_path: Path, capsys) -> None:
    chance = random.Random(seed)
    change, words = BREAK[kind]
    broken = chance.randrange(3)
    for i in range(3):
        state = tensors(seed, i + 1)
        torch.save({"model": change(state) if i == broken else state}, tmp_path / f"step_{i + 1}.pt")
    said = refused(capsys, *sorted(tmp_path.iterdir()), "--out", tmp_path / "out")
    assert words.split(",")[0] in said, said
    assert not (tmp_path / "out").exists()
