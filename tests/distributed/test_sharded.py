"""Averages of DDP and FSDP2 models on two and three ranks (gloo): sharded_worker.py checks, one launch for each."""

from pathlib import Path

import pytest
import sharded_worker
import torch
from helpers import Done, run
from pages import example

pytestmark = pytest.mark.distributed

CHECKS = [
    "averages_are_the_unsharded_ones",
    "ddp",
    "recalibrate",
    "no_communication",
    "evaluation",
    "export",
    "refuse_flattened_parameters",
    "wrapped",
    "save",
    "resume_on_the_same_ranks",
    "resume_on_any_ranks",
]
AFTER_TWO = "refuse_a_file_of_other_ranks"


def launch(ranks: int, folder: Path, *checks: str) -> Done:
    return run(str(folder), *checks, module="sharded_worker", ranks=ranks, warm=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def two(folder: Path) -> Done:
    return launch(2, folder, *CHECKS)


@pytest.fixture(scope="module")
def three(folder: Path, two: object) -> Done:
    """After `two`: it also loads what two ranks saved."""
    return launch(3, folder, *CHECKS, AFTER_TWO)


@pytest.mark.parametrize("check", CHECKS)
def test_two_ranks(check: str, two: Done) -> None:
    assert f"ok {check}\n" in two.stdout, two.stderr


@pytest.mark.parametrize("check", [*CHECKS, AFTER_TWO])
def test_three_ranks(check: str, three: Done) -> None:
    assert f"ok {check}\n" in three.stdout, three.stderr


def test_one_process_goes_on_from_what_two_and_three_ranks_saved(folder: Path, two: object, three: object) -> None:
    assert len(list(folder.glob("*ranks-*"))) == 4
    sharded_worker.check_resume_on_any_ranks(folder)


def test_the_page_on_loops(tmp_path: Path) -> None:
    """Stopped after 20 steps and started again it ends with the bytes of 40 steps."""
    code = example("loops.md", "fully_shard(model)")
    assert code.count("first + 21") == 1
    averages = []
    for folder, parts in (("stopped", [code, code]), ("whole", [code.replace("first + 21", "first + 41")])):
        place = tmp_path / folder
        place.mkdir()
        for part in parts:
            (place / "train.py").write_text(part)
            done = run("train", module="runpy", ranks=2, warm=True, cwd=place)
            assert done.returncode == 0, done.stderr
        averages.append(torch.load(place / "average.pt", weights_only=True))
    assert [p.name for p in sorted(place.glob("checkpoint-*"))] == ["checkpoint-000040"]
    assert averages[0].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(torch.equal(averages[1][name], tensor) for name, tensor in averages[0].items())
