"""Two ranks train on the same augmented, mixed images as one."""

from pathlib import Path

import pytest
from helpers import rows, run, run_all

pytestmark = pytest.mark.distributed

ASKED = [
    *("model=cct_2", "model.width=32", "model.attention_dropout=0", "model.stochastic_depth=0", "dataset=digits"),
    *("dataset.flip=true", "dataset.crop_padding=1", "dataset.mixup=0.2", "batch.size=12", "steps=20", "avg=ema"),
    *("evaluate.every=10", "evaluate.batch_size=50", "logger.every=1", "lr.warmup_steps=5", "trainer.threads=1"),
]


def test_one_and_two_ranks_see_the_same_images(tmp_path: Path) -> None:
    """In passes of 12 on one rank, of 3 on two: equal to rounding."""
    assert run(*ASKED, f"run_dir={tmp_path / 'one'}", warm=True).returncode == 0
    asked = [*ASKED, "trainer.micro_batch=3"]
    done = run_all(tmp_path, 2, {"two": asked, "sharded": [*asked, "trainer=fsdp"]})
    for name, two in done.items():
        assert two.returncode == 0 and "2 rank(s) x 2 x 3" in two.stdout, two.stdout
        compare(rows(tmp_path / "one"), rows(tmp_path / name))


def compare(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second) == 25
    measured = {"loss", "grad_norm", "accuracy"}
    for a, b in zip(first, second, strict=True):
        assert {k: v for k, v in a.items() if k not in measured} == {k: v for k, v in b.items() if k not in measured}
        for name in ("loss", "grad_norm"):
            assert name not in a or a[name] == pytest.approx(b[name], rel=2e-4), (name, a, b)
        assert "accuracy" not in a or a["accuracy"] == pytest.approx(b["accuracy"], abs=0.01)
