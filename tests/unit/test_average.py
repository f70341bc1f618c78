"""`python -m lawa_exp.average`: every layout in and out, exact values, and refusals that leave nothing behind."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
import os
import pickle
import re
import resource
import shlex
import shutil
import signal as signals
import subprocess
import sys
import types
import weakref
import zipfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import Strike, run, tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lawa_exp.average import main
from lawa_exp.averaging.arithmetic import weighted_mean
from lawa_exp.checkpoint.commit import commit
from lawa_exp.checkpoint.tensors import write_tensors
from lawa_exp.formats.blocks import Work
from lawa_exp.formats.dtypes import decode
from lawa_exp.formats.pytorch import TorchFile
from lawa_exp.formats.sliding import LAYOUT, SlidingSum

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


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


LAYOUTS = {
    "plain": lambda i: state(i),
    "nanogpt": lambda i: {
        "model": {f"_orig_mod.{n}": t for n, t in state(i).items()},
        "optimizer": optimizer_state(),
        "model_args": {"n_layer": 2},
        "iter_num": i,
        "best_val_loss": torch.tensor(2.5),
        "config": {"compile": True},
    },
    "lightning": lambda i: {
        "epoch": 1,
        "global_step": i,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state(i),
        "optimizer_states": [optimizer_state()],
        "hyper_parameters": {"lr": 0.1, "betas": (0.9, 0.95)},
    },
    "examples": lambda i: {
        "epoch": i,
        "arch": "resnet18",
        "state_dict": OrderedDict((f"module.{n}", t) for n, t in state(i).items()),
        "best_acc1": torch.tensor(55.5),
        "optimizer": optimizer_state(),
    },
    "fairseq": lambda i: {
        "args": argparse.Namespace(arch="transformer", lr=[0.1]),
        "model": state(i),
        "optimizer_history": [{"num_updates": i, "best_loss": 1.5}],
        "extra_state": {"best": 1.5, "ema": torch.arange(5.0)},
        "last_optimizer_state": optimizer_state(),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_pytorch_files_load_where_the_inputs_did(layout, new, tmp_path):
    inputs = make(tmp_path, LAYOUTS[layout], _use_new_zipfile_serialization=new)
    average(*inputs, "--out", tmp_path / "out")
    made = tmp_path / "out" / "in_3.pt"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["in_3.pt"]
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(made, weights_only=True)
    content = LAYOUTS[layout](3)
    weights = {"plain": None, "lightning": "state_dict", "examples": "state_dict"}.get(layout, "model")
    tensors, originals = (found[weights], content[weights]) if weights else (found, content)
    assert_same({n.replace("_orig_mod.", "").replace("module.", ""): t for n, t in tensors.items()}, expected())
    assert list(tensors) == list(originals)
    tied = [t for n, t in tensors.items() if n.endswith(("wte.weight", "lm_head.weight"))]
    assert tied[0].data_ptr() == tied[1].data_ptr()
    for key in () if weights is None else content.keys() - {weights, "optimizer", "optimizer_states"}:
        if key == "best_val_loss":
            assert found[key] == float("inf")
        elif key == "last_optimizer_state":
            assert found[key]["state"] == {}
        elif isinstance(content[key], dict):
            assert str(found[key]) == str(content[key])
        else:
            assert found[key] == content[key]
    for optimizer in [found["optimizer"]] if "optimizer" in found else found.get("optimizer_states", []):
        assert optimizer["state"] == {} and optimizer["param_groups"] == optimizer_state()["param_groups"]
        torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()).load_state_dict(optimizer)
    assert zipfile.ZipFile(made).testzip() is None


def test_a_file_without_crcs_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        inputs = make(tmp_path, state)
    finally:
        torch.serialization.set_crc32_options(before)
    average(*inputs, "--out", tmp_path / "out")
    assert_same(torch.load(tmp_path / "out" / "in_3.pt", weights_only=True), expected())
    assert zipfile.ZipFile(tmp_path / "out" / "in_3.pt").testzip() is None


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_views_of_one_storage_are_written_consistently(dtype, tmp_path):
    def shared(i: int) -> dict:
        s = torch.arange(40.0) * i
        model = {"first": s[:10], "flat": s[:30], "again": s[:30], "expanded": s[30:31].expand(5), "odd": s[32:38:2]}
        return {"model": model, "ema": s[20:40]}

    extra = ["--dtype", dtype] if dtype else []
    average(*make(tmp_path, shared), "--out", tmp_path / "out", *extra)
    found = torch.load(tmp_path / "out" / "in_3.pt", weights_only=True)
    for name, tensor in shared(2)["model"].items():
        assert torch.equal(found["model"][name].float(), tensor), name
    averaged = [*range(20, 31), 32, 34, 36]
    assert found["ema"].tolist() == [n * (2 if n in averaged else 3) for n in range(20, 40)]
    assert zipfile.ZipFile(tmp_path / "out" / "in_3.pt").testzip() is None


def test_memory_that_is_shared_in_the_last_input_alone_is_refused(tmp_path, capsys):
    s = torch.arange(12.0)
    torch.save({"a": s[:8].clone(), "b": s[4:].clone(), "c": s[:5].clone()}, tmp_path / "own.pt")
    for words, tensors in {
        "b and a share memory": {"a": s[:8], "b": s[4:], "c": s[:5].clone()},
        "c and a share memory": {"a": s[:8], "b": s[4:].clone(), "c": s[:5]},
        "elements of c share memory": {"a": s[:8].clone(), "b": s[4:].clone(), "c": s[:1].expand(5)},
    }.items():
        torch.save(tensors, tmp_path / "shared.pt")
        assert f"shared.pt: {words}" in refused(
            capsys, tmp_path / "own.pt", tmp_path / "shared.pt", "--out", tmp_path / "out"
        )
    average(tmp_path / "shared.pt", tmp_path / "own.pt", "--out", tmp_path / "out")


def test_pickles_do_not_stay_in_memory(tmp_path, monkeypatch):
    held = []
    forget = TorchFile.forget

    def forgets(self: TorchFile) -> None:
        held.append(weakref.ref(next(iter(self.weights.values()))))
        forget(self)
        assert all(content() is None for content in held)

    monkeypatch.setattr(TorchFile, "forget", forgets)
    for i, path in enumerate(make(tmp_path, LAYOUTS["nanogpt"])):
        shutil.move(path, tmp_path / f"run_{i + 1}.pt")
    average("--trajectory", tmp_path, "--k", 1, "--out", tmp_path / "out")
    assert len(held) == 3


def test_plain_data_stays_what_it_was(tmp_path):
    plain = [{1, 2}, frozenset([3]), 1j, b"a", b"", bytearray(b"b"), (None, True, 2**70, 1.5)]
    average(*make(tmp_path, lambda i: {"model": state(i), "plain": plain}), "--out", tmp_path / "out")
    assert torch.load(tmp_path / "out" / "in_3.pt", weights_only=False)["plain"] == plain


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_numpys_random_state_and_numbers_stay_what_they_were(new, tmp_path, capsys):
    np.random.seed(5)
    random_state = np.random.get_state()
    numbers = [np.float64(0.5), np.int8(-3), np.bool_(True), np.dtype(">f4"), np.array(2j), np.zeros((0, 2))]
    arrays = [np.arange(6.0).reshape(2, 3).T, np.array([1, 2**15], ">u2")]
    extra = {"rng_states": {"numpy": random_state}, "numbers": numbers, "arrays": arrays, "same": arrays[0]}
    inputs = make(tmp_path, lambda i: {"model": state(i), **extra}, _use_new_zipfile_serialization=new)
    average(*inputs, "--out", tmp_path / "out")
    found = torch.load(tmp_path / "out" / "in_3.pt", weights_only=False)
    assert_same(found["model"], expected())
    expected_draws = np.random.random(5)
    np.random.set_state(found["rng_states"]["numpy"])
    assert np.array_equal(np.random.random(5), expected_draws)
    for made, original in zip([*found["numbers"], *found["arrays"]], [*numbers, *arrays], strict=True):
        original = pickle.loads(pickle.dumps(original))  # which gives arrays the machine's byte order
        assert type(made) is type(original) and np.array_equal(made, original)
        assert np.dtype(getattr(made, "dtype", made)) == np.dtype(getattr(original, "dtype", original))
    assert found["same"] is found["arrays"][0]
    for name, refused_here in {
        "dtype O": np.array([Path("a"), None]),
        "dtype V12": np.zeros(2, "i4,f8"),
        "dtype M8": np.array(["2020-01-01"], "M8[D]"),
        "random._pickle": np.random.RandomState(1),
    }.items():
        torch.save({"model": state(1), "x": refused_here}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        assert f"x.pt holds numpy.{name}" in refused(capsys, tmp_path / "x.pt", "--out", tmp_path / "no")


def test_parameters_stay_parameters(tmp_path):
    model = torch.nn.Linear(3, 3)
    average(*make(tmp_path, lambda i: dict(model.named_parameters())), "--out", tmp_path / "out")
    found = torch.load(tmp_path / "out" / "in_3.pt", weights_only=True)
    assert found.keys() == {"weight", "bias"} and all(isinstance(p, torch.nn.Parameter) for p in found.values())
    assert torch.equal(found["weight"], model.weight)


def test_fairseqs_own_classes_stay_what_they_were(tmp_path, monkeypatch):
    module = types.ModuleType("fairseq.meters")
    exec("class AverageMeter:\n    def __init__(self): self.avg = 3.5", module.__dict__)
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    inputs = make(tmp_path, lambda i: {"model": {"w": torch.ones(2) * i}, "extra_state": {"m": module.AverageMeter()}})
    monkeypatch.delitem(sys.modules, "fairseq.meters")
    average(*inputs, "--out", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    found = torch.load(tmp_path / "out" / "in_3.pt", weights_only=False)
    assert found["extra_state"]["m"].avg == 3.5 and type(found["extra_state"]["m"]) is module.AverageMeter
    assert found["model"]["w"].tolist() == [2, 2]


def test_safetensors_files_and_mixed_kinds(tmp_path):
    average(*safetensors(tmp_path), "--out", tmp_path / "out")
    wanted = expected()
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), {n: wanted[n].contiguous() for n in sorted(wanted)})
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    mixed = [*make(tmp_path, lambda i: {"model": state(i)}, steps=[1, 2]), tmp_path / "s3.safetensors"]
    average(*mixed, "--out", tmp_path / "mixed")
    a, b = (tmp_path / name / "model.safetensors" for name in ("out", "mixed"))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_hugging_face_folders(kind, tmp_path):
    for i in INPUTS:
        folder = tmp_path / f"checkpoint-{i}"
        folder.mkdir()
        tensors = {n: t.contiguous().clone() for n, t in state(i).items()}
        names = sorted(tensors)
        weight_map = {}
        for shard, part in enumerate((names[:5], names[5:]), start=1):
            stem = "model" if kind == "safetensors" else "pytorch_model"
            file = f"{stem}-{shard:05d}-of-00002.{kind}"
            content = {n: tensors[n] for n in part}
            save_file(content, folder / file) if kind == "safetensors" else torch.save(content, folder / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        index_name = f"{stem}.{kind}.index.json"
        (folder / index_name).write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", "i": i}))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "vocab.bpe").write_text("")
        (folder / "trainer_state.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(b"")
    average(tmp_path / "checkpoint-[0-9]", "--out", tmp_path / "out", "--dtype", "bfloat16")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*set(weight_map.values()), index_name, "config.json", "tokenizer.json", "vocab.bpe"]
    )
    assert json.loads((out / "config.json").read_text()) == {"torch_dtype": "bfloat16", "i": 3}
    load = load_file if kind == "safetensors" else torch.load
    found = {n: t for file in set(weight_map.values()) for n, t in load(out / file).items()}
    index = json.loads((out / index_name).read_text())
    assert index["weight_map"] == weight_map
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert found["wte.weight"].dtype == torch.bfloat16 and found["mask"].dtype == torch.bool


def test_folders_of_distributed_checkpoint(tmp_path, capsys):
    def checkpoint(i: int) -> dict:
        tensors = {n: t for n, t in state(i).items() if n not in ("empty", "lm_head.weight")}
        return {"app": {"model": tensors, "optim": optimizer_state()}, "step": i}

    for i in INPUTS:
        dcp.save(checkpoint(i), checkpoint_id=tmp_path / f"dcp_{i}")
    average(tmp_path / "dcp_*", "--out", tmp_path / "out")
    found = checkpoint(9)
    dcp.load(found, checkpoint_id=tmp_path / "out")
    wanted = expected()
    for name, tensor in found["app"]["model"].items():
        assert torch.equal(tensor, wanted[name]), name
    assert found["step"] == 3
    assert all(not t.any() for s in found["app"]["optim"]["state"].values() for t in s.values())
    assert found["app"]["optim"]["param_groups"] == optimizer_state()["param_groups"]
    metadata = tmp_path / "dcp_2" / ".metadata"
    metadata.write_bytes(pickle.dumps(Malicious(tmp_path / "was_run")))
    assert "mkdir" in refused(capsys, tmp_path / "dcp_*", "--out", tmp_path / "again")
    assert not (tmp_path / "was_run").exists() and not (tmp_path / "again").exists()


def exact_rounding(value: Fraction, grid: np.ndarray) -> set[float]:
    """The values of an ascending grid that are nearest to an exact value."""
    at = int(np.searchsorted(grid, float(value)))
    near = [Fraction(float(g)) for g in grid[max(0, at - 2) : at + 3]]
    least = min(abs(g - value) for g in near)
    return {float(g) for g in near if abs(g - value) == least}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=str)
def test_narrow_types_are_rounded_once_to_even(dtype, tmp_path):
    """Every pair of neighbours, whose mean is a tie, and means that float32 would first round to a tie."""
    bits = torch.arange(2 ** (8 * dtype.itemsize), dtype=torch.int32)
    every = bits.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)
    every = every[torch.isfinite(every.float())].double()
    grid = torch.unique(every)
    low, high = grid[:-1], grid[1:]
    nudge = torch.nextafter((low + high) / 2, torch.tensor(torch.inf, dtype=torch.double))
    values = torch.cat([low, high, (low + high) / 2, nudge, -nudge, (low * 0.75 + high * 0.25)])
    save_file({"w": values}, tmp_path / "in.safetensors")
    average(tmp_path / "in.safetensors", "--out", tmp_path / "out", "--dtype", str(dtype).removeprefix("torch."))
    found = load_file(tmp_path / "out" / "model.safetensors")["w"]
    assert found.dtype == dtype
    codes = found.view(torch.uint8 if dtype.itemsize == 1 else torch.uint16).int()
    numbers = grid.numpy()
    step = max(1, len(values) // 3000)
    for i in range(0, len(values), step):
        nearest = exact_rounding(Fraction(values[i].item()), numbers)
        assert found[i].item() in nearest
        if len(nearest) == 2:
            assert codes[i].item() % 2 == 0, values[i]


def test_float32_is_half_a_unit_from_the_exact_mean_and_float64_is_numpys_sum(tmp_path):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(300) * 10.0 ** rng.integers(-3, 3, 300) for _ in range(7)]
    for i, values in enumerate(inputs):
        save_file({"f": torch.tensor(values).float(), "d": torch.tensor(values)}, tmp_path / f"{i}.safetensors")
    average(*(tmp_path / f"{i}.safetensors" for i in range(7)), "--out", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    total = inputs[0]
    for values in inputs[1:]:
        total = total + values
    assert np.array_equal(found["d"].numpy(), total / 7)
    for i, value in enumerate(found["f"].numpy()):
        exact = sum(Fraction(float(np.float32(values[i]))) for values in inputs) / 7
        unit = Fraction(float(np.spacing(np.abs(value))))
        assert abs(Fraction(float(value)) - exact) <= unit * (Fraction(1, 2) + Fraction(1, 2**20))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn"])
def test_dtype_of_pytorch_files(dtype, tmp_path):
    inputs = make(tmp_path, lambda i: {"model": state(i), "optimizer": optimizer_state()})
    average(*inputs, "--out", tmp_path / "out", "--dtype", dtype)
    found = torch.load(tmp_path / "out" / "in_3.pt", weights_only=True)["model"]
    asked = getattr(torch, dtype)
    assert {t.dtype for t in found.values()} == {asked, torch.int64, torch.bool}
    single = sum(state(i)["wte.weight"].double() for i in INPUTS) / 3
    assert torch.equal(found["wte.weight"], single.to(asked)) or dtype != "float64"
    assert (found["wte.weight"].double() - single).abs().max() <= single.abs().max() * 2.0**-4
    assert (
        found["transposed"].stride() == (1, 40) and found["lm_head.weight"].data_ptr() == found["wte.weight"].data_ptr()
    )


def test_weights_and_methods(tmp_path):
    inputs = safetensors(tmp_path)

    def result(*flags: str) -> dict[str, torch.Tensor]:
        average(*inputs, "--out", tmp_path / "out", "--overwrite", *flags)
        return load_file(tmp_path / "out" / "model.safetensors")

    def wanted(*weights: float) -> dict[str, torch.Tensor]:
        full = expected(weights, INPUTS[-len(weights) :])
        return {n: full[n].contiguous() for n in sorted(full)}

    assert_same(result("--weights", "0.2,0.3,0.5"), wanted(0.2, 0.3, 0.5))
    assert_same(result("--weights=-1,1,1"), wanted(-1, 1, 1))
    assert_same(result("--method", "wma"), wanted(1, 2, 3))
    assert_same(result("--k", "2"), wanted(1, 1))
    assert_same(result("--method", "ema", "--decay", "0.75"), wanted(0.5625, 0.1875, 0.25))
    assert_same(result("--method", "swa", "--start", "2"), wanted(1, 1))


def trajectory(folder: Path, steps: range) -> Path:
    for i in steps:
        files = {"model.safetensors": lambda path, i=i: write_tensors(path, state(i))}
        commit(folder / "trajectory" / f"step_{i:08d}", files)
    return folder


def test_a_sliding_window_is_as_separate_averages(tmp_path):
    trajectory(tmp_path / "run", range(5, 45, 5))
    average("--trajectory", tmp_path / "run", "--k", "3", "--spacing", "10", "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["step_00000030", "step_00000040"]
    for end in (30, 40):
        average(
            "--trajectory",
            tmp_path / "run" / "trajectory",
            "--k",
            3,
            "--spacing",
            10,
            "--at",
            end,
            "--out",
            tmp_path / "one",
            "--overwrite",
        )
        steps = [end - 20, end - 10, end]
        files = [tmp_path / f"run/trajectory/step_{s:08d}/model.safetensors" for s in steps]
        average(*files, "--out", tmp_path / "listed", "--overwrite")
        found = (tmp_path / "out" / f"step_{end:08d}" / "model.safetensors").read_bytes()
        assert found == (tmp_path / "one" / "model.safetensors").read_bytes()
        assert found == (tmp_path / "listed" / "model.safetensors").read_bytes()
        wanted = expected(steps=steps)
        assert_same(
            load_file(tmp_path / "listed/model.safetensors"), {n: wanted[n].contiguous() for n in sorted(wanted)}
        )
    average("--trajectory", tmp_path / "run", "--weights", "1,3", "--at", 20, "--out", tmp_path / "at")
    wanted = expected((1, 3), [15, 20])
    assert torch.equal(load_file(tmp_path / "at/model.safetensors")["wte.weight"], wanted["wte.weight"])


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("method", [["swa"], ["ema", "--decay", "0.75"], ["wma", "--k", "2"]], ids=lambda m: m[0])
def test_averages_that_begin_with_the_same_input_are_as_separate_ones(method, processes, tmp_path, monkeypatch):
    """Of the same snapshot on all means of `swa` begin; of every type, as each goes through memory in its own way."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: processes)
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8]

    def values(i: int) -> dict[str, torch.Tensor]:
        x = torch.randn(1000, dtype=torch.double, generator=torch.Generator().manual_seed(i))
        return {str(dtype): x.to(dtype) for dtype in types}

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    make(inputs, values, steps=range(1, 5))
    all_at_once = ["--trajectory", inputs, "--method", *method]
    average(*all_at_once, "--out", tmp_path / "out")
    ends = range(2 if method[0] == "wma" else 1, 5)
    assert len(list((tmp_path / "out").iterdir())) == len(ends)
    for end in ends:
        average(*all_at_once, "--at", end, "--out", tmp_path / f"one_{end}")
        made = tmp_path / "out" / f"step_{end:08d}" / f"in_{end}.pt"
        assert made.read_bytes() == (tmp_path / f"one_{end}" / f"in_{end}.pt").read_bytes(), end
        if method == ["swa"]:
            found = torch.load(made, weights_only=True)
            for dtype in (torch.float64, torch.float32, torch.float16):
                total = sum(values(i)[str(dtype)].double().numpy() for i in range(1, end + 1))
                assert np.array_equal(found[str(dtype)].numpy(), (total / end).astype(str(dtype)[6:])), (dtype, end)


def test_at_takes_a_step_that_is_there(tmp_path, capsys):
    trajectory(tmp_path / "run", range(5, 100, 5))
    out = ("--out", tmp_path / "out", "--overwrite")
    said = refused(capsys, "--trajectory", tmp_path / "run", "--k", 2, "--at", 22, *out)
    assert "--at=22: no checkpoint of that step, but of 5, 10, 15, 20, 25, ..., 95" in said
    files = [tmp_path / f"ckpt_{step}.pt" for step in (1000, 200, 300)]  # in any order
    for path in files:
        torch.save(state(int(path.stem.split("_")[1])), path)
    assert "but of 200, 300, 1,000" in refused(capsys, *files, "--at", 2, *out)
    average(*files, "--at", 300, *out)
    assert "in step order: ckpt_200.pt, ckpt_300.pt, each 0.5" in capsys.readouterr().out
    average(*files, "--k", 1, "--at", 200, *out)
    assert "ckpt_200.pt" in capsys.readouterr().out
    assert "after input 1 takes 2 checkpoints, and there are 1" in refused(capsys, *files, "--k", 2, "--at", 200, *out)
    for name, path in zip("abc", files, strict=True):
        shutil.copy(path, tmp_path / f"{name}.pt")
    average(*(tmp_path / f"{name}.pt" for name in "abc"), "--at", 2, *out)
    assert "as listed: a.pt, b.pt, each 0.5" in capsys.readouterr().out


def test_what_went_into_each_average_is_said(tmp_path, capsys):
    trajectory(tmp_path / "run", range(5, 55, 5))

    def said(*flags: object) -> list[str]:
        average("--trajectory", tmp_path / "run", *flags, "--out", tmp_path / "out", "--overwrite")
        return capsys.readouterr().out.splitlines()[1:]

    assert said("--k", 2, "--spacing", 25) == ["after step 50: steps 25, 50, each 0.5"]
    assert said("--method", "wma", "--k", 3, "--at", 30) == ["after step 30: steps 20 (0.1667), 25 (0.3333), 30 (0.5)"]
    lines = said("--k", 4)
    assert lines[0] == "after step 20: steps 5, 10, 15, 20, each 0.25" and lines[1] == "... 5 more"
    assert lines[2:] == ["after step 50: steps 35, 40, 45, 50, each 0.25"]
    assert said("--k", 10) == ["after step 50: steps 5, ..., 50, 10 inputs, each 0.1"]
    assert said("--method", "ema", "--decay", 0.5, "--at", 50) == [
        "after step 50: steps 5 (0.001953), ..., 50 (0.5), 10 inputs"
    ]
    inputs = safetensors(tmp_path)
    average(*inputs, "--weights", "2,-1,3", "--out", tmp_path / "listed")
    line = "in step order: s1.safetensors (0.5), s2.safetensors (-0.25), s3.safetensors (0.75)"
    assert capsys.readouterr().out.splitlines()[1:] == [line]
    same = [tmp_path / f"run/trajectory/step_{s:08d}/model.safetensors" for s in (5, 10)]
    average(*same, "--out", tmp_path / "same")
    assert capsys.readouterr().out.splitlines()[1:] == [f"in step order: {same[0]}, {same[1]}, each 0.5"]


def test_other_folders_go_by_the_numbers_in_their_names(tmp_path, capsys):
    for i in (900, 1000, 1100):
        torch.save({"model": state(i)}, tmp_path / f"ckpt_{i}.pt")
    shutil.copy(tmp_path / "ckpt_900.pt", tmp_path / "ckpt_best.pt")
    average("--trajectory", tmp_path, "--k", 2, "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["step_00001000", "step_00001100"]
    found = torch.load(tmp_path / "out" / "step_00001000" / "ckpt_1000.pt")["model"]
    assert_same(found, expected((1, 1), [900, 1000]))
    shutil.copy(tmp_path / "ckpt_900.pt", tmp_path / "ckpt_1070.pt")
    said = refused(capsys, "--trajectory", tmp_path, "--k", 2, "--out", tmp_path / "none")
    assert "a spacing of 10 is" in said and "--spacing" in said
    (tmp_path / "ckpt_1070.pt").unlink()
    average("--trajectory", tmp_path, "--weights", 1, "--spacing", 100, "--at", 900, "--out", tmp_path / "one")
    assert "the average of 1 checkpoint (" in capsys.readouterr().out
    average(f"{tmp_path}/ckpt_*0.pt", "--out", tmp_path / "all")  # in order of the numbers: the last is 1100
    assert (tmp_path / "all" / "ckpt_1100.pt").is_file()


def test_listed_inputs_go_by_the_steps_in_their_names(tmp_path, capsys):
    """As a shell's pattern lists them; weights would then be somebody else's."""
    for i in (900, 1000):
        torch.save(state(i), tmp_path / f"ckpt_{i}.pt")
        (tmp_path / f"checkpoint-{i}").mkdir()
        write_tensors(tmp_path / f"checkpoint-{i}" / "model.safetensors", state(i))
    shell = sorted(tmp_path.glob("*.pt"))
    assert [path.name for path in shell] == ["ckpt_1000.pt", "ckpt_900.pt"]
    average(*shell, "--method", "wma", "--out", tmp_path / "out")
    assert_same(torch.load(tmp_path / "out" / "ckpt_1000.pt", weights_only=True), expected((1, 2), [900, 1000]))
    assert "in step order: ckpt_900.pt (0.3333), ckpt_1000.pt (0.6667)" in capsys.readouterr().out
    assert f"({shell[0]} is too early)" in refused(capsys, *shell, "--weights", "1,2", "--out", tmp_path / "w")
    average(tmp_path / "ckpt_*.pt", "--weights", "1,2", "--out", tmp_path / "w")
    assert_same(torch.load(tmp_path / "w" / "ckpt_1000.pt", weights_only=True), expected((1, 2), [900, 1000]))
    average(*sorted(tmp_path.glob("checkpoint-*/model.safetensors")), "--method", "wma", "--out", tmp_path / "hf")
    wanted = expected((1, 2), [900, 1000])
    assert_same(load_file(tmp_path / "hf/model.safetensors"), {n: wanted[n].contiguous() for n in sorted(wanted)})
    for folder in tmp_path.glob("checkpoint-*"):
        (folder / "model.safetensors").rename(folder / "model_fp16.safetensors")  # a number that is no step
    average(*sorted(tmp_path.glob("checkpoint-*/*.safetensors")), "--method", "wma", "--out", tmp_path / "hf16")
    assert (tmp_path / "hf16/model.safetensors").read_bytes() == (tmp_path / "hf/model.safetensors").read_bytes()
    shutil.copy(shell[0], tmp_path / "last.pt")  # a name without a step: as given
    average(tmp_path / "last.pt", shell[1], "--out", tmp_path / "mixed")
    assert (tmp_path / "mixed" / "ckpt_900.pt").is_file()
    assert "as listed: last.pt, ckpt_900.pt" in capsys.readouterr().out


def test_the_step_is_what_the_name_calls_so_and_a_folder_may_hold_one_file(tmp_path, capsys):
    for i in (1, 2):
        torch.save({"state_dict": state(i)}, tmp_path / f"step={i}-loss=2.3{9 - i}.ckpt")
    (tmp_path / "step_3").mkdir()
    torch.save({"state_dict": state(3)}, tmp_path / "step_3" / "weights.pt")
    average("--trajectory", tmp_path, "--k", 3, "--out", tmp_path / "out")
    assert_same(torch.load(tmp_path / "out" / "weights.pt", weights_only=True)["state_dict"], expected())
    (tmp_path / "initial").mkdir()
    torch.save(state(0), tmp_path / "initial" / "ckpt_0.pt")
    assert "only the initial weights" in refused(capsys, "--trajectory", tmp_path / "initial", "--out", tmp_path / "x")


def test_the_same_bytes_as_a_runs_own_averages(tmp_path):
    folder = tmp_path / "run"
    done = run(*tiny(f"run_dir={folder}"), warm=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    average("--trajectory", folder, "--k", 3, "--spacing", 10, "--out", out)
    for made in (folder / "averages" / "lawa-k3-s10").iterdir():
        assert (made / "model.safetensors").read_bytes() == (out / made.name / "model.safetensors").read_bytes()
    average(
        "--trajectory", folder, "--method", "swa", "--every", 10, "--start", 20, "--at", 60, "--out", tmp_path / "swa"
    )
    online = folder / "averages" / "swa-e10-from20" / "step_00000060" / "model.safetensors"
    assert online.read_bytes() == (tmp_path / "swa" / "model.safetensors").read_bytes()


def test_torch_is_not_imported_and_help_is_quick_to_import(tmp_path):
    inputs = [*make(tmp_path, lambda i: {"model": state(i)}, steps=[1, 2]), *safetensors(tmp_path, [3])]
    code = (
        "import sys; from lawa_exp.average import main\nassert main(sys.argv[1:]) == 0 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *inputs, "--out", str(tmp_path / "out")], check=True)


def test_several_processes_make_the_same_bytes(tmp_path, monkeypatch):
    """Every tensor is cut into many parts; sums that slide, checksums of parts, tensors that share memory."""
    monkeypatch.setattr("lawa_exp.formats.blocks.WORKING_SET", 0)  # the smallest chunks
    monkeypatch.setattr("lawa_exp.formats.blocks.CHUNKS", 2)

    def weights(i: int) -> dict:
        torch.manual_seed(i)
        large = torch.randn(70_001)
        return {"large": large, "half": large[1000:40_000], "turned": torch.randn(100, 90).T, "n": torch.tensor(i)}

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    make(inputs, weights, steps=range(1, 8))
    made = []
    for share, processes in ((1, 1), (1, 2), (1, 5)):
        monkeypatch.setattr("lawa_exp.formats.stream.SHARE", share)
        monkeypatch.setattr("lawa_exp.average.processes", lambda n=processes: n)
        out = tmp_path / f"{share}-{processes}"
        average("--trajectory", inputs, "--k", 4, "--out", out)
        made.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*.pt")})
        loaded = [torch.load(p, weights_only=True) for p in sorted(out.rglob("*.pt"))]  # checks the CRCs
        assert len(loaded) == 4
        assert torch.equal(loaded[0]["half"], loaded[0]["large"][1000:40_000])
    assert made[0] == made[1] == made[2]


def test_a_failure_in_one_process_ends_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: 3)
    inputs = make(tmp_path, lambda i: {"a": torch.ones(10), "b": torch.full((10,), math.nan if i == 2 else 1.0)})
    assert f"{inputs[1]}: b holds NaN" in refused(capsys, *inputs, "--out", tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(TypeError) as raised:
        patch.setattr("lawa_exp.formats.blocks.crc32", None)  # as a programming error
        main([*inputs, "--out", str(tmp_path / "out")])
    assert "blocks.py" in "".join(raised.value.__notes__)  # the worker's traceback
    parent = os.getpid()

    def killed(self, block, first, last):
        assert os.getpid() != parent
        os.kill(os.getpid(), signals.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("lawa_exp.formats.blocks.Work.do", killed)
        assert main([*map(str, inputs), "--out", str(tmp_path / "out")]) == 1
    assert "a worker process was killed" in capsys.readouterr().err
    write = os.write

    def half(fd: int, data: bytes) -> int:  # of the answer, which is longer than a number
        if os.getpid() != parent and len(data) > 8:
            write(fd, data[: len(data) // 2])
            os.kill(os.getpid(), signals.SIGKILL)
        return write(fd, data)

    monkeypatch.setattr(os, "write", half)
    assert main([*map(str, inputs), "--out", str(tmp_path / "out")]) == 1
    assert "a worker process was killed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_end_with_a_parent_that_is_killed():
    """In the midst of an answer that is longer than a pipe holds too."""
    code = """if True:
        import os, signal
        from lawa_exp.formats.workers import shared

        def work(claim, tell):
            claim()
            return bytes(1 << 22)

        shared(work, 3, lambda done: os.kill(os.getpid(), signal.SIGKILL), 0.1)
    """
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60)  # open in the workers too
    assert done.returncode == -signals.SIGKILL and done.stdout == b""


@pytest.mark.parametrize("of", ["files", "children"])
def test_workers_beside_many_open_files_and_with_children_ignored(of, tmp_path, monkeypatch):
    """More files than `select` can count; a parent that leaves it to the system to wait for its children."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("no more than 1,024 files may be open")
    inputs, fds = make(tmp_path, state), []
    before = signals.getsignal(signals.SIGCHLD)
    try:
        if of == "files":
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            fds += [os.dup(0) for _ in range(1030)]
        else:
            signals.signal(signals.SIGCHLD, signals.SIG_IGN)
        average(*inputs, "--out", tmp_path / "out")
    finally:
        signals.signal(signals.SIGCHLD, before)
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_same(torch.load(tmp_path / "out" / "in_3.pt", weights_only=True), expected())


def test_a_command_that_ends_well_leaves_no_temporary_folder_and_needs_no_terminal(tmp_path):
    code = """if True:
        import tempfile
        from lawa_exp.cli import leave

        folder = tempfile.TemporaryDirectory()
        print(folder.name)
        leave(0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout and not Path(done.stdout.strip()).exists()
    words = [sys.executable, "-m", "lawa_exp.average", *make(tmp_path, state), "--out", str(tmp_path / "out")]
    done = subprocess.run(["bash", "-c", f"{shlex.join(words)} >&- 2>&-"])
    assert done.returncode == 0 and (tmp_path / "out" / "in_3.pt").is_file()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_bar_counts_all_that_is_read(processes, tmp_path, monkeypatch):
    """What lies beneath tensors with gaps too."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: processes)
    totals, shown = [], []
    monkeypatch.setattr("lawa_exp.average.Bar.__init__", lambda self, total: totals.append(total))
    monkeypatch.setattr("lawa_exp.average.Bar.show", lambda self, done: shown.append(done))
    monkeypatch.setattr("lawa_exp.average.Bar.__exit__", lambda self, *error: None)
    average(*make(tmp_path, lambda i: {"a": torch.randn(50), "holes": torch.randn(3000)[::2]}), "--out", tmp_path / "o")
    assert shown == sorted(shown) and shown[-1] == totals[0] > 0


def test_workers_leave_signals_to_the_parent(tmp_path, capsys, monkeypatch):
    """A closed terminal tells all processes of a command under nohup; and one may come while they are forked."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: 3)
    inputs, parent, do, fork = make(tmp_path, state), os.getpid(), Work.do, os.fork

    def told(self, block, first, last):
        for number in (signals.SIGHUP, signals.SIGTERM, signals.SIGINT) if os.getpid() != parent else ():
            os.kill(os.getpid(), number)
        do(self, block, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "do", told)
        average(*inputs, "--out", tmp_path / "out")
    assert_same(torch.load(tmp_path / "out" / "in_3.pt", weights_only=True), expected())
    forked = []

    def interrupted():
        if pid := fork():
            forked.append(pid)
            os.kill(parent, signals.SIGTERM)
        return pid

    monkeypatch.setattr("os.fork", interrupted)
    capsys.readouterr()
    assert main([*inputs, "--out", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err == "error: interrupted\n"
    for pid in forked:
        with pytest.raises(ChildProcessError):  # none is left
            os.waitpid(pid, os.WNOHANG)


# Refusals


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_what_does_not_fit_together_is_named(tmp_path, capsys):
    def save(name: str, **tensors: torch.Tensor) -> Path:
        torch.save(tensors, tmp_path / name)
        return tmp_path / name

    a = save("a.pt", w=torch.ones(3), v=torch.ones(2))
    for b, words in [
        (save("names.pt", w=torch.ones(3), u=torch.ones(2)), ["no tensor"]),
        (save("shapes.pt", w=torch.ones(4), v=torch.ones(2)), ["shapes.pt", "w has shape (4,)", "a.pt (3,)"]),
        (save("dtypes.pt", w=torch.ones(3).half(), v=torch.ones(2)), ["dtypes.pt", "w has dtype float16"]),
        (save("nan.pt", w=torch.tensor([1, float("nan"), 2]), v=torch.ones(2)), ["nan.pt: w holds NaN or infinity"]),
        (save("inf.pt", w=torch.ones(3), v=torch.tensor([1, -float("inf")])), ["inf.pt: v holds NaN or infinity"]),
        (save("complex.pt", w=torch.ones(3) * 1j, v=torch.ones(2)), ["complex.pt: w has dtype complex64"]),
        (tmp_path / "missing.pt", ["missing.pt: no such file"]),
        (tmp_path / "none_*.pt", ["none_*.pt: no file matches"]),
    ]:
        said = refused(capsys, a, b, "--out", tmp_path / "out")
        assert all(word in said for word in words), said
        assert not (tmp_path / "out").exists()
    big = save("big.pt", w=torch.full((3,), 1e6), v=torch.ones(2))
    assert "w: the average is too large for float16" in refused(
        capsys, big, "--dtype", "float16", "--out", tmp_path / "out"
    )


@pytest.mark.parametrize("kind", ["pytorch", "trajectory", "safetensors"])
def test_damage_is_found(kind, tmp_path, capsys):
    if kind == "pytorch":
        arguments = make(tmp_path, lambda i: {"model": state(i)})
        victim = Path(arguments[1])
    elif kind == "trajectory":
        arguments = ["--trajectory", str(trajectory(tmp_path / "run", range(1, 4))), "--k", "3"]
        victim = tmp_path / "run/trajectory/step_00000002/model.safetensors"
    else:
        arguments = safetensors(tmp_path)
        victim = Path(arguments[1])
    whole = victim.read_bytes()
    places = [len(whole) // 2, len(whole) // 3] if kind != "safetensors" else [3, 9]
    for at in places:
        flip(victim, at)
        said = refused(capsys, *arguments, "--out", tmp_path / "out")
        assert victim.name in said and (kind != "pytorch" or "_head.weight" in said)
        victim.write_bytes(whole)
    for length in (len(whole) - 1, len(whole) // 2, 100, 5, 0):
        victim.write_bytes(whole[:length])
        assert victim.name in refused(capsys, *arguments, "--out", tmp_path / "out"), length
        assert not (tmp_path / "out").exists()
    victim.write_bytes(whole)
    average(*arguments, "--out", tmp_path / "out")


def test_equal_damage_in_two_inputs_does_not_cancel(tmp_path, capsys):
    a, b, c = make(tmp_path, state)
    content = Path(b).read_bytes()
    flip(Path(b), len(content) // 2)
    shutil.copy(b, tmp_path / "copy.pt")
    for inputs in ([b, b], [b, tmp_path / "copy.pt"], [a, b, c, tmp_path / "copy.pt"]):
        assert "in_2.pt is damaged" in refused(capsys, *inputs, "--out", tmp_path / "out")


def raw(path: Path, pickled: bytes, storage: bytes = bytes(16)) -> Path:
    """A zip of torch.save around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "data/0": storage}.items():
            archive.writestr(f"archive/{name}", content)
    return path


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\4tQ"


@pytest.mark.parametrize(
    "view",
    [
        b"J\xff\xff\xff\xffK\4\x85K\1\x85",
        b"G" + bytes(8) + b"K\4\x85K\1\x85",
        b"K\0K\4\x85)",
        b"K\0K\4\x85J\xff\xff\xff\xff\x85",
    ],
    ids=["offset", "float", "lengths", "stride"],
)
def test_a_tensor_of_an_odd_view_is_refused(view, tmp_path, capsys):
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"%s\x89NtR"
    for part, fits in ((view, False), (b"K\0K\4\x85K\1\x85", True)):
        path = raw(tmp_path / "a.pt", b"\x80\2}X\1\0\0\0w" + tensor % part + b"s.")
        if fits:
            average(path, "--out", tmp_path / "out")
        else:
            assert "a.pt is damaged" in refused(capsys, path, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "what",
    [
        b"\x8c\7fairseq\x8c\x0cX\ncos\nsystem\x93",  # a line break in a name
        b"\x8c\x0ffairseq.X\ncos\nb\x8c\1X\x93",
        b"cfairseq.file_io\nPathManager\n",
        b"cfairseq.utils\nimport_user_module\n",
        b"cfairseq.dataclass.utils\nadd_defaults\n",
        b"cfairseq.dataclass.configs\neval_str_list\n",
        b"c_codecs\nencode\n}X\x0c\0\0\0__defaults__X\6\0\0\0latin1\x85sb",  # a change of our own function
        b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__)s\x86b",
        b"c_codecs\nencode\n",  # a function as a value
        b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\1sb",
        STORAGE + b"}X\5\0\0\0numelK\1sb",
        b"]" * 3000 + b"a" * 2999,
        b"cnumpy\nload\n",
        b"cnumpy\ndtype\n)R",
        b"cnumpy\ndtype\n]\x85R",
        b"cnumpy\nndarray\n(K\3\x85X\1\0\0\0OtR",
        b"cnumpy\nndarray\n)\x81",  # makes an array without a word on its dtype
    ],
)
def test_pickles_that_would_change_what_reads_them_are_refused(what, tmp_path, capsys):
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0K\4\x85K\1\x85\x89NtR"
    path = raw(tmp_path / "a.pt", b"\x80\2}(X\5\0\0\0model}X\1\0\0\0w" + tensor + b"sX\1\0\0\0x" + what + b"u.")
    print(said := refused(capsys, path, "--out", tmp_path / "out"))
    assert "a.pt" in said
    assert not (tmp_path / "out").exists()


def test_odd_headers_and_indexes_are_refused(tmp_path, capsys):
    def entry(**changes: object) -> dict:
        return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}

    path = tmp_path / "a.safetensors"
    for header in (
        b'{"a":' + b"[" * 100000,
        *(
            json.dumps(h).encode()
            for h in (
                entry(dtype=[]),
                entry(shape=[2**70, 0], data_offsets=[0, 0]),
                entry(shape=5),
                entry() | {"__metadata__": {"a": 1}},
                entry() | {"__metadata__": [1]},
                entry() | {"__metadata__": "a"},
                {"\ud800": entry()["w"]},
                {"w": []},
                [],
            )
        ),
    ):
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        assert "a.safetensors" in refused(capsys, path, "--out", tmp_path / "out"), header[:80]
    folder = tmp_path / "folder"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, folder / "1.safetensors")
    save_file({"b": torch.ones(1)}, folder / "2.safetensors")
    for weight_map in ({"a": 5}, {}, 5, [], {"a": "1.safetensors", "b": []}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert index.name in refused(capsys, folder, "--out", tmp_path / "out")
    index.write_text("[" * 100000)
    assert index.name in refused(capsys, folder, "--out", tmp_path / "out")
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert "b is both in 1.safetensors and in 2.safetensors" in refused(capsys, folder, "--out", tmp_path / "out")


@pytest.mark.parametrize("kind", ["crc32", "sha256"])
def test_what_a_manifest_says_is_checked(kind, tmp_path, capsys):
    """sha256: as the first manifests had it."""
    folder = trajectory(tmp_path / "run", range(1, 4)) / "trajectory"
    for step in folder.iterdir():
        manifest = json.loads((step / "manifest.json").read_text())
        ((name, entry),) = manifest.items()
        if kind == "sha256":
            entry.pop("crc32")
            entry["sha256"] = hashlib.sha256((step / name).read_bytes()).hexdigest()
        (step / "manifest.json").write_text(json.dumps(manifest))
    average("--trajectory", folder, "--k", 3, "--out", tmp_path / "out")
    file = folder / "step_00000002" / name
    flip(file, file.stat().st_size - 3)
    said = refused(capsys, "--trajectory", folder, "--k", 3, "--out", tmp_path / "out2")
    assert str(file.parent) in said and "checksum" in said


def test_a_damaged_folder_of_distributed_checkpoint_is_named(tmp_path, capsys):
    dcp.save({"model": {"w": torch.ones(1000)}, "step": 1}, checkpoint_id=tmp_path / "dcp")
    (file,) = (tmp_path / "dcp").glob("*.distcp")
    content = file.read_bytes()
    flip(file, content.index(torch.ones(1000).numpy().tobytes()) + 2000)
    assert f"{file} is damaged: model.w does not have its checksum" in refused(
        capsys, tmp_path / "dcp", "--out", tmp_path / "out"
    )
    file.write_bytes(content)
    os.truncate(file, file.stat().st_size // 2)
    assert "dcp" in refused(capsys, tmp_path / "dcp", "--out", tmp_path / "out")
    file.unlink()
    assert f"{file} is damaged" in refused(capsys, tmp_path / "dcp", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_malicious_pickle_is_named_and_not_run(tmp_path, capsys):
    target = tmp_path / "was_run"
    for name, content in {
        "module": torch.nn.Linear(2, 2),
        "reduce": {"model": {"w": torch.ones(2)}, "x": Malicious(target)},
    }.items():
        for new in (True, False):
            torch.save(content, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=new)
            said = refused(capsys, tmp_path / f"{name}.pt", "--out", tmp_path / "out")
            assert ("torch.nn.modules.linear.Linear" if name == "module" else f"{os.mkdir.__module__}.mkdir") in said
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(target), protocol=2))
    refused(capsys, tmp_path / "plain.pt", "--out", tmp_path / "out")
    assert not target.exists() and not (tmp_path / "out").exists()


def test_outputs_do_not_replace_inputs_nor_other_results(tmp_path, capsys):
    inputs = make(tmp_path, state)
    assert "is one of the inputs" in refused(capsys, *inputs, "--out", tmp_path)
    average(*inputs, "--out", tmp_path / "out")
    before = (tmp_path / "out" / "in_3.pt").read_bytes()
    average(*inputs, "--out", tmp_path / "out")
    assert "the same as was there already" in capsys.readouterr().out
    assert "--overwrite" in refused(capsys, *inputs, "--k", 2, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "in_3.pt").read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["in_3.pt"]
    average(*inputs, "--k", 2, "--out", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "in_3.pt").read_bytes() != before


def test_wrong_flags(tmp_path, capsys):
    inputs = make(tmp_path, state)
    out = ("--out", tmp_path / "out")
    assert "expected checkpoints" in refused(capsys, *out)
    assert "--decay is not a setting of lawa" in refused(capsys, *inputs, "--decay", 0.9, *out)
    assert "--k=0: expected" in refused(capsys, *inputs, "--k", 0, *out)
    assert "takes 9 checkpoints" in refused(capsys, *inputs, "--k", 9, *out)
    assert "2 weights for 3 inputs" in refused(capsys, *inputs, "--weights", "1,2", *out)
    assert "whose sum is not 0" in refused(capsys, *inputs, "--weights=1,-1,0", *out)
    assert "--weights=1e308,1e308,1" in refused(capsys, *inputs, "--weights=1e308,1e308,1", *out)
    assert "--start=50%" in refused(capsys, *inputs, "--start", "50%", *out)
    assert "--at=7" in refused(capsys, *inputs, "--at", 7, *out)
    assert "--k does not go with --weights, of which" in refused(capsys, *inputs, "--k", 3, "--weights", "1,2,3", *out)
    assert "drop --method" in refused(capsys, *inputs, "--method", "wma", "--weights", "1,2,3", *out)
    (tmp_path / "empty").mkdir()
    assert "no checkpoints there" in refused(capsys, "--trajectory", tmp_path / "empty", *out)
    with pytest.raises(SystemExit) as ended:
        main([*inputs, "--method", "mean", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2


def test_a_whole_model_is_refused_with_what_to_save(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    said = refused(capsys, tmp_path / "model.pt", "--out", tmp_path / "out")
    assert "torch.nn.modules.linear.Linear" in said and "save model.state_dict() instead" in said


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_short_names_of_dtypes_and_sizes_that_can_be_read(name, tmp_path, capsys):
    """All that is floating-point is cast, as `Module.to` does."""
    model = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    average(tmp_path / "a.pt", "--dtype", name, "--out", tmp_path / "out")
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]
    assert {n: t.dtype for n, t in torch.load(tmp_path / "out" / "a.pt").items()} == {
        n: t.dtype for n, t in model.to(wanted).state_dict().items()
    }
    assert re.search(r"of 1 checkpoint \([1-9]\d* B in ", capsys.readouterr().out)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
@pytest.mark.parametrize("at", ["lawa_exp.formats.output:Output.finish", "lawa_exp.formats.stream:Stream.run"])
def test_what_is_stopped_leaves_no_output(signal, at, tmp_path):
    inputs = make(tmp_path, state)
    out = tmp_path / "some" / "out"
    done = run(*inputs, "--out", str(out), module="lawa_exp.average", strike=Strike(at, signal=signal))
    assert done.returncode == (-9 if signal == "SIGKILL" else 1)
    assert not out.exists()
    if signal != "SIGKILL":
        assert not out.parent.exists() and done.stderr.count("\n") == 1
    done = run(*inputs, "--out", str(out), module="lawa_exp.average", warm=True)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in out.iterdir()] == ["in_3.pt"] and [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_background_job_of_a_shell_is_interrupted_too(tmp_path):
    """A shell without job control starts those with SIGINT ignored."""
    inputs = make(tmp_path, state)
    before = {number: signals.getsignal(number) for number in (signals.SIGINT, signals.SIGTERM, signals.SIGHUP)}
    try:
        for number in before:
            signals.signal(number, signals.SIG_IGN)
        average(*inputs, "--out", tmp_path / "out")
        ignored = {number for number in before if signals.getsignal(number) == signals.SIG_IGN}
    finally:
        for number, handler in before.items():
            signals.signal(number, handler)
    assert ignored == {signals.SIGHUP}


def test_errors_of_the_disk_name_the_path(tmp_path, capsys, monkeypatch):
    inputs = make(tmp_path, state)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for name in ("loop", "nowhere"):
        assert name in refused(capsys, *inputs, "--out", tmp_path / name)
    for out in (tmp_path / "in_1.pt" / "out", tmp_path / ("n" * 300), tmp_path / "loop" / "out"):
        assert f"{out.parent}" in refused(capsys, *inputs, "--out", out)
    assert "n" * 300 in refused(capsys, "n" * 300, "--out", tmp_path / "out")

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert main([*inputs, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "No space left" in said and "in_3.pt" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("snapshots", [4, 5, 6, 7, 8, 11])
def test_windows_with_few_and_many_outputs(snapshots, tmp_path):
    """A window that slides, and one that has fewer outputs than snapshots in it."""
    trajectory(tmp_path / "run", range(5, 5 * snapshots + 1, 5))
    average("--trajectory", tmp_path / "run", "--k", "4", "--out", tmp_path / "out")
    ends = range(20, 5 * snapshots + 1, 5)
    for end in ends:
        folder = tmp_path / "out" if len(ends) == 1 else tmp_path / "out" / f"step_{end:08d}"
        wanted = expected((1, 1, 1, 1), range(end - 15, end + 1, 5))
        assert_same(load_file(folder / "model.safetensors"), {n: wanted[n].contiguous() for n in sorted(wanted)})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_sliding_sum_is_the_sum_made_afresh(dtype: str) -> None:
    """To the bit, with values far apart, zeros of both signs and subnormals, where going on is not exact; and where it
    is, it does go on."""
    draw = np.random.default_rng(0)
    bits, mantissa = LAYOUT[dtype]
    width = 8 * bits(0).itemsize
    n, k, went_on = 64, 5, 0
    for trial in range(300):
        inputs = []
        for _ in range(12):
            if trial % 3 == 0:  # any bit pattern that is a finite number
                x = draw.integers(0, 2**width, n).astype(bits)
                x[(x >> mantissa) & bits(2 ** (width - 1 - mantissa) - 1) == 2 ** (width - 1 - mantissa) - 1] = 0
            else:
                values = draw.normal(size=n) * (0.02 if trial % 3 == 1 else 10.0 ** draw.integers(-4, 4, n))
                values[draw.random(n) < 0.1 * (trial % 2)] = 0.0
                x = torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.uint8).numpy().view(bits)
                if trial % 7 == 0:
                    x = np.where(draw.random(n) < 0.2, bits(1 << (width - 1)), x)  # -0
            inputs.append(x.view(np.uint8))
        window = SlidingSum(np.empty((k, n)), np.empty(n), dtype, np.empty(8 * n, np.uint8))
        decoded = [decode(x, dtype, np.empty(n)).copy() for x in inputs]
        for i, x in enumerate(inputs):
            window.push(x)
            went_on += i >= k and window._exact()
            if i >= k - 1:
                fresh = decoded[i - k + 1].copy()
                for value in decoded[i - k + 2 : i + 1]:
                    fresh += value
                assert window.total.tobytes() == fresh.tobytes(), (trial, i)
    assert 300 < went_on < 300 * 7
