"""`python -m lawa_exp.average` along a trajectory: which checkpoints an average takes, and that it says so."""

from __future__ import annotations

import shutil

import pytest
import torch
from averaged_files import (
    assert_same,
    average,
    data_of,
    expected,
    refused,
    safetensors,
    state,
    trajectory,
)
from helpers import run, tiny
from safetensors.torch import load_file


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
        found = tmp_path / "out" / f"step_{end:08d}" / "model.safetensors"
        assert found.read_bytes() == (tmp_path / "one" / "model.safetensors").read_bytes()
        assert data_of(found) == data_of(tmp_path / "listed" / "model.safetensors")
        wanted = expected(steps=steps)
        assert_same(
            load_file(tmp_path / "listed/model.safetensors"), {n: wanted[n].contiguous() for n in sorted(wanted)}
        )
    average("--trajectory", tmp_path / "run", "--weights", "1,3", "--at", 20, "--out", tmp_path / "at")
    wanted = expected((1, 3), [15, 20])
    assert torch.equal(load_file(tmp_path / "at/model.safetensors")["wte.weight"], wanted["wte.weight"])


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
    assert "after input 1 takes 2 checkpoints, and there is 1" in refused(capsys, *files, "--k", 2, "--at", 200, *out)
    for name, path in zip("abc", files, strict=True):
        shutil.copy(path, tmp_path / f"{name}.pt")
    average(*(tmp_path / f"{name}.pt" for name in "abc"), "--at", 2, *out)
    assert "as listed: a.pt, b.pt, each 0.5" in capsys.readouterr().out


def test_what_went_into_each_average_is_said(tmp_path, capsys):
    trajectory(tmp_path / "run", range(5, 55, 5))

    def said(*flags: object) -> list[str]:
        average("--trajectory", tmp_path / "run", *flags, "--out", tmp_path / "out", "--overwrite")
        *lines, copied, note = capsys.readouterr().out.splitlines()[2:]
        assert note.startswith("note: the running statistics are not those of the averaged weights")
        assert copied == (
            "copied from the last input, not averaged: 2 tensors of integers or bools, 1 tensor of BatchNorm's running "
            "statistics"
        )
        return lines

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
    assert capsys.readouterr().out.splitlines()[2:-2] == [line]
    same = [tmp_path / f"run/trajectory/step_{s:08d}/model.safetensors" for s in (5, 10)]
    average(*same, "--out", tmp_path / "same")
    assert capsys.readouterr().out.splitlines()[2:-2] == [f"in step order: {same[0]}, {same[1]}, each 0.5"]


def test_the_same_bytes_as_a_runs_own_averages(tmp_path):
    folder = tmp_path / "run"
    done = run(*tiny(f"run_dir={folder}"), warm=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    average("--trajectory", folder, "--k", 3, "--spacing", 10, "--out", out)
    for made in (folder / "averages" / "lawa-k3-s10").iterdir():
        assert data_of(made / "model.safetensors") == data_of(out / made.name / "model.safetensors")
    average(
        "--trajectory", folder, "--method", "swa", "--every", 10, "--start", 20, "--at", 60, "--out", tmp_path / "swa"
    )
    online = folder / "averages" / "swa-e10-from20" / "step_00000060" / "model.safetensors"
    assert data_of(online) == data_of(tmp_path / "swa" / "model.safetensors")


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
