"""`python -m lawa_exp.average` on PyTorch's files: every layout in and out, and pickles that are not to be run."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import sys
import types
import weakref
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from averaged_files import (
    INPUTS,
    Malicious,
    assert_same,
    average,
    expected,
    make,
    optimizer_state,
    refused,
    state,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lawa_exp.formats.pytorch import TorchFile

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


def network() -> nn.Module:
    """With names of several lengths and a BatchNorm, of random weights and statistics."""
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    )
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1)
    return made


def averaged_model(i: int) -> AveragedModel:
    """torch's own, as torchvision's `model_ema` and Lightning's averages are: `module.` and `n_averaged`."""
    made = AveragedModel(network())
    made.n_averaged.fill_(i)
    return made


def with_prefix(tensors: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": t for name, t in tensors.items()}


def parameters() -> list[torch.Tensor]:
    return [p.detach() for p in network().parameters()]


COPIES = {  # key of the weights, what else there is, and what of it is left out
    "timm": ("state_dict", lambda i: {"state_dict_ema": network().state_dict()}, ["state_dict_ema"]),
    "torchvision": ("model", lambda i: {"model_ema": averaged_model(i).state_dict()}, ["model_ema"]),
    "DiT": ("model", lambda i: {"ema": OrderedDict(network().named_parameters())}, ["ema"]),
    "mmengine": (
        "state_dict",
        lambda i: {"ema_state_dict": with_prefix(network().state_dict(), "module.") | {"steps": torch.tensor(i)}},
        ["ema_state_dict"],
    ),
    "ema-pytorch": (
        "model",
        lambda i: {"ema": pytest.importorskip("ema_pytorch").EMA(network()).state_dict()},
        ["ema"],
    ),
    "torch_ema": (
        "model",
        lambda i: {"ema": {"decay": 0.9, "shadow_params": parameters(), "collected_params": None}},
        ["ema.shadow_params"],
    ),
    "several": (
        "model",
        lambda i: {"emas": [network().state_dict(), network().half().state_dict()]},
        ["emas.1", "emas.0"],
    ),
    "Lightning": (
        "state_dict",
        lambda i: {
            "current_model_state": network().state_dict(),
            "averaging_state": {"n_averaged": torch.tensor(i)},
            "callbacks": {"SWA": {"average_model_state": averaged_model(i).state_dict(), "n_averaged": i}},
        },
        ["current_model_state", "callbacks.SWA.average_model_state"],
    ),
    "fairseq": ("model", lambda i: {"extra_state": {"ema": network().state_dict(), "epoch": i}}, ["extra_state.ema"]),
    "master weights": (
        "model",
        lambda i: {
            "optimizer": {"optimizer": optimizer_state(), "fp32_from_fp16": [parameters()[:2], parameters()[2:]]}
        },
        ["optimizer.fp32_from_fp16"],
    ),
    "more tensors": (
        "model",
        lambda i: {"ema": network().state_dict() | {"extra.weight": torch.ones(3, 2), "bound": torch.ones(2)}},
        ["ema"],
    ),
    "in a tuple": ("model", lambda i: {"ema": (network().state_dict(), 0.99)}, ["ema"]),
    "deep in a tuple": ("model", lambda i: {"all": ({"ema": network().state_dict(), "n": 1}, i)}, ["all.0.ema"]),
    "wrapped": ("model", lambda i: {"ema": with_prefix(network().state_dict(), "_orig_mod.")}, ["ema"]),
    "Lookahead": (
        "model",
        lambda i: {"optimizer": {"slow_weights": [parameters()], "k": 5}},
        ["optimizer.slow_weights"],
    ),
}


@pytest.mark.parametrize("layout", COPIES)
def test_second_copies_of_the_weights_are_left_out_by_name(layout, tmp_path, capsys):
    key, others, left_out = COPIES[layout]
    states = {i: network().state_dict() for i in (1, 2)}
    kept = {"epoch": 1, "rng": torch.arange(7), "mask": {n: t > 0.7 for n, t in states[1].items()}}
    inputs = make(tmp_path, lambda i: {key: states[i], **kept, **others(i)}, steps=[1, 2])
    average(*inputs, *(["--include-averages"] if layout == "Lightning" else []), "--out", tmp_path / "out")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("left out"))
    assert line.partition(": ")[2] == ", ".join(left_out)
    found = torch.load(tmp_path / "out" / "in_2.pt", weights_only=False)
    assert found.keys() - kept.keys() - {key} <= {path.split(".")[0] for path in left_out} | {"averaging_state"}
    assert found["rng"].tolist() == list(range(7)) and found["mask"].keys() == states[1].keys()
    means = {n: (states[1][n].double() + t.double()) / 2 for n, t in states[2].items() if "running" not in n}
    assert all(
        torch.equal(found[key][n], mean.to(found[key][n].dtype)) for n, mean in means.items() if mean.numel() > 1
    )

    def tensors_in(value) -> list[torch.Tensor]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [value] if isinstance(value, torch.Tensor) else [t for part in inner for t in tensors_in(part)]

    rest = [t for k, value in found.items() if k not in (key, *kept) for t in tensors_in(value)]
    assert all(t.numel() == 1 for t in rest), "of two elements or more only the average is in the file"


def test_what_is_no_second_copy_stays(tmp_path, capsys):
    """Other shapes, other names, part of the weights' memory, a few tensors in a list; and an optimizer's own state."""
    state = network().state_dict()
    other = {
        "discriminator": nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict(),
        "statistics": {"mean": torch.ones(4), "std": torch.ones(4)},
        "views": {"2.1.weight": state["2.1.weight"][:, :]},
        "normalise": [torch.ones(4), torch.ones(4)],
        "means": parameters()[:4],
        "proj": nn.Linear(3, 5).state_dict(prefix="2.1."),
        "criterion": {"1.weight": torch.ones(4)},
        "fisher": dict(network().named_parameters()),
        "old_params": network().state_dict(),
        "initial_weights": network().state_dict(),
        "pruning": {"masks": network().state_dict()},
        "model2": network().state_dict(),
        **{key: network().state_dict() for key in ("target_net_ema", "slow_net", "current_policy")},
        "G_B": {"net": network().state_dict()},
        "networks": [network().state_dict(), network().state_dict()],
        "parameters": parameters(),
    }
    torch.save({"model": state, "optimizer": optimizer_state(), **other}, tmp_path / "a.pt")
    average(tmp_path / "a.pt", "--out", tmp_path / "out", "--verbose")
    said = capsys.readouterr().out
    assert "left out" not in said and "others): discriminator, statistics, normalise, means, ... (18 in all)" in said
    found = torch.load(tmp_path / "out" / "a.pt", weights_only=True)
    assert str({k: found[k] for k in other}) == str(other) and found["optimizer"]["param_groups"]


def test_timm_loads_the_average(tmp_path, capsys):
    """By its own saver, averager and loader, which takes `state_dict_ema` before `state_dict`."""
    timm = pytest.importorskip("timm")
    from timm.models import load_checkpoint
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm.create_model("test_vit", num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = ModelEmaV3(model, decay=0.9)
    folders = {name: str(tmp_path) for name in ("checkpoint_dir", "recovery_dir")}
    args = argparse.Namespace(model="test_vit")
    saver = CheckpointSaver(model, optimizer, args=args, model_ema=ema, max_history=5, **folders)
    for epoch in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        ema.update(model)
        saver.save_checkpoint(epoch, metric=float(epoch))
    average("--trajectory", tmp_path, "--k", 2, "--spacing", 1, "--at", 2, "--out", tmp_path / "out")
    assert "left out" in capsys.readouterr().out
    made = tmp_path / "out" / "checkpoint-2.pth.tar"
    saved = [torch.load(tmp_path / f"checkpoint-{i}.pth.tar", weights_only=False)["state_dict"] for i in (1, 2)]
    created = timm.create_model("test_vit", num_classes=10, checkpoint_path=str(made))
    loaded = timm.create_model("test_vit", num_classes=10)
    load_checkpoint(loaded, str(made))
    for name, tensor in saved[1].items():
        mean = ((saved[0][name].double() + tensor.double()) / 2).to(tensor.dtype)
        assert torch.equal(created.state_dict()[name], mean) and torch.equal(loaded.state_dict()[name], mean), name


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
    objects = [np.array([Path("a"), None]), np.zeros(2, "i4,f8"), np.array(["2020-01-01"], "M8[D]")]
    torch.save({"model": state(1), "x": objects}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    average(tmp_path / "x.pt", "--out", tmp_path / "x")
    for made, original in zip(torch.load(tmp_path / "x" / "x.pt", weights_only=False)["x"], objects, strict=True):
        assert made.dtype == original.dtype and made.tolist() == original.tolist()


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
        b"c_codecs\nencode\n}X\x0c\0\0\0__defaults__X\6\0\0\0latin1\x85sb",  # a change of our own function
        b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__)s\x86b",
        b"c_codecs\nencode\n",  # a function as a value
        b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\1sb",
        STORAGE + b"}X\5\0\0\0numelK\1sb",
        b"]" * 3000 + b"a" * 2999,
        b"cbuiltins\neval\n",
        b"cbuiltins\nexec\nX\1\0\0\0x\x85R",
        b"csubprocess\nPopen\n",
        b"cruntime.x\nX\n}b",  # a change of a stand-in's class
        b"cruntime.x\nX\nX\1\0\0\0aa",
        b"cruntime.x\nX y\n)R",
        b"ccopyreg\n__newobj_ex__\n",
        b"ccopyreg\n__newobj__\nccollections\nOrderedDict\n\x85R",
        b"ctorch._utils\n_rebuild_sparse_tensor\n",
        b"ctorchao.x\nX\n",
        b"ctorch\nfloat32\n)R",
    ],
)
def test_pickles_that_would_change_what_reads_them_are_refused(what, tmp_path, capsys):
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0K\4\x85K\1\x85\x89NtR"
    path = raw(tmp_path / "a.pt", b"\x80\2}(X\5\0\0\0model}X\1\0\0\0w" + tensor + b"sX\1\0\0\0x" + what + b"u.")
    print(said := refused(capsys, path, "--out", tmp_path / "out"))
    assert "a.pt" in said
    assert not (tmp_path / "out").exists()


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


def test_a_whole_model_is_refused_with_what_to_save(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    said = refused(capsys, tmp_path / "model.pt", "--out", tmp_path / "out")
    assert "torch.nn.modules.linear.Linear" in said and "save model.state_dict() instead" in said
