"""The collectives of an update on two ranks (gloo), counted: what is sent, and how often, whatever the accumulation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, run, tiny
from scaled import scaled

pytestmark = pytest.mark.distributed

GPT = tiny("steps=10", "batch.size=8")  # 4 samples of each rank
ACCUMULATED = "trainer.micro_batch=1"
TRAININGS = {
    "fsdp": [*GPT, "trainer=fsdp"],
    "fsdp-accumulated": [*GPT, "trainer=fsdp", ACCUMULATED],
    "ddp": [*GPT, "trainer=ddp"],
    "ddp-accumulated": [*GPT, "trainer=ddp", ACCUMULATED],
    "scaled": [*scaled("trainer.micro_batch=2"), "trainer=ddp"],
    "scaled-fsdp": [*scaled("trainer.micro_batch=2"), "trainer=fsdp"],
    "scaled-recomputed": [*scaled("trainer.micro_batch=2"), "trainer=ddp", "trainer.checkpoint_activations=true"],
}
UPDATES = 6
PARAMETERS = 21_600  # of that GPT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each training on two ranks, and of the GPT on one. Not to be changed."""
    folder = tmp_path_factory.mktemp("collectives")
    for ranks, name, asked in [(2, name, asked) for name, asked in TRAININGS.items()] + [(1, "alone", GPT)]:
        done = run(str(folder / name), str(UPDATES), *asked, module="collectives", ranks=ranks, warm=True)
        assert done.returncode == 0, (name, done.stderr)
    return folder


def facts(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "collectives.json").read_text())


def sizes(folder: Path, name: str, collective: str) -> list[list[int]]:
    """Elements of each call of it, update by update, in ascending order."""
    return [sorted(n for called, n in calls if collective in called) for calls in facts(folder, name)["calls"]]


def test_fsdp_reduces_once_a_step_whatever_the_accumulation(folder: Path) -> None:
    """One reduce_scatter for each unit, of all its gradients; weights are gathered in each pass."""
    once, more = (sizes(folder, name, "reduce_scatter") for name in ("fsdp", "fsdp-accumulated"))
    assert once == more and len(once) == UPDATES and len(once[0]) == 2  # the block, and the rest
    assert 2 * sum(once[0]) == PARAMETERS  # half of it on each rank
    gathers = [len(sizes(folder, name, "allgather")[-1]) for name in ("fsdp", "fsdp-accumulated")]
    assert gathers[1] == 4 * gathers[0] > 0
    for name in ("fsdp", "fsdp-accumulated"):
        norms = len(torch.load(folder / name / "weights.pt"))
        assert sizes(folder, name, "allreduce") == [[1, norms]] * UPDATES, "the loss, and the norm of each gradient"


def test_ddp_reduces_once_a_step_whatever_the_accumulation(folder: Path) -> None:
    for name in ("ddp", "ddp-accumulated"):
        assert sizes(folder, name, "allreduce") == [[1, PARAMETERS]] * UPDATES, "the loss, and all gradients at once"
        assert {called for calls in facts(folder, name)["calls"][1:] for called, _ in calls} == {"allreduce"}


@pytest.mark.parametrize("name", ["fsdp", "fsdp-accumulated", "ddp", "ddp-accumulated"])
def test_weights_are_those_of_one_rank(folder: Path, name: str) -> None:
    ours, alone = (torch.load(folder / which / "weights.pt") for which in (name, "alone"))
    assert ours.keys() == alone.keys() and sum(w.numel() for w in ours.values()) == PARAMETERS
    for parameter in alone:
        torch.testing.assert_close(ours[parameter], alone[parameter], rtol=1e-4, atol=2e-5)
    assert facts(folder, name)["loss"] == pytest.approx(facts(folder, "alone")["loss"], rel=1e-6)
    assert facts(folder, "alone")["calls"] == [[]] * UPDATES


@pytest.mark.parametrize("name", ["scaled", "scaled-fsdp", "scaled-recomputed"])
def test_only_buffers_that_training_changes_are_sent(folder: Path, name: str) -> None:
    """Statistics, 2 x 16 and two counters; `counted`, which moves no version counter; and `late`, 3, once it changes.

    Not the 1,000 of `constant`, and not `cache`, which is replaced.
    """
    sent = sizes(folder, name, "broadcast")
    assert sent == [[2, 33]] * 3 + [[2, 36]] * 3
    same = facts(folder, name)["same"]
    assert all(same.values()) and {"late", "counted", "constant", "blocks.1.scale.size"} <= same.keys()


def test_killed_on_two_ranks_with_statistics_and_other_buffers(tmp_path: Path) -> None:
    """Which buffers are sent is seen again in the first step of the second process."""
    asked = scaled("trainer.micro_batch=2")
    for name in ("run", "undisturbed"):
        strike = Strike(UPDATE, n=14, rank=1) if name == "run" else None
        done = run(*asked, f"run_dir={tmp_path / name}", ranks=2, warm=True, strike=strike)
        assert done.returncode == (1 if strike else 0), done.stderr
    done = run(*asked, f"run_dir={tmp_path / 'run'}", ranks=2, warm=True)
    assert done.returncode == 0, done.stderr  # the state of step 10 may have been on its way
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")
