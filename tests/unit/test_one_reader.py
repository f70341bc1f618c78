"""One reader for all commands: what `average` opens, `readout`, `export` and `init.from` open, with equal weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from averaged_files import average
from helpers import rows
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import checkpoint as dcp

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.axes.model.gpt.gpt import GPT, not_weights
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.config.shared import Init
from lawa_exp.convert.hugging_face import to_hugging_face
from lawa_exp.convert.weights import load_weights
from lawa_exp.export import of_checkpoint
from lawa_exp.readout.__main__ import main as readout
from lawa_exp.readout.checkpoints import Fitted
from lawa_exp.storage.origin import find_origin
from lawa_exp.storage.safetensors import write_tensors
from lawa_exp.system.errors import UserError

SETTINGS = GPTSettings(
    name="x", layers=2, heads=4, width=32, context=16, vocab_size=50, bias=True, dropout=0.0,
    scale_attn_by_inverse_layer_idx=False,
)  # fmt: skip


ARGUMENTS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "bias": True, "vocab_size": 50, "dropout": 0.0}


def network(seed: int = 0, settings: GPTSettings = SETTINGS) -> GPT:
    torch.manual_seed(seed)
    model = settings.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def nanogpt(weights: dict[str, Tensor], prefix: str = "") -> dict:
    tensors = {prefix + name: tensor for name, tensor in weights.items()}
    tensors[f"{prefix}lm_head.weight"] = weights["transformer.wte.weight"]
    return {"model": tensors, "model_args": ARGUMENTS, "iter_num": 7, "optimizer": {}}


def hugging_face(
    weights: dict[str, Tensor], path: Path, sharded: bool = False, settings: GPTSettings = SETTINGS
) -> None:
    path.mkdir()
    tensors, config = to_hugging_face(weights, settings)
    (path / "config.json").write_text(json.dumps(config))
    if not sharded:
        save_file(tensors, path / "model.safetensors")
        return
    names = sorted(tensors)
    files = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for file, part in files.items():
        torch.save({n: tensors[n] for n in part}, path / file)
    where = {n: file for file, part in files.items() for n in part}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


Write = Callable[[dict[str, Tensor], Path], None]
KINDS: dict[str, Write] = {  # and the name of the file or folder
    "w.safetensors": lambda w, path: write_tensors(path, w),
    "plain.bin": torch.save,
    "nanogpt.pt": lambda w, path: torch.save(nanogpt(w), path),
    "compiled.pth": lambda w, path: torch.save(nanogpt(w, "_orig_mod."), path),
    "ddp.pt": lambda w, path: torch.save({"net": {f"module.{n}": t for n, t in w.items()}, "epoch": 1}, path),
    "lightning.ckpt": lambda w, path: torch.save(
        {"state_dict": {f"model.net.{n}": t for n, t in w.items()}, "hyper_parameters": {"path": Path("x")}}, path
    ),
    "folder": lambda w, path: (path.mkdir(), write_tensors(path / "model.safetensors", w)),
    "huggingface": hugging_face,
    "sharded": lambda w, path: hugging_face(w, path, sharded=True),
    "dcp": lambda w, path: dcp.save({"app": {"model": w}}, checkpoint_id=path),
}


@pytest.mark.parametrize("averaged", [False, True], ids=["as it is", "averaged"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_command_opens_it(name: str, averaged: bool, tmp_path: Path) -> None:
    model = network()
    weights = live_tensors(model)
    path = tmp_path / name
    KINDS[name](weights, path)
    if averaged:
        average(path, "--out", tmp_path / "out")
        path = tmp_path / "out" if path.is_dir() else next((tmp_path / "out").iterdir())
    other = network(1)
    load_weights(other, live_tensors(other), path)  # init.from, teacher.from
    tokens = torch.arange(16)[None]
    assert torch.equal(other(tokens), model(tokens))
    assert find_origin(Init(str(path), None, None)).identity["weights"]
    fitted = Fitted(live_tensors(other), [*other.state_dict()], "x", asdict(SETTINGS), not_weights(2))  # readout
    assert all(torch.equal(t, weights[n]) for n, t in fitted(path).items())
    source = None
    if "huggingface" in name or "sharded" in name or "nanogpt" in name or "compiled" in name:
        source = of_checkpoint(path)  # export: those that say what model they are of
        assert source.model.heads == 4 and source.tensors.keys() == weights.keys()
        assert all(torch.equal(t, weights[n]) for n, t in source.tensors.items())


def test_what_contradicts_the_model_is_refused_and_a_scale_made_up_for(tmp_path: Path) -> None:
    model = network()
    torch.save(nanogpt(live_tensors(model)), tmp_path / "a.pt")
    hugging_face(live_tensors(model), tmp_path / "b")
    values = asdict(SETTINGS)
    for path in (tmp_path / "a.pt", tmp_path / "b"):
        other = GPTSettings(**{**values, "heads": 2}).build()
        with pytest.raises(
            UserError, match=r"init\.from=.*it was trained with 4 heads, the model has 2; choose model\.heads=4"
        ):
            load_weights(other, live_tensors(other), path)
        scaled = GPTSettings(**{**values, "scale_attn_by_inverse_layer_idx": True}).build().eval()
        load_weights(scaled, live_tensors(scaled), path)
        tokens = torch.arange(16)[None]
        torch.testing.assert_close(scaled(tokens), model(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nanoGPT's", "fairseq's"])
def test_a_flipped_byte_in_a_pytorch_file_is_named(kind: str, tmp_path: Path) -> None:
    """The zip has a checksum of each tensor, at which torch.load does not look."""
    path = tmp_path / "ckpt.pt"
    weights = live_tensors(network())
    content = nanogpt(weights) if kind == "nanoGPT's" else {"model": weights, "args": argparse.Namespace()}
    torch.save(content, path)
    whole = path.read_bytes()
    tensor = weights["transformer.h.0.mlp.c_fc.weight"]
    at = whole.index(tensor.numpy().tobytes())
    path.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 1]) + whole[at + 6 :])
    with pytest.raises(UserError, match=r"ckpt\.pt is damaged: .*does not have its checksum"):
        of_checkpoint(path)


def test_what_is_no_checkpoint_to_begin_from_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("a.txt", "empty"):
        with pytest.raises(UserError, match=rf"init\.from=.*{name}: neither a run nor a checkpoint"):
            find_origin(Init(str(tmp_path / name), None, None))


def test_a_read_out_is_the_same_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """nanoGPT's files, transformers' GPT-2 folders (F34), and a state dict that only --key names."""
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, vocab_size=256)
    for i in (1, 2):
        weights = live_tensors(network(i, settings))
        for kind in ("nanogpt", "huggingface", "keyed"):
            (tmp_path / kind).mkdir(exist_ok=True)
        torch.save(
            nanogpt(weights) | {"model_args": ARGUMENTS | {"vocab_size": 256}}, tmp_path / f"nanogpt/ckpt_{i}.pt"
        )
        hugging_face(weights, tmp_path / f"huggingface/checkpoint-{i}", settings=settings)
        nets = {"gen": {f"net.{n}": t for n, t in weights.items()}, "critic": {"w": torch.ones(3)}}
        torch.save({"nets": nets}, tmp_path / f"keyed/step_{i}.pt")
    shape = [
        f"model.{name}={getattr(settings, name)}" for name in ("layers", "heads", "width", "context", "vocab_size")
    ]
    plain = ["model.bias=true", "model.scale_attn_by_inverse_layer_idx=false", "trainer.threads=1"]
    small = ["--k", "2", "--model", "gpt_tiny", "--dataset", "pydocs", "evaluate.samples=4", *plain]
    losses = {}
    for kind, flags in {"nanogpt": [], "huggingface": [], "keyed": ["--key", "nets.gen", *shape]}.items():
        assert readout([kind, *small, *flags, "--out", f"out_{kind}"]) == 0, capsys.readouterr().err
        losses[kind] = [row["loss"] for row in rows(tmp_path / f"out_{kind}") if row["split"] == "val"]
    assert len(losses["nanogpt"]) == 3 and losses["nanogpt"] == losses["keyed"] == losses["huggingface"]
    capsys.readouterr()
    assert readout(["keyed", *small, *shape, "--out", "no"]) == 2
    assert "choose one with --key: nets.gen, nets.critic" in capsys.readouterr().err
