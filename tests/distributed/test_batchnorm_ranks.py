"""BatchNorm on two ranks (gloo, torchrun): one model on all of them, and what does not depend on their number."""

from pathlib import Path

import pytest
import torch
from helpers import IDS, UPDATE, Strike, assert_same_run, lines_of, rows, run, run_all, states
from normed import NORMED, Normed
from torch.nn import functional as F

from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.launch.compose import compose, read
from lawa_exp.storage.safetensors import read_tensors

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks, each with BatchNorm of its own samples. Not to be changed."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    done = run(*NORMED, f"run_dir={folder}", ranks=2, warm=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_groups_are_the_same_on_any_ranks_and_micro_batches(tmp_path: Path) -> None:
    grouped = [*NORMED, "batch.norm_group=2"]
    alone = {"one": grouped, "micro": [*grouped, "trainer.micro_batch=2"], "ungrouped": NORMED}
    done = [run(*asked, f"run_dir={tmp_path / name}", warm=True) for name, asked in alone.items()]
    done.append(run_all(tmp_path, 2, {"two": grouped})["two"])
    assert [d.returncode for d in done] == [0] * 4, [d.stderr for d in done]
    one = rows(tmp_path / "one")
    for name in ("micro", "two"):
        found = rows(tmp_path / name)
        assert len(found) == len(one) > 60 and found != one, "bit-equal: was it another split at all?"
        for a, b in zip(found, one, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), (name, a, b)
        for step in (5, 60):
            snapshot = f"trajectory/step_{step:08d}/model.safetensors"
            mine, other = (read_tensors(tmp_path / which / snapshot) for which in (name, "one"))
            for tensor in mine:
                torch.testing.assert_close(mine[tensor], other[tensor], rtol=1e-4, atol=1e-5)
            assert mine["norm.num_batches_tracked"] == 4 * step
    apart = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(one, rows(tmp_path / "ungrouped"), strict=True)]
    assert max(apart) > 1e-3, "groups of another size are another training"


def test_every_rank_evaluates_the_same_statistics(plain: Path, tmp_path: Path) -> None:
    """Live losses, half of whose batches rank 1 evaluated, are those of the snapshots on one rank.

    With rank 0's running statistics, and recalibrated on both ranks.
    """
    for bn, loss in (("latest", "loss_running_bn"), ("recalibrate", "loss")):
        flags = ["--k", "1", "--spacing", "20", "--bn", bn, "--out", str(tmp_path / bn)]
        done = run(str(plain), *flags, module="lawa_exp.readout", warm=True)
        assert done.returncode == 0, done.stderr
        read = [r for r in rows(tmp_path / bn) if r["weights"] == "lawa-k1-s20" and r["split"] == "val"]
        live = {r["step"]: r[loss] for r in rows(plain) if r["weights"] == "live" and r["split"] == "val"}
        assert {r["step"]: r["loss"] for r in read} == {step: live[step] for step in (20, 40, 60)}


def test_files_have_the_statistics_that_both_ranks_evaluated(plain: Path) -> None:
    found = {r["weights"]: r["loss"] for r in rows(plain) if r["split"] == "val" and r["step"] == 60}
    ((values, overrides),), _ = compose(list(NORMED))
    config, _ = read(values, overrides)
    data = config.dataset.open(config.model.context)
    inputs, targets = map(torch.from_numpy, data.eval_batch("val", fixed_set(data.sizes["val"], 32)))
    model = Normed().eval()
    for id in IDS:
        model.load_state_dict(read_tensors(plain / f"averages/{id}/step_00000060/model.safetensors"))
        with torch.no_grad():
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten().long())
        assert float(loss) == pytest.approx(found[id], rel=1e-6)


def test_recalibration_is_the_same_bytes_on_one_two_and_four_ranks(plain: Path, tmp_path: Path) -> None:
    flags = ["--avg", "lawa,swa", "--k", "3", "--spacing", "10", "--every", "10"]
    for ranks in (1, 2, 4):
        out = ["--out", str(tmp_path / str(ranks))]
        done = run(str(plain), *flags, *out, module="lawa_exp.readout", ranks=ranks, warm=True)
        assert done.returncode == 0, done.stderr
    ids = ["lawa-k3-s10", "swa-e10"]
    one = lines_of(tmp_path / "1", *ids)
    assert one == lines_of(tmp_path / "2", *ids) == lines_of(tmp_path / "4", *ids) and len(one) > 3
    assert lines_of(tmp_path / "1", ids[0]) == lines_of(plain, ids[0])


def test_killed_on_two_ranks(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    died = run(*NORMED, f"run_dir={folder}", ranks=2, warm=True, strike=Strike(UPDATE, n=38, rank=1))
    assert died.returncode == 1 and states(folder)[-1] == 30, died.stderr
    done = run(*NORMED, f"run_dir={folder}", ranks=2, warm=True)
    assert done.returncode == 0 and "continuing from step 30" in done.stdout, done.stderr
    assert_same_run(folder, plain)
