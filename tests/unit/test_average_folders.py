"""`python -m lawa_exp.average` on safetensors, Hugging Face and DCP, and on whatever lies in a folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path, PosixPath

import pytest
import torch
import torch.distributed.checkpoint as dcp
from averaged_files import (
    INPUTS,
    Malicious,
    assert_same,
    average,
    data_of,
    expected,
    flip,
    make,
    optimizer_state,
    refused,
    safetensors,
    state,
    trajectory,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorProperties
from torch.serialization import _get_layout

from lawa_exp.formats import pickled
from lawa_exp.formats.folders import check_carried
from lawa_exp.storage.safetensors import write_tensors


def test_safetensors_files_and_mixed_kinds(tmp_path):
    average(*safetensors(tmp_path), "--out", tmp_path / "out")
    wanted = expected()
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), {n: wanted[n].contiguous() for n in sorted(wanted)})
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata().keys() == {"format", "lawa_exp"} and file.metadata()["format"] == "pt"
    mixed = [*make(tmp_path, lambda i: {"model": state(i)}, steps=[1, 2]), tmp_path / "s3.safetensors"]
    average(*mixed, "--out", tmp_path / "mixed")
    a, b = (tmp_path / name / "model.safetensors" for name in ("out", "mixed"))
    assert data_of(a) == data_of(b)


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


def sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Two shards and their index."""
    folder.mkdir(parents=True)
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: names[at % 2] for at, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_no_older_weights_stay_where_they_would_be_loaded(tmp_path, capsys):
    """transformers takes model.safetensors before an index, and others all shards that they see."""
    out, two = tmp_path / "out", {"a": torch.ones(2), "b": torch.zeros(3)}
    shards = sharded(tmp_path / "shards", two)
    (tmp_path / "whole").mkdir()
    save_file(two, tmp_path / "whole" / "model.safetensors")
    average(tmp_path / "whole", "--out", out)
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert f"{out / 'model.safetensors'} is there already" in refused(capsys, shards, "--out", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    average(shards, "--out", out, "--overwrite")
    said = capsys.readouterr().out
    assert "removed" in said and str(out / "model.safetensors") in said
    of_shards = {path.name for path in shards.iterdir()}
    assert {path.name for path in out.iterdir()} == of_shards | {"notes.txt"}
    assert f"{out / 'model-00001-of-00002.safetensors'} is there" in refused(capsys, tmp_path / "whole", "--out", out)
    average(tmp_path / "whole", "--out", out, "--overwrite")
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "notes.txt"}
    listed = [tmp_path / "whole" / "model.safetensors", shards, "--out", tmp_path / "whole", "--overwrite"]
    assert f"{listed[0]} is one of the inputs" in refused(capsys, *listed) and listed[0].is_file()
    torch.save(two, tmp_path / "ckpt_5.pt")
    average(tmp_path / "ckpt_5.pt", "--out", out)  # which no library looks for by its name
    assert (out / "model.safetensors").is_file() and (out / "ckpt_5.pt").is_file()


def with_parts(folder: Path, i: int) -> dict[str, dict[str, torch.Tensor]]:
    """A folder as sentence-transformers 6.2 saves it, with what a Trainer adds; the tensors of each of its files."""
    g = torch.Generator().manual_seed(i)
    made = {
        "model.safetensors": {"embeddings.weight": torch.randn(4, 3, generator=g)},
        "2_Dense/model.safetensors": {
            "linear.weight": torch.randn(2, 3, generator=g),
            "running_mean": torch.randn(2, generator=g),
        },
        "3_Dense/model.safetensors": {"linear.weight": torch.randn(2, 2, generator=g)},
    }
    modules = [{"idx": 0, "path": ""}, *({"idx": n, "path": f"{n}_{k}"} for n, k in ((1, "Pooling"), (2, "Dense")))]
    modules.append({"idx": 3, "path": "3_Dense"})
    texts = {
        "modules.json": json.dumps(modules),
        **{f"{part}/config.json": "{}" for part in (".", "1_Pooling", "2_Dense", "3_Dense")},
        "additional_chat_templates/tool.jinja": "{{ tool }}",
        "tokenizer/vocab.txt": "a",
        "modeling/layers.py": "",
        "metrics.py": "",
        "LICENSE": "Apache",
        "NOTICE.md": "",
    }
    not_copied = [
        *("samples/step_5.json", "all_results.json", "train_log.txt", "requirements.txt", "README.md"),
        "checkpoint-5/model.safetensors",
        "pytorch_model.bin",
        "optimizer.pt",
        "runs/events.out",
        ".git/a.json",
    ]
    for name in [*made, *texts, *not_copied]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(texts.get(name, ""))
    for name, tensors in made.items():
        save_file(tensors, folder / name)
    return made


def test_the_parts_of_a_folder_are_averaged_and_its_files_copied(tmp_path, capsys):
    first, second = (with_parts(tmp_path / f"in-{i}", i) for i in (1, 2))
    average(tmp_path / "in-1", tmp_path / "in-2", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "that it is a part of the model: checkpoint-5/, pytorch_model.bin, samples/, all_results.json, " in said
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    texts = [f"{part}config.json" for part in ("", "1_Pooling/", "2_Dense/", "3_Dense/")]
    kept = ["additional_chat_templates/tool.jinja", "tokenizer/vocab.txt", "modeling/layers.py", "LICENSE", "NOTICE.md"]
    assert files == {*first, *texts, *kept, "modules.json", "metrics.py"}
    for name, tensors in first.items():
        latest = second[name]["running_mean"] if "running_mean" in tensors else None
        means = {n: ((t.double() + second[name][n].double()) / 2).float() for n, t in tensors.items()}
        assert_same(load_file(tmp_path / "out" / name), means if latest is None else {**means, "running_mean": latest})
    save_file({"other": torch.ones(1)}, tmp_path / "in-1" / "2_Dense" / "model.safetensors")
    assert "no tensor 2_Dense/linear.weight" in refused(
        capsys, tmp_path / "in-2", tmp_path / "in-1", "--out", tmp_path / "x"
    )


def test_a_second_model_and_a_folder_of_parts_alone(tmp_path):
    """accelerate's model_1.safetensors; diffusers' unet/, in shards."""
    for i in (1, 2):
        folder = tmp_path / f"checkpoint_{i}"
        folder.mkdir()
        for name in ("model", "model_1"):
            save_file({"w": torch.tensor([i, len(name)], dtype=torch.float32)}, folder / f"{name}.safetensors")
        pipeline = tmp_path / f"pipeline_{i}"
        sharded(pipeline / "unet", {"a": torch.full((2,), i / 2), "b": torch.full((3,), i / 4)})
        index = pipeline / "unet" / "model.safetensors.index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_size": 20}}))
        (pipeline / "model_index.json").write_text('{"_class_name": "Pipeline", "unet": ["diffusers", "UNet"]}')
    average(tmp_path / "checkpoint_1", tmp_path / "checkpoint_2", "--out", tmp_path / "two")
    assert load_file(tmp_path / "two" / "model_1.safetensors")["w"].tolist() == [1.5, 7]
    average(tmp_path / "pipeline_1", tmp_path / "pipeline_2", "--dtype", "float64", "--out", tmp_path / "out")
    unet = tmp_path / "out" / "unet"
    index = json.loads((unet / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 40
    assert load_file(unet / index["weight_map"]["b"])["b"].tolist() == [0.375] * 3
    (tmp_path / "runs").mkdir()
    for i in (1, 2):
        (tmp_path / f"pipeline_{i}").rename(tmp_path / "runs" / f"pipeline_{i}")
    average("--trajectory", tmp_path / "runs", "--k", "2", "--dtype", "float64", "--out", tmp_path / "series")
    assert_same_files(tmp_path / "series", tmp_path / "out")


def assert_same_files(first: Path, second: Path) -> None:
    """The same places, and of all but safetensors, which say how they were made, the same bytes."""
    places = [p.relative_to(first) for p in sorted(first.rglob("*")) if p.is_file()]
    assert places == [p.relative_to(second) for p in sorted(second.rglob("*")) if p.is_file()]
    for place in places:
        read = data_of if place.suffix == ".safetensors" else Path.read_bytes
        assert read(first / place) == read(second / place), place


def test_which_links_are_copied(tmp_path, capsys):
    """Those of the hub's cache, at any depth and of another model; none that leads elsewhere."""
    cache = tmp_path / "hub" / "models--me--sentences"
    snapshot = cache / "snapshots" / "0a1b"
    with_parts(snapshot, 1)
    base = tmp_path / "hub" / "models--base" / "snapshots" / "2c"
    base.mkdir(parents=True)
    (base / "tokenizer.json").write_text('{"base": 1}')
    for number, path in enumerate([p for f in (snapshot, base) for p in f.rglob("*") if p.is_file()]):
        model = cache if path.is_relative_to(cache) else base.parents[1]
        (model / "blobs").mkdir(exist_ok=True)
        path.rename(model / "blobs" / str(number))
        path.symlink_to(os.path.relpath(model / "blobs" / str(number), path.parent))
    (snapshot / "tokenizer.json").symlink_to(base / "tokenizer.json")
    average(snapshot, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"base": 1}'
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert (tmp_path / "out" / "2_Dense" / "config.json").read_text() == "{}"
    (tmp_path / "secret.txt").write_text("secret")
    link = snapshot / "1_Pooling" / "vocab.txt"
    link.symlink_to(tmp_path / "secret.txt")
    assert f"{link} is a link that leads out" in refused(capsys, snapshot, "--out", tmp_path / "none")
    check_carried(Path("/etc/passwd"), Path("/etc"))  # one below /


def test_folders_of_distributed_checkpoint(tmp_path, capsys):
    def checkpoint(i: int) -> dict:
        tensors = {n: t for n, t in state(i).items() if n not in ("empty", "lm_head.weight")}
        ema = {f"module.{n}": t + 1 for n, t in tensors.items() if t.is_floating_point()}
        return {"app": {"model": tensors, "optim": optimizer_state(), "ema": ema}, "step": i}

    for i in INPUTS:
        dcp.save(checkpoint(i), checkpoint_id=tmp_path / f"dcp_{i}")
    average(tmp_path / "dcp_*", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "still has them): app.ema\n" in said and "as it belongs to its own weights: an optimizer's state\n" in said
    found = checkpoint(9)
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint state_dict: app\.ema"):
        dcp.load(checkpoint(9), checkpoint_id=tmp_path / "out")
    del found["app"]["ema"]
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


@pytest.mark.parametrize("state", [{"hostile": 1}, (None, {"hostile": 1}), (None, {"__defaults__": (1,)})])
@pytest.mark.parametrize(
    "named", [Metadata, TensorProperties, _MEM_FORMAT_ENCODING, PosixPath, torch.Size, _get_layout, torch.float32]
)
def test_metadata_that_would_change_what_reads_it_is_refused(named, state, tmp_path, capsys):
    """A class or function, BUILD on itself, and before what is read; named alone, it changes nothing."""
    dcp.save({"model": {"w": torch.ones(3)}}, checkpoint_id=tmp_path / "dcp")
    metadata = tmp_path / "dcp" / ".metadata"
    content = metadata.read_bytes()
    module, name = ("torch", str(named)[6:]) if named is torch.float32 else (named.__module__, named.__name__)
    module = "pathlib" if named is PosixPath else module
    name_it = f"c{module}\n{name}\n".encode()
    metadata.write_bytes(b"\x80\2" + name_it + b"0" + content)
    average(tmp_path / "dcp", "--out", tmp_path / "whole")
    before = [dict(vars(named)) if hasattr(named, "__dict__") else {}, getattr(named, "__defaults__", None)]
    metadata.write_bytes(b"\x80\2" + name_it + pickle.dumps(state, 2)[2:-1] + b"b0" + content)
    assert str(tmp_path / "dcp") in refused(capsys, tmp_path / "dcp", "--out", tmp_path / "out")
    assert before == [dict(vars(named)) if before[0] else {}, getattr(named, "__defaults__", None)]
    assert not hasattr(named, "hostile") and not (tmp_path / "out").exists()


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


def lightning_file(path: Path, epoch: int, step: int) -> Path:
    """What Lightning's Trainer saves, as far as steps go; the weights are `state(epoch)`."""
    fields = {"epoch": epoch, "global_step": step, "pytorch-lightning_version": "2.6.6"}
    torch.save({**fields, "state_dict": state(epoch), "loops": {}, "hyper_parameters": {"lr": 0.1}}, path)
    return path


@pytest.mark.parametrize("names", ["epoch", "metric alone", "equal epochs"])
def test_a_metric_in_the_name_is_no_step(names, tmp_path, capsys):
    """Losses that fall, so that their order is not that of time; EMA of files, in which order is all."""
    losses = {1: "0.40", 2: "0.30", 3: "0.20"}
    name = {"epoch": "epoch={}-val_loss={}", "metric alone": "val_loss={1}", "equal epochs": "epoch=7-val_loss={1}"}
    paths = [
        lightning_file(tmp_path / f"{name[names].format(epoch, loss)}.ckpt", epoch, 500 * epoch)
        for epoch, loss in losses.items()
    ]
    shutil.copy(paths[-1], tmp_path / "last.ckpt")  # no number in its name, and the same step: left out
    for order in (paths, paths[::-1]):
        average(*order, "--method", "ema", "--decay", "0.5", "--out", tmp_path / "out")
        said = capsys.readouterr().out
        shares = ", ".join(f"{path.name} ({share})" for path, share in zip(paths, (0.25, 0.25, 0.5), strict=True))
        assert f"in step order: {shares}" in said
    found = torch.load(tmp_path / "out" / paths[-1].name, weights_only=True)["state_dict"]
    assert_same(found, expected((0.25, 0.25, 0.5)))
    steps = [500, 1000, 1500]
    average("--trajectory", tmp_path, "--k", 2, "--out", tmp_path / "windows")
    windows = [f"step_{step:08d}" for step in steps[1:]]
    assert sorted(p.name for p in (tmp_path / "windows").iterdir()) == windows
    average(*paths, "--at", steps[1], "--out", tmp_path / "at")
    assert (tmp_path / "at" / paths[1].name).is_file()


def test_where_no_step_can_be_told_the_listed_order_stays(tmp_path, capsys):
    for loss in ("0.20", "0.40", "0.30"):
        torch.save(state(1), tmp_path / f"val_loss={loss}.pt")
    listed = [tmp_path / f"val_loss={loss}.pt" for loss in ("0.30", "0.20", "0.40")]
    average(*listed, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "as listed: val_loss=0.30.pt, val_loss=0.20.pt, val_loss=0.40.pt" in said
    assert "warning: no step is known of val_loss=0.30.pt" in said and "val_loss=0.40.pt as the latest" in said
    assert "no step is known of val_loss=0.20.pt" in refused(capsys, "--trajectory", tmp_path, "--out", tmp_path / "x")
    for name in ("epoch=2-val_loss=0.20.pt", "epoch=2-val_loss=0.30.pt"):
        torch.save(state(1), tmp_path / name)
    assert "are both of epoch 2;" in refused(capsys, "--trajectory", tmp_path, "--out", tmp_path / "none")


def test_a_setting_before_the_step_leaves_it_the_step(tmp_path, capsys):
    for i, step in enumerate((200, 400, 1000)):
        torch.save(state(i + 1), tmp_path / f"seed1-{step}.pt")
    shell = sorted(tmp_path.glob("seed1-*.pt"))
    average(*shell, "--method", "ema", "--decay", "0.5", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "in step order: seed1-200.pt (0.25), seed1-400.pt (0.25), seed1-1000.pt (0.5)" in said
    assert "warning" not in said


def test_each_file_is_opened_once_for_its_step(tmp_path, monkeypatch):
    paths = [lightning_file(tmp_path / f"val_loss=0.{9 - i}.ckpt", i, 500 * i) for i in (1, 2, 3)]
    opened, read = [], pickled.content_of
    monkeypatch.setattr(pickled, "content_of", lambda path: (opened.append(path), read(path))[1])
    average(tmp_path / "val_loss*.ckpt", "--at", 1000, "--out", tmp_path / "out")
    assert sorted(opened) == sorted(paths)


@pytest.mark.parametrize(("name", "steps"), [("{epoch}-{val_loss:.2f}", [4, 6]), ("{val_loss:.3f}", [4, 6])])
def test_files_that_lightning_wrote(name, steps, tmp_path, capsys):
    """Its own ModelCheckpoint, with a metric in the name, and with nothing else in it. Two updates an epoch."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, number):
            self.log("val_loss", 1 / (1 + self.global_step))
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    saver = lightning.callbacks.ModelCheckpoint(tmp_path / "saved", name, save_top_k=-1, every_n_train_steps=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=3, callbacks=[saver], default_root_dir=tmp_path, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(2, 2), batch_size=1))
    average("--trajectory", tmp_path / "saved", "--k", 2, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert f"after step {steps[-1]}: steps {steps[0]}, {steps[1]}, each 0.5" in said


def test_the_step_is_what_the_name_calls_so_and_a_folder_may_hold_one_file(tmp_path, capsys):
    for i in (1, 2):
        torch.save({"state_dict": state(i)}, tmp_path / f"step={i}-loss=2.3{9 - i}.ckpt")
    (tmp_path / "step_3").mkdir()
    torch.save({"state_dict": state(3)}, tmp_path / "step_3" / "weights.pt")
    average("--trajectory", tmp_path, "--k", 3, "--out", tmp_path / "out")
    assert_same(torch.load(tmp_path / "out" / "weights.pt", weights_only=True)["state_dict"], expected())
    torch.save({"state_dict": state(0)}, tmp_path / "step=0-loss=2.5.ckpt")
    capsys.readouterr()
    average("--trajectory", tmp_path, "--k", 3, "--out", tmp_path / "again")
    assert "note: step=0-loss=2.5.ckpt is of step 0" in capsys.readouterr().out
    (tmp_path / "initial").mkdir()
    torch.save(state(0), tmp_path / "initial" / "ckpt_0.pt")
    assert "only the initial weights" in refused(capsys, "--trajectory", tmp_path / "initial", "--out", tmp_path / "x")


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


def test_what_a_manifest_says_is_checked(tmp_path, capsys):
    folder = trajectory(tmp_path / "run", range(1, 4)) / "trajectory"
    average("--trajectory", folder, "--k", 3, "--out", tmp_path / "out")
    (file,) = (folder / "step_00000002").glob("*.safetensors")
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
