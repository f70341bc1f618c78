"""`python -m lawa_exp.average`: what is refused, in one line, with nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from averaged_files import (
    average,
    flip,
    make,
    refused,
    safetensors,
    state,
    trajectory,
)

from lawa_exp.average import main


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
    assert "average.pth: that is a file's name; expected a folder" in refused(
        capsys, a, "--out", tmp_path / "average.pth"
    )
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
