"""Checkpoints with what is hard about them, and `python -m lawa_exp.average` on them, in this process."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import torch

from lawa_exp.average import main
from lawa_exp.averaging.arithmetic import weighted_mean
from lawa_exp.storage.commit import commit
from lawa_exp.storage.safetensors import write_tensors


def state(i: int) -> OrderedDict[str, torch.Tensor]:
    """A state dict with what is hard about them; the first tensor takes several chunks."""
    g = torch.Generator().manual_seed(i)
    weight = torch.randn(400, 500, generator=g)
    return OrderedDict(
        {
            "wte.weight": weight,
            "half": torch.randn(33, generator=g).half(),
            "brain": torch.randn(7, 5, generator=g).bfloat16(),
            "double": torch.randn(3, generator=g).double(),
            "transposed": torch.randn(30, 40, generator=g).t(),
            "holes": torch.randn(10, generator=g)[::2],
            "channels_last": torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last),
            "scalar": torch.randn((), generator=g),
            "empty": torch.zeros(0, 3),
            "bn.running_mean": torch.randn(5, generator=g),
            "bn.num_batches_tracked": torch.tensor(i),
            "mask": torch.tensor([i % 2 == 0, True]),
            "lm_head.weight": weight,
        }
    )


INPUTS = [1, 2, 3]


def expected(weights=(1.0, 1.0, 1.0), steps=INPUTS) -> dict[str, torch.Tensor]:
    states = [state(i) for i in steps]
    averaged = {n for n, t in states[0].items() if t.is_floating_point() and n != "bn.running_mean"}
    return weighted_mean(states, list(weights), frozenset(averaged))


def assert_same(found, wanted) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def make(folder: Path, wrap, steps=INPUTS, **options) -> list[str]:
    for i in steps:
        torch.save(wrap(i), folder / f"in_{i}.pt", **options)
    return [str(folder / f"in_{i}.pt") for i in steps]


def safetensors(folder: Path, steps=INPUTS) -> list[str]:
    for i in steps:
        write_tensors(folder / f"s{i}.safetensors", state(i))
    return [str(folder / f"s{i}.safetensors") for i in steps]


def average(*arguments: str | Path) -> None:
    assert main([str(a) for a in arguments]) == 0


def data_of(path: Path) -> bytes:
    """The tensors' bytes of a safetensors file, whose header also says what it is an average of."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def refused(capsys, *arguments: str | Path) -> str:
    """The one line of a command that is refused with exit code 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def optimizer_state() -> dict:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def trajectory(folder: Path, steps: range) -> Path:
    for i in steps:
        files = {"model.safetensors": lambda path, i=i: write_tensors(path, state(i))}
        commit(folder / "trajectory" / f"step_{i:08d}", files)
    return folder


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)
