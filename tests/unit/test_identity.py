"""The A/A test: an average that is the live weights has their loss, on every path and with every optimizer and norm."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lawa_exp import average
from lawa_exp.axes.optimizer import OPTIMIZERS
from lawa_exp.launch import compose
from lawa_exp.readout.__main__ import main as readout
from lawa_exp.results.statistics import curve
from lawa_exp.storage.rows import Row, averager_ids, read_rows

REPLAYED = {"lawa-k1-s3", "wma-k1-s3", "ema-d0.0-e3"}
IDENTITIES = {*REPLAYED, "swa-e3-from6"}
WORDS = [
    *("dataset=pydocs", "model.context=16", "batch.size=4", "steps=6", "evaluate.every=3", "evaluate.samples=64"),
    *("avg=[lawa,wma,ema,swa]", "k=1", "spacing=3", "averagers.ema.decay=0.0", "averagers.ema.every=3"),
    *("averagers.swa.every=3", "averagers.swa.start=6", "trajectory.every=3", "save.every=6", "lr.warmup_steps=0"),
    *("lr.peak=1e-2", "trainer.threads=1"),
]
GPT = ["model=gpt_tiny", "model.layers=1", "model.width=16", "model.heads=2"]
NORMED = ["model=custom", "model.builder=normed:Normed", "evaluate.bn_samples=40"]
CASES = {
    **{name: [*GPT, f"optimizer={name}"] for name in sorted(OPTIMIZERS) if name != "custom"},
    **{f"bn-{bn}": [*NORMED, f"evaluate.bn={bn}"] for bn in ("recalibrate", "average", "latest")},
    "bn-schedule_free": [*NORMED, "optimizer=schedule_free"],
}
READ = ("adamw", "schedule_free", *(case for case in CASES if case.startswith("bn-")))


def check(rows: list[Row], live: list[Row], ids: set[str]) -> None:
    """Every average has, wherever it was evaluated, exactly the loss of the live weights, of the same statistics."""
    of_live = {(r["step"], r["split"]): r for r in live if r["weights"] == "live" and r["split"] != "train"}
    assert set(averager_ids(rows)) == ids
    for row in (r for r in rows if r["weights"] != "live"):
        same = of_live[row["step"], row["split"]]
        assert (row["loss"], row.get("accuracy")) == (same["loss"], same.get("accuracy")), row
        assert row.get("bn") == same.get("bn")


@pytest.mark.parametrize("case", CASES)
def test_an_average_that_is_the_live_weights_has_their_loss(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, files = tmp_path / "run", tmp_path / "read", tmp_path / "files"
    assert compose.main([*CASES[case], *WORDS, f"run_dir={run}"]) == 0, capsys.readouterr().err
    rows = read_rows(run / "metrics.jsonl")
    check(rows, rows, IDENTITIES)
    for id in REPLAYED:
        assert curve(rows, id) == [point for point in curve(rows, "live") if point[0]]
    tested = read_rows(run / "readouts" / "test" / "metrics.jsonl")
    assert len({r["loss"] for r in tested}) == 1 and {r["weights"] for r in tested} == {"live", *IDENTITIES}
    if case not in READ:
        return
    capsys.readouterr()
    flags = ["--avg", "lawa,wma,ema", "--k", "1", "--spacing", "3", "--decay", "0.0", "--every", "3"]
    assert readout([str(run), *flags, "--out", str(out)]) == 0, capsys.readouterr().err
    found = read_rows(out / "metrics.jsonl")
    check(found, [*rows, *found], REPLAYED)
    said = capsys.readouterr().out
    assert "+0.0000" in said and "significantly" not in said
    assert average.main(["--trajectory", str(run), "--k", "1", "--spacing", "3", "--at", "6", "--out", str(files)]) == 0
    snapshot, mean = (
        load_file(next(path.rglob("model.safetensors"))) for path in (run / "trajectory" / "step_00000006", files)
    )
    assert snapshot.keys() == mean.keys() and all(torch.equal(snapshot[name], mean[name]) for name in mean)
