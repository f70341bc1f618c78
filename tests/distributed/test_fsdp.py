"""trainer=fsdp on two and four ranks (gloo) trains what one rank trains, and any of them goes on from any other."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import UPDATE, Strike, contents, markers, rows, run, run_all, states, tiny
from normed import NORMED
from safetensors import safe_open
from safetensors.torch import load_file

from lawa_exp.storage.commit import steps_in, verify

pytestmark = pytest.mark.distributed

# 30 rows are 15 and 15 on two ranks, 8, 8, 8 and 6 on four
ASKED = [
    *tiny("steps=20", "model.width=30", "spacing=5", "averagers.swa.start=10", "save.every=10", "evaluate.every=10"),
    *("evaluate.samples=50", "evaluate.batch_size=8", "logger.every=1"),
]
UNBOUNDED = [o for o in ASKED if not o.startswith("steps=")]
LONGER = [*UNBOUNDED, "steps=30"]
ON_TWO = {
    "fsdp": [*ASKED, "trainer=fsdp"],
    "ddp": [*ASKED, "trainer=ddp"],
    "recomputed": [*ASKED, "trainer=fsdp", "trainer.checkpoint_activations=true"],
    "small-files": [*ASKED, "trainer=fsdp", "trajectory.shard_size=10000"],
    "bfloat16": [*ASKED, "trainer=fsdp", "trainer.dtype=bfloat16"],
    "crossed": [*UNBOUNDED, "trainer=fsdp", "steps=10"],
    "crossed+ddp": [*UNBOUNDED, "trainer=ddp", "steps=20"],
    "crossed+fsdp": [*UNBOUNDED, "trainer=fsdp", "steps=30"],
    "noise": [*ASKED, "trainer=fsdp", "watch=noise_scale"],
    "on-the-fly": [*ASKED, "trainer=fsdp", "optimizer=sgd", "lr=on_the_fly"],
}
OTHERS = {  # how near to one rank
    "fed-back": (["feedback=lookahead", "feedback.every=7", "trajectory.window=disk"], 2e-6),
    "schedule-free": (["optimizer=schedule_free"], 2e-6),
    "sgd": (["optimizer=sgd"], 2e-6),
    "lars": (["optimizer=lars"], 2e-6),
    "lamb": (["optimizer=lamb"], 1e-5),
    "muon": (["optimizer=muon"], 1e-3),  # in bfloat16 inside
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    """A finished run on one rank. None of these runs is to be changed."""
    done = run(*ASKED, f"run_dir={folder / 'one'}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    return run_all(folder, 2, ON_TWO)


def losses(folder: Path) -> list[float]:
    return [r["loss"] for r in rows(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a committed folder, by file and name, whether it has one file or several."""
    verify(folder)
    return {n: t for file in sorted(folder.glob("model*.safetensors")) for n, t in load_file(file).items()}


def test_the_same_training_in_the_same_files(one: Path, folder: Path, two: dict) -> None:
    assert [two[name].returncode for name in ("fsdp", "ddp")] == [0, 0], two["fsdp"].stdout
    assert "2 rank(s) x 1 x 2" in two["fsdp"].stdout and "fsdp: 1/2 of the tensors" in two["fsdp"].stdout
    for name in ("fsdp", "ddp"):
        assert len(losses(folder / name)) == 20 + 1 + 3 + 4
        assert losses(folder / name) == pytest.approx(losses(one), rel=2e-6)
    files = sorted(str(p.relative_to(one)) for p in one.rglob("*.safetensors"))
    assert len(files) > 15
    assert files == sorted(str(p.relative_to(folder / "fsdp")) for p in (folder / "fsdp").rglob("*.safetensors"))
    for file in files:
        theirs, ours = load_file(one / file), load_file(folder / "fsdp" / file)
        assert theirs.keys() == ours.keys(), file
        for tensor in theirs:
            torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=1e-3, atol=1e-4)
    for manifest in (folder / "fsdp").rglob("manifest.json"):  # whose checksums were put together from those of ranks
        verify(manifest.parent)
    first = [(path / "config.yaml").read_text().splitlines()[0] for path in (one, folder / "fsdp", folder / "ddp")]
    assert first[0].startswith("trajectory_id: ") and first == [first[0]] * 3


def test_the_average_of_files_is_the_attached_one(folder: Path, two: dict, tmp_path: Path) -> None:
    for name in ("fsdp", "small-files"):
        flags = ["--trajectory", str(folder / name), "--k", "3", "--spacing", "5", "--at", "20"]
        done = run(*flags, "--out", str(tmp_path / name), module="lawa_exp.average", warm=True)
        assert done.returncode == 0, done.stderr
        attached = weights(folder / name / "averages" / "lawa-k3-s5" / "step_00000020")
        found = {n: t for file in (tmp_path / name).glob("*.safetensors") for n, t in load_file(file).items()}
        assert found.keys() == attached.keys() and all(torch.equal(found[n], attached[n]) for n in found)


def test_small_files_are_those_of_hugging_face(folder: Path, two: dict) -> None:
    """Several files and an index that names them; the same weights, whole tensors in each file."""
    for step, path in steps_in(folder / "small-files" / "trajectory").items():
        files = sorted(p.name for p in path.glob("model-*.safetensors"))
        assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        index = json.loads((path / "model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == files
        found = weights(path)
        assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in found.values())
        for name, file in index["weight_map"].items():
            with safe_open(path / file, "pt") as opened:
                assert name in opened.keys()  # noqa: SIM118
        whole = weights(folder / "fsdp" / "trajectory" / path.name)
        assert found.keys() == whole.keys() and all(torch.equal(found[n], whole[n]) for n in found), step
    assert losses(folder / "small-files") == losses(folder / "fsdp")


def test_recomputed_activations_give_the_same_bytes(folder: Path, two: dict) -> None:
    assert two["recomputed"].returncode == 0 and "activations recomputed" in two["recomputed"].stdout
    assert losses(folder / "recomputed") == losses(folder / "fsdp")


def test_bfloat16_is_gathered_and_computed_with(folder: Path, two: dict) -> None:
    """To its own rounding; what is saved is float32."""
    assert two["bfloat16"].returncode == 0, two["bfloat16"].stdout
    found, exact = losses(folder / "bfloat16"), losses(folder / "fsdp")
    assert found == pytest.approx(exact, rel=3e-3) and found != pytest.approx(exact, rel=1e-6)
    assert {t.dtype for t in weights(folder / "bfloat16" / "resume" / "step_00000020").values()} == {torch.float32}


@pytest.mark.slow
def test_other_optimizers_feedback_and_batch_norm(tmp_path: Path) -> None:
    """Each as on one rank."""
    asked = {name: [*ASKED, *overrides] for name, (overrides, _) in OTHERS.items()}
    asked["normed"] = [*(o for o in NORMED if not o.startswith("steps=")), "batch.norm_group=2", "steps=20", "k=[1,3]"]
    done = run_all(tmp_path / "two", 2, {name: [*overrides, "trainer=fsdp"] for name, overrides in asked.items()})
    for name, overrides in asked.items():
        assert done[name].returncode == 0 and "fsdp: 1/2" in done[name].stdout, done[name].stdout
        alone = run(*overrides, f"run_dir={tmp_path / name}", warm=True)
        assert alone.returncode == 0, alone.stderr
        allowed = OTHERS[name][1] if name in OTHERS else 1e-5
        assert losses(tmp_path / "two" / name) == pytest.approx(losses(tmp_path / name), rel=allowed), name
    at_20 = {r["weights"]: r["loss"] for r in rows(tmp_path / "two/normed") if r["split"] == "val" and r["step"] == 20}
    assert at_20["lawa-k1-s10"] == at_20["live"]
    average = "averages/lawa-k1-s10/step_00000020"  # with the statistics that were evaluated, whole on each rank
    ours, theirs = weights(tmp_path / "two/normed" / average), weights(tmp_path / "normed" / average)
    for tensor in theirs:
        torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=1e-4, atol=1e-5)
    last = weights(tmp_path / "two/normed/trajectory/step_00000020")
    assert not torch.equal(ours["norm.running_var"], last["norm.running_var"])


def test_what_needs_whole_gradients_is_refused(folder: Path, two: dict) -> None:
    for name, key in {"noise": "watch=noise_scale", "on-the-fly": "lr=on_the_fly"}.items():
        assert two[name].returncode == 2
        said = [line for line in two[name].stderr.splitlines() if line.startswith("error: ")]
        assert len(said) == 1 and key in said[0] and "trainer=ddp" in said[0], said


def test_what_two_ranks_saved_goes_on_on_one_and_on_four(one: Path, folder: Path, two: dict, tmp_path: Path) -> None:
    """20 steps as fsdp and as ddp, then 10 more on other ranks, which end as 30 on one rank do."""
    for where, names in {"1": ("fsdp", "one"), "4": ("fsdp", "ddp", "one")}.items():
        for name in names:
            shutil.copytree(folder / name, tmp_path / where / name)
    said = {n: run(*LONGER, f"run_dir={tmp_path / '1' / n}", warm=True).stdout for n in ("one", "fsdp")}
    asked = {name: [*LONGER, "trainer=fsdp"] for name in ("fsdp", "ddp", "one")}
    done = run_all(tmp_path / "4", 4, asked)
    whole = losses(tmp_path / "1" / "one")
    assert len(whole) == 30 + 1 + 3 + 4 + 4 and "continuing from step 20" in said["one"]
    assert losses(tmp_path / "1" / "fsdp") == pytest.approx(whole, rel=5e-6)
    for line in (
        "warning: ranks was 2 and is 1",
        "warning: parallel was fsdp and is single",
        "continuing from step 20",
    ):
        assert line in said["fsdp"]
    for name in asked:
        assert "4 rank(s) x 1 x 1" in done[name].stdout and "continuing from step 20" in done[name].stdout
        assert losses(tmp_path / "4" / name) == pytest.approx(whole, rel=5e-6), name
    assert losses(folder / "crossed") == pytest.approx(whole, rel=5e-6)
    assert "continuing from step 10" in two["crossed+ddp"].stdout and ", ddp" in two["crossed+ddp"].stdout
    assert "continuing from step 20" in two["crossed+fsdp"].stdout


def test_killed_and_stopped_ends_with_the_same_bytes(folder: Path, two: dict, tmp_path: Path) -> None:
    """One rank killed; then one rank alone is asked to stop, and all do; both with two sharded ranks."""
    asked = [*ON_TWO["fsdp"], f"run_dir={tmp_path / 'run'}"]
    died = run(*asked, ranks=2, warm=True, strike=Strike(UPDATE, n=13, rank=1))
    assert died.returncode == 1, died.stderr
    assert states(tmp_path / "run") == [10] and markers(tmp_path / "run") == []
    stopped = run(*asked, ranks=2, warm=True, strike=Strike(UPDATE, n=4, rank=1, signal="SIGUSR1"))
    assert "continuing from step 10" in stopped.stdout and markers(tmp_path / "run") == ["STOPPED"], stopped.stderr
    step = json.loads((tmp_path / "run" / "STOPPED").read_text())["step"]
    assert 14 <= step <= 16 and states(tmp_path / "run") == [10, step]
    done = run_all(tmp_path, 2, {"run": ON_TWO["fsdp"]})["run"]
    assert done.returncode == 0, done.stderr
    assert f"continuing from step {step}" in done.stdout and "warning" not in done.stdout
    ours, theirs = contents(tmp_path / "run"), contents(folder / "fsdp")
    before = (f"resume/step_{step:08d}/", "resume/step_00000010/")  # of the stop, or undisturbed
    assert {f: h for f, h in ours.items() if not f.startswith(before)} == {
        f: h for f, h in theirs.items() if not f.startswith(before)
    }
    assert any(f.startswith("resume/step_00000020/") for f in ours)


WRAPPED = """
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


class Net(nn.Module):
    def __init__(self, vocab_size, wrapped):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, 6)
        blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]
        self.blocks = nn.ModuleList(checkpoint_wrapper(b) if wrapped else b for b in blocks)
        self.head = nn.Linear(6, vocab_size)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)
"""


def test_a_model_with_activation_checkpoints_of_its_own(tmp_path: Path) -> None:
    """Snapshots and averages are those of the same model without them; and it goes on from its states."""
    (tmp_path / "mine.py").write_text(WRAPPED)
    asked = [o for o in UNBOUNDED if not o.startswith("model.")] + ["trainer=fsdp", "model=custom", "model.context=32"]
    for name, wrapped, steps in (("plain", False, 20), ("run", True, 10), ("run", True, 20)):
        built = ["model.builder=mine:Net", f"model.args={{vocab_size: 256, wrapped: {wrapped}}}", f"steps={steps}"]
        done = run(*asked, *built, f"run_dir={tmp_path / name}", ranks=2, warm=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    plain, run_dir = contents(tmp_path / "plain"), contents(tmp_path / "run")
    others = [f for f in plain if f.startswith("averages") and f.endswith(".json")]  # with the trajectory's id in them
    compared = [f for f in plain if f.startswith(("trajectory", "averages", "metrics")) and f not in others]
    assert len(compared) > 10 and [f for f in compared if plain[f] != run_dir.get(f)] == []
