"""The A/A test: an average that is the live weights has their loss, on every path and with every optimizer and norm.

Which settings are the identity: lawa, wma and a custom window k=1; ema decay=0; bema ema_power=0, whose EMA is the
latest weights, with a lag at which the correction (lag + t)^-1 is nothing; power_ema a profile so narrow that
(1 - every/t)^(g+1) is 0. swa has none but at its start, where it has observed one step. Files have no custom averager.
"""

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

EXAMPLES = Path(__file__).parents[2] / "examples" / "custom"
BEMA = {"ema_power": "0", "bias_power": "1", "lag": "1e300"}
REPLAYED = {"lawa-k1-s3", "wma-k1-s3", "ema-d0.0-e3", "bema-e3-p0-b1-l1e+300", "power_ema-w0.0001-e3"}
CUSTOM = "custom-geometric_window.Geometric-k1-ratio0.5-spacing3-"  # and a hash of the sources
SWA = "swa-e3-from6"
WORDS = [
    *("dataset=pydocs", "model.context=16", "batch.size=4", "steps=6", "evaluate.every=3", "evaluate.samples=64"),
    *("avg=[lawa,wma,ema,swa,bema,power_ema,custom]", "k=1", "spacing=3", "averagers.ema.decay=0.0"),
    *(f"averagers.{name}.every=3" for name in ("ema", "swa", "bema", "power_ema")),
    *(f"averagers.bema.{name}={value}" for name, value in BEMA.items()),
    *("averagers.swa.start=6", "averagers.power_ema.sigma_rel=1e-4"),
    *("averagers.custom.builder=geometric_window:Geometric", "averagers.custom.args={k: 1, spacing: 3, ratio: 0.5}"),
    *("trajectory.every=3", "save.every=6", "lr.warmup_steps=0", "lr.peak=1e-2", "trainer.threads=1"),
]
FILES = {  # of `average`, which has no custom averagers
    "lawa": ["--k", "1", "--spacing", "3"],
    "wma": ["--k", "1", "--spacing", "3"],
    "ema": ["--decay", "0"],
    "bema": [text for name, value in BEMA.items() for text in (f"--{name}", value)],
    "power_ema": ["--sigma_rel", "1e-4"],
    "swa": ["--start", "6"],
}
GPT = ["model=gpt_tiny", "model.layers=1", "model.width=16", "model.heads=2"]
NORMED = ["model=custom", "model.builder=normed:Normed", "evaluate.bn_samples=40"]
CASES = {
    **{name: [*GPT, f"optimizer={name}"] for name in sorted(OPTIMIZERS) if name != "custom"},
    **{f"bn-{bn}": [*NORMED, f"evaluate.bn={bn}"] for bn in ("recalibrate", "average", "latest")},
    "bn-schedule_free": [*NORMED, "optimizer=schedule_free"],
}
READ = ("adamw", "schedule_free", *(case for case in CASES if case.startswith("bn-")))


def check(rows: list[Row], live: list[Row], ids: set[str]) -> set[str]:
    """Every average has, wherever it was evaluated, exactly the loss of the live weights, of the same statistics.

    ids: all but the custom averager's, which is returned with them.
    """
    of_live = {(r["step"], r["split"]): r for r in live if r["weights"] == "live" and r["split"] != "train"}
    found = set(averager_ids(rows))
    (custom,) = found - ids
    assert ids < found and custom.startswith(CUSTOM)
    for row in (r for r in rows if r["weights"] != "live"):
        same = of_live[row["step"], row["split"]]
        assert (row["loss"], row.get("accuracy")) == (same["loss"], same.get("accuracy")), row
        assert row.get("bn") == same.get("bn")
    return found


@pytest.mark.parametrize("case", CASES)
def test_an_average_that_is_the_live_weights_has_their_loss(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    run, out, files = tmp_path / "run", tmp_path / "read", tmp_path / "files"
    assert compose.main([*CASES[case], *WORDS, f"run_dir={run}"]) == 0, capsys.readouterr().err
    rows = read_rows(run / "metrics.jsonl")
    ids = check(rows, rows, {*REPLAYED, SWA})
    for id in ids - {SWA}:
        assert curve(rows, id) == [point for point in curve(rows, "live") if point[0]]
    tested = read_rows(run / "readouts" / "test" / "metrics.jsonl")
    assert len({r["loss"] for r in tested}) == 1 and {r["weights"] for r in tested} == {"live", *ids}
    if case not in READ:
        return
    capsys.readouterr()
    flags = [*FILES["lawa"], *FILES["ema"], *FILES["bema"], *FILES["power_ema"], "--every", "3", "--out", str(out)]
    assert readout([str(run), "--avg", "lawa,wma,ema,bema,power_ema,custom", *flags]) == 0, capsys.readouterr().err
    found = read_rows(out / "metrics.jsonl")
    check(found, [*rows, *found], REPLAYED)
    said = capsys.readouterr().out
    assert "+0.0000" in said and "significantly" not in said
    snapshot = load_file(run / "trajectory" / "step_00000006" / "model.safetensors")
    for method, settings in FILES.items():
        made = ["--method", method, *settings, "--at", "6", "--out", str(files / method)]
        assert average.main(["--trajectory", str(run), *made]) == 0, capsys.readouterr().err
        mean = load_file(files / method / "model.safetensors")
        assert snapshot.keys() == mean.keys() and all(torch.equal(snapshot[name], mean[name]) for name in mean), method
