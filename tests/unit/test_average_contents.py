"""`python -m lawa_exp.average`: which tensors are averaged, copied or refused, and what else may be in the files."""

from __future__ import annotations

import collections
import datetime
import enum
import functools
import http
import operator
import pathlib
import platform
import signal
import urllib.parse
import zipfile
from pathlib import Path

import pytest
import torch
from averaged_files import Malicious, average, make, optimizer_state, refused
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.nn.utils import parametrizations, weight_norm

from lawa_exp.convert.checkpoints import read_checkpoint
from lawa_exp.formats.classes import is_refused
from lawa_exp.formats.stored import ABOUT
from lawa_exp.system.errors import UserError

INF = float("inf")


def weights(i: int, shape: tuple[int, ...] = (8, 16)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(i))


def mean(*tensors: Tensor) -> Tensor:
    total = sum(t.double() for t in tensors)
    return (total / len(tensors)).to(tensors[-1].dtype)


W = mean(weights(1), weights(2))


def averaged(capsys: pytest.CaptureFixture[str], folder: Path, wrap, *flags: object) -> tuple[object, list[str]]:
    """What the average of wrap(1) and wrap(2) holds, and the lines about what is no mean."""
    inputs = make(folder, wrap, steps=[1, 2])
    capsys.readouterr()
    average(*inputs, *flags, "--out", folder / "out", "--overwrite")
    said = capsys.readouterr().out.splitlines()[3:]
    return torch.load(folder / "out" / "in_2.pt", weights_only=False), said


# What is copied


def test_what_is_copied_is_counted_with_the_reason(tmp_path, capsys):
    def content(i: int) -> dict:
        mask = torch.triu(torch.full((4, 4), -INF), 1)
        rotations = torch.polar(torch.ones(4), torch.arange(4.0))
        large = torch.full((300, 300), 0.25)
        large[200, 5] = float("nan")  # beyond the first chunk
        counts = {"n": torch.tensor(i), "flag": torch.tensor(True), "bn.running_mean": torch.ones(2) * i}
        model = {"w": weights(i), "mask": mask, "freqs_cis": rotations, "large": large.T, **counts, "extra": b"x"}
        return {"model": model}

    found, said = averaged(capsys, tmp_path, content)
    assert said == [
        "copied from the last input, not averaged: 2 tensors of integers or bools, 1 tensor of BatchNorm's running "
        "statistics, 3 tensors with NaN, infinite or complex numbers, equal in all inputs, 1 entry without a tensor "
        "(extra)",
        "note: the running statistics are not those of the averaged weights: compute them anew from training data "
        "before you evaluate these (torch.optim.swa_utils.update_bn)",
    ]
    last = content(2)["model"]
    assert torch.equal(found["model"].pop("w"), W)
    for name, tensor in found["model"].items():
        assert name == "extra" or torch.equal(tensor.nan_to_num(7), last[name].nan_to_num(7)), name
    _, said = averaged(capsys, tmp_path, lambda i: {"w": weights(i)})
    assert said == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2", "float64"])
def test_constants_are_cast_with_the_rest(dtype, tmp_path, capsys):
    mask = torch.tensor([-INF, INF, INF if dtype == "float8_e5m2" else float("nan"), 1.0])
    found, _ = averaged(capsys, tmp_path, lambda i: {"w": weights(i), "mask": mask}, "--dtype", dtype)
    assert found["mask"].dtype == getattr(torch, dtype)
    assert torch.equal(found["mask"].double().nan_to_num(7), mask.double().nan_to_num(7))
    inputs = make(tmp_path, lambda i: {"w": weights(i), "mask": mask}, steps=[1, 2])
    said = refused(capsys, *inputs, "--dtype", "float8_e4m3fn", "--out", tmp_path / "no")
    assert "mask holds numbers that float8_e4m3fn does not have" in said


@pytest.mark.parametrize("at", [0, 299 * 300])
def test_nan_and_infinity_that_differ_are_refused(at, tmp_path, capsys):
    """Also where every chunk with a NaN is equal, and another one is not."""

    def content(i: int) -> dict:
        flat = torch.zeros(300 * 300)
        flat[at], flat[45000] = float("nan"), i
        return {"w": flat.view(300, 300)}

    said = refused(capsys, *make(tmp_path, content, steps=[1, 2]), "--out", tmp_path / "out")
    assert "w holds NaN or infinity, and is not equal in all inputs" in said
    inputs = make(tmp_path, lambda i: {"w": weights(i), "freqs": torch.ones(2) * 1j * i}, steps=[1, 2])
    said = refused(capsys, *inputs, "--out", tmp_path / "out")
    assert "freqs has dtype complex64, which cannot be averaged, and is not equal in all inputs" in said


def test_windows_that_slide_copy_constants_too(tmp_path, capsys):
    mask = torch.full((7,), -INF)
    for i in range(1, 8):
        save_file({"w": weights(i), "mask": mask}, tmp_path / f"step_{i}.safetensors")
    average("--trajectory", tmp_path, "--k", 4, "--out", tmp_path / "out")
    assert "1 tensor with NaN, infinite or complex numbers, equal in all inputs\n" in capsys.readouterr().out
    for end in range(4, 8):
        found = load_file(tmp_path / "out" / f"step_{end:08d}" / "model.safetensors")
        assert torch.equal(found["mask"], mask)
        assert torch.equal(found["w"], mean(*(weights(i) for i in range(end - 3, end + 1))))


def test_inputs_of_several_precisions(tmp_path, capsys):
    """mergekit casts them; here --dtype says to which."""
    stored = {1: weights(1).bfloat16(), 2: weights(2), 3: weights(3).double()}
    contents = {i: {"w": t, "t": t.T, "n": torch.tensor(i), "bn.running_var": t[0].abs()} for i, t in stored.items()}
    inputs = make(tmp_path, lambda i: contents[i])
    said = refused(capsys, *inputs, "--out", tmp_path / "out")
    assert "w has dtype float32, in" in said and "bfloat16; --dtype float32 averages them all the same" in said
    for dtype in ("float32", "bfloat16", "float64"):
        average(*inputs, "--dtype", dtype, "--out", tmp_path / dtype)
        found = torch.load(tmp_path / dtype / "in_3.pt")
        expected = mean(*(t.double() for t in stored.values()))
        if dtype == "bfloat16":  # rounded once
            assert (found["w"].double() - expected).abs().max() <= 2**-8 * expected.abs().max()
        else:
            assert torch.equal(found["w"], expected.to(getattr(torch, dtype)))
        assert torch.equal(found["t"], found["w"].T) and found["n"] == 3
        assert found["bn.running_var"].dtype == getattr(torch, dtype)
    integers = make(tmp_path, lambda i: {"w": weights(i), "n": torch.tensor(i, dtype=[torch.int8, torch.int64][i - 1])},
                    steps=[1, 2])  # fmt: skip
    assert "n has dtype int64" in refused(capsys, *integers, "--dtype", "float32", "--out", tmp_path / "no")


# Where the state dict is

PLACES = {
    "net": lambda w: {"net": w, "epoch": 1, "optimizer": optimizer_state()},
    "params": lambda w: {"params": w, "params_ema": {n: t + 1 for n, t in w.items()}},  # BasicSR
    "network_weights": lambda w: {"network_weights": w, "init_args": {"plans": {}}, "_best_ema": 0.5},  # nnU-Net
    "module": lambda w: {"module": w, "dp_world_size": 1, "rng": torch.get_rng_state()},  # DeepSpeed
    "state.model": lambda w: {"state": {"model": w, "optimizers": {"AdamW": optimizer_state()}}, "rng": []},  # Composer
    "ema": lambda w: {"ema": w, "epoch": 1},
}


@pytest.mark.parametrize("key", PLACES)
def test_the_only_state_dict_of_a_file_is_averaged(key, tmp_path, capsys):
    found, _ = averaged(capsys, tmp_path, lambda i: PLACES[key]({"a.w": weights(i), "b": weights(i, (3,))}))
    for part in key.split("."):
        found = found[part]
    assert torch.equal(found["a.w"], W) and found.keys() == {"a.w", "b"}


def test_one_of_several_state_dicts_is_named_by_key(tmp_path, capsys):
    def content(i: int) -> dict:
        parts = {"encoder": {"w": weights(i)}, "decoder.v2": {"w": weights(i, (4, 4))}}
        return {"generator": parts, "discriminator": {"w": weights(i, (5, 2))}, "steps": i}

    inputs = make(tmp_path, content, steps=[1, 2])
    said = refused(capsys, *inputs, "--out", tmp_path / "out")
    assert (
        "choose one with --key: generator.encoder, generator.decoder.v2, discriminator (or all of them: generator)"
        in (said)
    )
    d = mean(weights(1, (5, 2)), weights(2, (5, 2)))
    for key, left, is_mean in [
        ("generator", "discriminator", (True, True, False)),
        ("generator.decoder.v2", "generator.encoder, discriminator", (False, True, False)),
        ("discriminator", "generator.encoder, generator.decoder.v2", (False, False, True)),
        (".", "", (True, True, True)),
    ]:
        found, lines = averaged(capsys, tmp_path, content, "--key", key)
        kept = "other tensors, which are as the last input has them (--key averages others): "
        assert [line for line in lines if line.startswith("other")] == ([kept + left] if left else [])
        tensors = [*(part["w"] for part in found["generator"].values()), found["discriminator"]["w"]]
        means = [W, mean(weights(1, (4, 4)), weights(2, (4, 4))), d]
        lasts = [weights(2), weights(2, (4, 4)), weights(2, (5, 2))]
        for tensor, whole, last, averages in zip(tensors, means, lasts, is_mean, strict=True):
            assert torch.equal(tensor, whole if averages else last), key
    said = refused(capsys, *inputs, "--key", "critic", "--out", tmp_path / "no")
    assert "--key=critic: there is no such key; state dicts: generator.encoder" in said
    assert "--key=steps: no state dict" in refused(capsys, *inputs, "--key", "steps", "--out", tmp_path / "no")
    save_file({"w": weights(1)}, tmp_path / "a.safetensors")
    said = refused(capsys, tmp_path / "a.safetensors", "--key", "model", "--out", tmp_path / "no")
    assert "safetensors, which hold one state dict; drop --key" in said


def test_the_key_of_folders_of_distributed_checkpoint(tmp_path, capsys):
    for i in (1, 2):
        dcp.save({"a": {"w": weights(i)}, "b": {"v": weights(i, (3, 3))}}, checkpoint_id=tmp_path / f"dcp_{i}")
    inputs = [tmp_path / "dcp_1", tmp_path / "dcp_2"]
    assert "choose one with --key: a, b" in refused(capsys, *inputs, "--out", tmp_path / "out")
    average(*inputs, "--key", "b", "--out", tmp_path / "out")
    found = {"a": {"w": torch.empty(8, 16)}, "b": {"v": torch.empty(3, 3)}}
    dcp.load(found, checkpoint_id=tmp_path / "out")
    assert torch.equal(found["b"]["v"], mean(weights(1, (3, 3)), weights(2, (3, 3))))
    assert torch.equal(found["a"]["w"], weights(2))


def test_a_prefix_of_all_names_may_be_missing_in_some_inputs(tmp_path):
    """A LightningModule's names (OpenTAD #44), and those of the model in it."""
    names = ["conv1.weight", "bn.bias"]
    torch.save({"state_dict": {f"model.{n}": weights(1) for n in names}}, tmp_path / "in_1.pt")
    torch.save({n: weights(2) for n in names}, tmp_path / "in_2.pt")
    average(tmp_path / "in_1.pt", tmp_path / "in_2.pt", "--out", tmp_path / "out")
    found = torch.load(tmp_path / "out" / "in_2.pt")
    assert list(found) == names and all(torch.equal(t, W) for t in found.values())


HIDDEN = {  # what stands next to a tensor in a state dict, and its key
    "a mapping": (lambda w: {"encoder": {"w": w}}, "encoder"),
    "a list": (lambda w: {"prompts": [w, w + 1]}, "prompts"),
    "a list of mappings": (lambda w: {"blocks": [{"w": w}, {"w": w + 1}]}, "blocks.0"),
    "a deep mapping": (lambda w: {"a": {"b": {"c": {"d": {"w": w}}}}}, "a.b.c.d"),
    "one element": (lambda w: {"head": {"scale": w[:1, 0]}}, "head"),
    "called otherwise": (lambda w: {"stats": {"w": w}}, "stats"),
}


@pytest.mark.parametrize("where", ["model", "net"])
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_tensor_hides_no_others_of_its_state_dict(kind, where, tmp_path, capsys):
    inner, key = HIDDEN[kind]
    inputs = make(tmp_path, lambda i: {where: {"own": weights(i), **inner(weights(i))}, "epoch": 1}, steps=[1, 2])
    said = refused(capsys, *inputs, "--out", tmp_path / "out")
    assert f"{where}.{key} has weights, too; --key={where} averages all in {where}, --key={where}.{key} these" in said
    average(*inputs, "--key", where, "--out", tmp_path / "out")
    found = torch.load(tmp_path / "out" / "in_2.pt")[where]
    lines = capsys.readouterr().out
    if kind == "called otherwise":
        assert "other tensors, which are as the last input has them (--key averages others): net.stats" in lines or (
            "others): model.stats" in lines
        )
    else:
        assert str(found) == str({"own": W, **inner(W)}) and "last input" not in lines


def test_every_floating_point_tensor_of_the_last_input_is_named(tmp_path, capsys):
    """On the top level, of one element, in lists, in objects, deep down; also in a plain file."""

    def content(i: int) -> dict:
        deep = {"a": {"b": {"c": {"d": {"v": weights(i)}}}}}
        others = {"bias": weights(i, (3,)), "net": {"scale": torch.tensor(2.0)}, "means": [weights(i, (2,))]}
        return {"model": {"w": weights(i)}, **others, "deep": deep, "head": nn.Linear(2, 2)}

    _, said = averaged(capsys, tmp_path, content)
    named = "other tensors, which are as the last input has them (--key averages others): "
    assert [line.removeprefix(named) for line in said] == ["bias, net, means, deep.a.b.c.d, head"]
    scores = {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}}}  # of Lightning
    assert averaged(capsys, tmp_path, lambda i: {"state_dict": {"w": weights(i)}, **scores})[1] == []
    plain = {"ema": {"w": weights(3)}, "args": {"x": weights(4)}, "optimizer": optimizer_state()}
    found, said = averaged(capsys, tmp_path, lambda i: {"w": weights(i), **plain})
    assert torch.equal(found["w"], W) and said[0].endswith("still has them): ema")
    reset = "not taken over from the last input, as it belongs to its own weights: an optimizer's state"
    assert said[1:] == [reset, f"{named}args"]
    assert found["optimizer"]["state"] == {} and "ema" not in found


def test_two_tensors_of_one_name_are_refused(tmp_path, capsys):
    torch.save({"net": {"a": {"b": weights(1)}, "a.b": weights(2)}}, tmp_path / "a.pt")
    said = refused(capsys, tmp_path / "a.pt", "--key", "net", "--out", tmp_path / "out")
    assert "two tensors in net are called a.b" in said


def test_what_else_a_folder_of_distributed_checkpoint_has_is_named(tmp_path, capsys):
    for i in (1, 2):
        content = {"model": {"w": weights(i)}, "critic": {"v": weights(i, (3, 3))}, "optim": optimizer_state()}
        dcp.save(content, checkpoint_id=tmp_path / f"dcp_{i}")
    average(tmp_path / "dcp_1", tmp_path / "dcp_2", "--out", tmp_path / "out")
    assert "others): critic\n" in capsys.readouterr().out
    dcp.save({"model": {"w": weights(1), "sub": {"v": weights(1)}}}, checkpoint_id=tmp_path / "dcp_3")
    assert "model.sub has weights, too" in refused(capsys, tmp_path / "dcp_3", "--out", tmp_path / "no")


# What is no tensor


class Activation(enum.Enum):
    GELU = 1


class Settings:
    class Inner:
        def __init__(self, x: int) -> None:
            self.x = x

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Settings.Inner) and other.x == self.x

        def twice(self) -> int:
            return 2 * self.x

        __hash__ = None


class Entries(dict):
    pass


def objects() -> dict:
    """What save_hyperparameters and trainers put into checkpoints (pytorch-lightning #20058, #17356)."""
    return {
        "path": pathlib.PurePosixPath("/data/run"),
        "config": OmegaConf.create({"a": {"b": [1, 2]}, "c": "${a.b}"}),
        "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3),
        "activation": Activation.GELU,
        "inner": Settings.Inner(3),
        "class": Settings.Inner,
        "method": Settings.Inner(4).twice,
        "entries": Entries(a=Settings.Inner(5)),
        "counter": collections.Counter("aab"),
        "lists": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2], 3),
        "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "loss": nn.CrossEntropyLoss(label_smoothing=0.1),
        "device": torch.device("cpu"),
        "error": ValueError("x"),
        "machine": platform.uname(),
        "status": http.HTTPStatus.OK,
        "signal": signal.SIGINT,
        "address": urllib.parse.urlparse("https://example.org/a?b"),
        "alias": list[int],
        "getter": operator.methodcaller("lower"),
    }


def records(path: Path) -> dict[str, bytes]:
    """What a PyTorch file holds, but for what says that it is an average."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(f"/{ABOUT}.json")}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_are_carried_and_are_what_they_were(protocol, tmp_path, capsys):
    for i in (1, 2):
        content = {"state_dict": {"w": weights(i)}, "hyper_parameters": objects()}
        torch.save(content, tmp_path / f"in_{i}.pt", pickle_protocol=protocol)
    average(tmp_path / "in_1.pt", tmp_path / "in_2.pt", "--out", tmp_path / "out")
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("objects")]
    assert "carried along as they are, unread and not run: " in line and " in all)" in line
    found = torch.load(tmp_path / "out" / "in_2.pt", weights_only=False)
    assert torch.equal(found["state_dict"]["w"], W)
    made, original = found["hyper_parameters"], objects()
    assert made["optimizer"].func is torch.optim.AdamW and made["optimizer"].keywords == {"lr": 1e-3}
    assert made["method"]() == 8 and made["loss"].label_smoothing == 0.1 and str(made["error"]) == "x"
    assert made["getter"]("A") == "a"
    for name in original.keys() - {"optimizer", "method", "loss", "error", "getter"}:
        assert made[name] == original[name] and type(made[name]) is type(original[name]), name
    average(tmp_path / "out" / "in_2.pt", "--include-averages", "--out", tmp_path / "again")
    assert records(tmp_path / "again" / "in_2.pt") == records(tmp_path / "out" / "in_2.pt")


def test_objects_in_folders_of_distributed_checkpoint_are_carried(tmp_path, capsys):
    for i in (1, 2):
        content = {"model": {"w": weights(i)}, "extra": {"inner": Settings.Inner(3), "plain": [1, 2]}}
        dcp.save(content, checkpoint_id=tmp_path / f"dcp_{i}")
    average(tmp_path / "dcp_1", tmp_path / "dcp_2", "--out", tmp_path / "out")
    assert "unread and not run: " in capsys.readouterr().out
    found = {"model": {"w": torch.empty(8, 16)}, "extra": {"inner": None, "plain": [0, 0]}}
    dcp.load(found, checkpoint_id=tmp_path / "out")
    assert torch.equal(found["model"]["w"], W) and found["extra"] == {"inner": Settings.Inner(3), "plain": [1, 2]}
    dcp.save({"model": {"w": weights(1)}, "x": Malicious(tmp_path / "was_run")}, checkpoint_id=tmp_path / "bad")
    assert "mkdir, which is not read" in refused(capsys, tmp_path / "bad", "--out", tmp_path / "no")
    assert not (tmp_path / "was_run").exists()


def test_modules_of_others_may_be_called_like_those_that_run_something():
    for module in ("code.models", "profile.models", "commands", "platform", "http.cookies", "requests.structures"):
        assert not is_refused(module, "Net"), module
    refused_names = (
        "os:system os.path:os os:path.os posix:mkdir subprocess:Popen subprocess:Popen.wait importlib.util:find_spec "
        "types:CodeType builtins:eval cProfile:run urllib.request:urlopen sys:modules.get pathlib:os.system"
    )
    for text in refused_names.split():
        assert is_refused(*text.split(":")), text


def test_what_would_run_is_neither_run_nor_carried(tmp_path, capsys):
    torch.save({"state_dict": {"w": weights(1)}, "x": Malicious(tmp_path / "was_run")}, tmp_path / "a.pt")
    assert "mkdir, which is not read" in refused(capsys, tmp_path / "a.pt", "--out", tmp_path / "out")
    assert not (tmp_path / "was_run").exists()


class Packed:
    """As libraries make tensors of their own: from a storage."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[object, ...]:
        return Packed, (self.storage,)


def test_an_object_with_tensors_in_the_state_dict_is_refused(tmp_path, capsys):
    torch.save({"model": {"w": weights(1), "own": Packed(weights(2).untyped_storage())}}, tmp_path / "a.pt")
    said = refused(capsys, tmp_path / "a.pt", "--out", tmp_path / "out")
    assert "own is test_average_contents.Packed, which holds tensors that are not averaged" in said
    torch.save({"model": {"w": weights(1), "layer": nn.Linear(2, 2)}}, tmp_path / "a.pt")
    said = refused(capsys, tmp_path / "a.pt", "--out", tmp_path / "out")
    assert "layer is torch.nn.modules.linear.Linear, which holds tensors that are not averaged" in said


def test_a_whole_module_in_place_of_a_state_dict_is_named(tmp_path, capsys):
    torch.save({"epoch": 1, "model": nn.Linear(2, 2), "ema": None}, tmp_path / "a.pt")  # as ultralytics does
    said = refused(capsys, tmp_path / "a.pt", "--out", tmp_path / "out")
    assert "no state dict found" in said and "model is torch.nn.modules.linear.Linear: save its state_dict()" in said


def test_a_copy_of_the_weights_in_an_object_is_left_out(tmp_path, capsys):
    class Ema:  # as training scripts pickle theirs, with the module in it
        pass

    globals()["Ema"], Ema.__qualname__ = Ema, "Ema"

    def content(i: int) -> dict:
        ema = Ema()
        ema.module, ema.decay = nn.Linear(4, 3), 0.9
        return {"model": nn.Linear(4, 3).state_dict(), "ema": ema, "epoch": i}

    found, said = averaged(capsys, tmp_path, content)
    assert found.keys() == {"model", "epoch"} and any(line.endswith("still has them): ema") for line in said)


# What means something only together


def lora(i: int, a: int, b: int, names: tuple[str, str] = ("lora_A.weight", "lora_B.weight")) -> dict:
    stem = "base_model.model.q_proj"
    return {f"{stem}.{names[0]}": weights(a, (2, 8)), f"{stem}.{names[1]}": weights(b, (8, 2)), "head": weights(i)}


LORA = [
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_down.weight", "lora_up.weight"),
    ("lora_a", "lora_b"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("hada_w1_a", "hada_w1_b"),
    ("lokr_w1", "lokr_w2_a"),
]


@pytest.mark.parametrize("names", LORA, ids=[names[0] for names in LORA])
def test_factors_of_an_adapter(names, tmp_path, capsys):
    """The mean of A and the mean of B is not the mean of BA (huggingface/blog #1816), unless one is constant."""
    inputs = make(tmp_path, lambda i: lora(i, i, i, names), steps=[1, 2])
    said = refused(capsys, *inputs, "--out", tmp_path / "out")
    assert all(name in said for name in names) and "merge_and_unload" in said and "--each-factor" in said
    found, _ = averaged(capsys, tmp_path, lambda i: lora(i, i, i, names), "--each-factor")
    a, b = (mean(weights(1, shape), weights(2, shape)) for shape in ((2, 8), (8, 2)))
    assert torch.equal(found[f"base_model.model.q_proj.{names[0]}"], a)
    found, _ = averaged(capsys, tmp_path, lambda i: lora(i, 7, i, names))  # A is frozen
    assert torch.equal(found[f"base_model.model.q_proj.{names[1]}"], b)


@pytest.mark.parametrize("normed", [weight_norm, parametrizations.weight_norm], ids=["g and v", "original0 and 1"])
@pytest.mark.filterwarnings("ignore")
def test_weight_norm(normed, tmp_path, capsys):
    def content(i: int) -> dict:
        torch.manual_seed(i)
        return normed(nn.Linear(3, 4)).state_dict()

    inputs = make(tmp_path, content, steps=[1, 2])
    said = refused(capsys, *inputs, "--out", tmp_path / "out")
    assert "weight_norm's length and direction of one weight" in said and "--each-factor" in said
    found, _ = averaged(capsys, tmp_path, content, "--each-factor")
    for name, tensor in content(1).items():
        assert torch.equal(found[name], mean(tensor, content(2)[name]))


QUANTISED = {
    "int8 and scale": lambda i: {"l.weight": weights(i).mul(40).to(torch.int8), "l.weight_scale": weights(i, (8,))},
    "zero_point": lambda i: {"l.weight": weights(i).mul(40).to(torch.int8), "l.zero_point": torch.tensor([i])},
    "bitsandbytes": lambda i: {
        "l.weight": weights(i, (64, 1)).mul(40).to(torch.uint8),
        "l.weight.absmax": weights(i, (4,)),
        "l.weight.quant_map": weights(0, (16,)),
    },
    "GPTQ": lambda i: {
        "l.qweight": torch.arange(6, dtype=torch.int32).view(2, 3) * i,
        "l.scales": weights(i, (1, 3)).half(),
    },
    "float8": lambda i: {"l.weight": weights(i).to(torch.float8_e4m3fn), "l.weight_scale_inv": weights(i, (1, 1))},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights(kind, tmp_path, capsys):
    inputs = make(tmp_path, lambda i: {"model": {"w": weights(i), **QUANTISED[kind](i)}}, steps=[1, 2])
    for flags in ([], ["--each-factor"]):
        said = refused(capsys, *inputs, *flags, "--out", tmp_path / "out")
        assert "l." in said and "are the codes of quantised weights" in said, said
    found, _ = averaged(capsys, tmp_path, lambda i: {"model": {"w": weights(i), **QUANTISED[kind](1)}})
    assert torch.equal(found["model"]["w"], W)
    for name, tensor in QUANTISED[kind](1).items():
        assert torch.equal(found["model"][name].double(), tensor.double())


@pytest.mark.parametrize("name", ["hyperprior", "random_net", "stats_head", "loss_metrics_net", "config_net"])
def test_a_network_whose_name_resembles_that_of_a_state_is_one(tmp_path, name):
    """CompressAI's hyperprior next to the encoder: it would be the last file's."""
    for step in (1, 2):
        weights = {"weight": torch.full((4, 4), float(step))}
        torch.save({"encoder": weights, name: weights | {}, "step": step}, tmp_path / f"ckpt_{step}.pt")
    with pytest.raises(UserError, match=rf"several state dicts; choose one with --key: encoder, {name}"):
        read_checkpoint(tmp_path / "ckpt_1.pt")
