"""A training that goes on from another run's kept state, or from weights alone."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, rows, run, states, tiny
from transformers import GPT2Config, GPT2LMHeadModel

from lawa_exp.axes.model.gpt.gpt import GPT
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.convert.weights import load_weights
from lawa_exp.launch.compose import compose, read
from lawa_exp.runs.prepare import check_continues, prepare
from lawa_exp.runs.sweep import stable_runs
from lawa_exp.storage import manifest
from lawa_exp.storage.commit import same_content
from lawa_exp.storage.origin import Origin
from lawa_exp.storage.safetensors import read_tensors
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

WSD = ("lr=wsd", "lr.decay_steps=20")


@pytest.fixture(scope="module")
def stable(tmp_path_factory) -> Path:
    """A run at a constant rate that keeps its state of step 40."""
    folder = tmp_path_factory.mktemp("stable") / "run"
    done = run(*tiny(f"run_dir={folder}", "save.keep=[40]"), warm=True)
    assert done.returncode == 0, done.stderr
    return folder


def branch(folder: Path, source: Path, *overrides: str, strike: Strike | None = None):
    arguments = tiny(f"run_dir={folder}", f"init.from={source}", *overrides)
    return run(*arguments, strike=strike, warm=True)


def by_weights(folder: Path, after: int) -> dict:
    found = rows(folder)
    return {(r["step"], r["split"], r["weights"]): r for r in found if r["step"] > after}


def test_a_cool_down_is_the_whole_training_byte_for_byte(stable, tmp_path):
    done = branch(tmp_path / "branch", stable, "init.step=40", *WSD)
    assert done.returncode == 0, done.stderr
    assert "20 steps are left to train" in done.stdout
    assert run(*tiny(f"run_dir={tmp_path / 'whole'}", *WSD), warm=True).returncode == 0
    mine = by_weights(tmp_path / "branch", 40)
    assert mine == by_weights(tmp_path / "whole", 40)
    assert {key[2] for key in mine} == {"live", "lawa-k3-s10", "ema-d0.9-e1", "swa-e10-from20"}
    for step in (45, 60):
        path = f"trajectory/step_{step:08d}/model.safetensors"
        assert (tmp_path / "branch" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    first = [r for r in rows(tmp_path / "branch") if r["step"] == 40]
    source = [r for r in rows(stable) if r["step"] == 40 and r["split"] == "val"]
    assert first == source  # evaluated where it begins


def test_a_killed_branch_ends_as_its_twin(stable, tmp_path):
    overrides = ("init.step=40", *WSD)
    assert branch(tmp_path / "twin", stable, *overrides).returncode == 0
    for n, newest in ((4, []), (8, [45])):
        assert branch(tmp_path / "run", stable, *overrides, strike=Strike(UPDATE, n=n)).returncode == -9
        assert states(tmp_path / "run") == newest
    assert branch(tmp_path / "run", stable, *overrides).returncode == 0
    assert_same_run(tmp_path / "run", tmp_path / "twin")
    assert not list((tmp_path / "run").glob("metrics.before-*"))  # killed before its first state, it had lost nothing


def test_a_kept_state_is_not_lost_by_a_kill(stable, tmp_path):
    """Whether it comes while that is written, or between the two commits of its step; and a state of the same step that
    was there before is replaced."""
    folder, asked = tmp_path / "run", tiny("save.keep=[40]", f"run_dir={tmp_path / 'run'}")
    kept = folder / "states" / "step_00000040"
    for strike in (
        Strike("pathlib:Path.rename", of="states/.partial-step_00000040"),
        Strike("lawa_exp.training.state:Staged.commit", "after", n=1),  # of this process, which goes on from step 30
    ):
        died = run(*asked, strike=strike)
        assert died.returncode == -9 and states(folder) == [15, 30], died.stdout + died.stderr
    assert same_content(kept, stable / "states" / kept.name)
    assert branch(tmp_path / "branch", folder, "init.step=40", *WSD).returncode == 0
    shutil.rmtree(kept)
    shutil.copytree(folder / "resume" / "step_00000030", kept)
    assert run(*asked, warm=True).returncode == 0
    assert_same_run(folder, stable)
    assert branch(tmp_path / "twin", stable, "init.step=40", *WSD).returncode == 0
    assert_same_run(tmp_path / "branch", tmp_path / "twin")


def test_read_outs_of_a_branch_reach_back_into_its_source(stable, tmp_path):
    done = branch(tmp_path / "branch", stable, "init.step=40", *WSD)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    flags = ("--avg", "lawa,swa", "--k", "3", "--spacing", "10", "--start", "20", "--every", "10", "--out", str(out))
    done = run(str(tmp_path / "branch"), *flags, module="lawa_exp.readout", warm=True)
    assert done.returncode == 0, done.stderr

    def averages(found) -> dict:
        chosen = [
            r for r in found if r["step"] == 60 and r["split"] == "val" and r["weights"].startswith(("lawa", "swa"))
        ]
        return {r["averager"]: r["loss"] for r in chosen}

    assert averages(rows(out)) == averages(rows(tmp_path / "branch"))
    assert len(averages(rows(out))) == 2
    shutil.copytree(stable, tmp_path / "gone")  # and where the source is gone, the branch's own rows are there still
    moved = tmp_path / "moved"
    assert branch(moved, tmp_path / "gone", "init.step=40", *WSD).returncode == 0
    shutil.rmtree(tmp_path / "gone")
    done = run(str(moved), "--avg", "lawa", "--k", "2", "--spacing", "5", module="lawa_exp.readout", warm=True)
    assert done.returncode == 0, done.stderr


def test_weights_after_schedule_free_are_its_averages(tmp_path):
    """Its state holds the weights that it trains, and a snapshot those that it stands for."""
    source = tmp_path / "source"
    settings = ("optimizer=schedule_free", "lr=constant", "lr.peak=0.01")
    made = run(*tiny(f"run_dir={source}", "save.keep=[42]", *settings), warm=True)
    assert made.returncode == 0, made.stderr
    done = branch(tmp_path / "a", source, "init.step=40", "init.optimizer=reset", "steps=1")
    assert done.returncode == 0, done.stderr
    there = {(r["step"], r["split"], r["weights"]): r["loss"] for r in rows(source)}
    assert rows(tmp_path / "a")[0]["loss"] == there[40, "val", "live"]
    done = branch(tmp_path / "b", source, "init.step=42", "init.optimizer=reset", "steps=1")
    assert done.returncode == 2 and "init.step=42: after optimizer=schedule_free the weights are those" in done.stderr


def test_weights_alone_begin_at_step_0(stable, tmp_path):
    """Of a run's step, a snapshot and an average: the first row is theirs."""
    average = stable / "averages/lawa-k3-s10/step_00000060"
    cases = {
        "step": (stable, ("init.step=40", "init.optimizer=reset"), ("live", 40)),
        "snapshot": (stable / "trajectory/step_00000040/model.safetensors", (), ("live", 40)),
        "average": (average, (), ("lawa-k3-s10", 60)),
    }
    known = {(r["weights"], r["step"]): r["loss"] for r in rows(stable) if r["split"] == "val"}
    ids = set()
    for name, (source, overrides, of) in cases.items():
        done = branch(tmp_path / name, source, *overrides, "steps=20", "lr.peak=1e-4")
        assert done.returncode == 0, done.stderr
        first = rows(tmp_path / name)[0]
        assert first["step"] == first["trained_samples"] == 0 and first["loss"] == known[of]
        ids.add((tmp_path / name / "config.yaml").read_text().split("trajectory_id: ")[1].split()[0])
    assert len(ids) == 3


def test_what_cannot_be_gone_on_from_is_said_in_one_line(stable, tmp_path):
    average = stable / "averages/lawa-k3-s10/step_00000060"
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (tmp_path / "nowhere", (), "no such run, file or folder"),
        (empty, (), "neither a run nor a checkpoint"),
        (stable, ("init.step=41",), "has no state of that step (it has: 40, 45, 60)"),
        (stable, ("init.step=40", "steps=40"), "the budget of 40 steps is over by then"),
        (stable, ("init.step=40", "optimizer=sgd"), "init.optimizer=keep: the optimizer is that of the source"),
        (stable, ("init.step=40", "batch.size=8"), "has seen 320 samples, the source's 160"),
        (
            stable,
            ("init.step=40", "init.optimizer=reset", "model.width=64"),
            "with which its weights were trained; give model.width=32",
        ),
        (stable, ("init.step=40", "model.width=64"), "the weights do not fit the model"),
        (stable, ("init.optimizer=twice",), "init.optimizer=twice: expected one of keep, reset"),
        (average, ("init.optimizer=keep",), "has no optimizer's state; choose reset"),
        (average, ("init.step=3",), "these are weights of one step"),
        ("stable", (), "only under -m"),
    ]
    for i, (source, overrides, message) in enumerate(cases):
        done = branch(tmp_path / str(i), source, *overrides)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = run(*tiny(f"run_dir={tmp_path / 'x'}", "init.step=40"), warm=True)
    assert done.returncode == 2 and "init.from is missing" in done.stderr
    damaged = tmp_path / "damaged"
    shutil.copytree(stable, damaged)
    (damaged / "states/step_00000040/optimizer.safetensors").write_bytes(b"")
    done = branch(tmp_path / "d", damaged, "init.step=40")
    assert done.returncode == 2 and "optimizer.safetensors" in done.stderr


def asked(*overrides: str) -> tuple:
    ((values, given),), _ = compose(list(overrides))
    return read(values, given)


def test_a_feedback_of_another_kind_cannot_keep_the_sources_state(tmp_path):
    origin = Origin(tmp_path, 10, True, {})
    cpu, names = torch.device("cpu"), ("none", "lookahead", "switch_ema", "lawa_restart")
    kinds = {name: prepare(*asked(f"feedback={name}"), cpu, Ranks()).config for name in names}
    faster = prepare(*asked("feedback=lookahead", "feedback.every=2"), cpu, Ranks()).config
    for here, there in ((faster, kinds["lookahead"]), (kinds["none"], faster), (kinds["switch_ema"], kinds["none"])):
        check_continues(origin, here, 40, there, 40)
    for here, there in (("switch_ema", "lawa_restart"), ("lookahead", "switch_ema")):
        with pytest.raises(UserError, match=r"init.optimizer=keep: the feedback .* choose reset, none or the same"):
            check_continues(origin, kinds[here], 40, kinds[there], 40)


def test_the_stable_run_of_a_cool_down(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cpu, overrides = torch.device("cpu"), ("lr=wsd", "lr.warmup_steps=0", "init.from=stable", "steps=20")
    ((stable, _, _),) = stable_runs([asked(*overrides)], [list(overrides)], cpu, Ranks())
    assert stable.config.steps == 18 and not stable.run_dir.is_absolute()
    branch = prepare(*asked(*overrides), cpu, Ranks(), stable)
    assert branch.config.init.from_ == str(tmp_path / stable.run_dir)  # wherever it is read out
    with pytest.raises(UserError, match=r"lr.decay_steps=100%: leaves no stable step for init.from=stable"):
        stable_runs([asked(*overrides, "lr.decay_steps=100%")], [[]], cpu, Ranks())


def test_a_sweep_trains_the_stable_run_of_its_cool_downs_once(tmp_path):
    overrides = [o for o in tiny() if not o.startswith(("steps=", "run_dir="))]
    sweep = ["-m", *overrides, "lr=wsd", "lr.decay_steps=20%", "init.from=stable", "steps=25,50"]
    sweep += [f"runs_root={tmp_path}", "sweep=horizons"]
    done = run(*sweep, "plan=true", warm=True)
    assert done.returncode == 0, done.stderr
    assert "stable run of 40 steps, its 2 cool-downs 15: 55 steps in all; trained apart: 75" in done.stdout
    assert not list(tmp_path.rglob("manifest.json"))
    done = run(*sweep, warm=True)
    assert done.returncode == 0, done.stderr
    entries = manifest.read(tmp_path / "sweeps/horizons")["entries"]
    steps = [entry["steps"] for entry in entries]
    folders = [entry["run_dir"] for entry in entries]
    assert steps == [40, 25, 50] and all((f / "DONE").exists() for f in folders)
    assert sorted(p.name for p in (folders[0] / "states").iterdir()) == ["step_00000020", "step_00000040"]
    whole = tmp_path / "whole"
    alone = tiny(f"run_dir={whole}", "lr=wsd", "lr.decay_steps=20%", "steps=25")
    assert run(*alone, warm=True).returncode == 0
    assert by_weights(folders[1], 20) == by_weights(whole, 20)
    again = run(*sweep, warm=True)
    assert again.returncode == 0 and again.stdout.count("this training was done already") == 3
    done = run("-m", *overrides, "init.from=stable", "steps=25", f"runs_root={tmp_path}", warm=True)
    assert done.returncode == 2 and "init.from=stable: expected lr=wsd" in done.stderr


def test_a_hugging_face_gpt2_opens_in_ours(tmp_path):
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, activation_function="gelu")
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT(
        GPTSettings(
            name="x", layers=2, heads=4, width=32, context=16, vocab_size=50, bias=True, dropout=0.0,
            scale_attn_by_inverse_layer_idx=False,
        )
    ).eval()  # fmt: skip
    from lawa_exp.averaging.tensors import live_tensors

    load_weights(ours, live_tensors(ours), tmp_path / "theirs")
    tokens = torch.randint(50, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    read = read_tensors(tmp_path / "theirs" / "model.safetensors")
    assert "transformer.h.0.attn.c_attn.weight" in read  # the names that were taken over
    with pytest.raises(UserError, match=r"init\.from=.*the weights do not fit the model"):
        load_weights(torch.nn.Linear(2, 2), {"weight": torch.ones(2, 2)}, tmp_path / "theirs")
