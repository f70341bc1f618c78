"""What is compared was evaluated alike: no reader pairs rows of other BatchNorm statistics or of a view."""

import copy
import math
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from lawa_exp.averaging import Lawa
from lawa_exp.axes.dataset.tasks import Classes, Tokens
from lawa_exp.results.statistics import curve
from lawa_exp.results.summary import read_groups, summarise, table
from lawa_exp.results.tables import end_table
from lawa_exp.storage import manifest
from lawa_exp.storage.rows import Row, evaluated_alike, policy_of, write_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError


def evaluation(step: int, weights: str, loss: float, bn: str | None, **more: object) -> Row:
    of = {} if weights == "live" else {"averager": weights.split("-")[0]}
    row = {"step": step, "split": "val", "weights": weights, "loss": loss, **({"bn": bn} if bn else {}), **of, **more}
    return cast(Row, row)


@pytest.mark.parametrize("order", [1, -1])
def test_rows_with_other_statistics_or_through_a_view_are_never_paired(order: int) -> None:
    """wjmaddox/swa_gaussian 7: recalibrated averages against live weights that are not recalibrated."""
    rows = [
        evaluation(10, "live", 3.0, "latest"),
        evaluation(10, "lawa-k2-s5", 2.0, "latest"),
        evaluation(20, "live", 2.5, "recalibrate"),
        evaluation(20, "lawa-k2-s5", 1.5, "latest"),  # read out with others than the live weights of that step
        evaluation(20, "ema-d0.9-e1", 2.4, "recalibrate"),
        evaluation(20, "live", 9.0, "recalibrate", view="int8"),
        evaluation(20, "ema-d0.9-e1", 8.0, "recalibrate", view="int8"),
    ][::order]
    assert policy_of(rows) == "recalibrate" and evaluated_alike(rows, "recalibrate")[1] == 20
    assert curve(rows, "live") == [(20, 2.5)] and curve(rows, "ema-d0.9-e1") == [(20, 2.4)]
    assert curve(rows, "lawa-k2-s5") == [] and curve(rows, "ema-d0.9-e1@int8") == [(20, 8.0)]
    assert not re.search(r"1\.5000|2\.0000|3\.0000|8\.0000|9\.0000", end_table(rows))


@pytest.mark.parametrize("order", [1, -1])
def test_one_averager_with_other_statistics_hides_no_others(order: int) -> None:
    averages = ["lawa-k2-s5", "lawa-k3-s5", "swa-e5"]
    rows = [evaluation(step, "live", 3.0, "latest") for step in (10, 20)]
    rows += [evaluation(step, weights, 2.0, "average") for step in (10, 20) for weights in averages]
    rows += [evaluation(step, "ema-d0.9-e1", 1.0, "latest") for step in (10, 20)][::order]
    assert policy_of(rows) == "average" and curve(rows, "lawa-k2-s5") == [(10, 2.0), (20, 2.0)]
    said = "which have evaluate.bn=average: ema-d0.9-e1 (evaluate.bn=latest, up to step 20)"
    assert said in end_table(rows)
    assert end_table(rows[:-2]).count("\n") == 5  # nothing is said where nothing is left out
    changed = [evaluation(30, weights, 2.0, "latest") for weights in ("live", *averages)]
    assert policy_of([*rows, *changed]) == "latest"  # from step 30 on
    two = [
        *(evaluation(step, "lawa-k2-s5", 2.0, "average") for step in (10, 20)),
        evaluation(20, "swa-e5", 1, "latest"),
    ]
    assert policy_of(two[::order]) == "average"


@pytest.mark.parametrize(
    "task, scores, said",
    [
        (
            Tokens(),
            (torch.zeros(2, 3, 5), None),
            "the model returns tuple; expected a tensor .batch, context, vocabulary., or .logits with one",
        ),
        (Tokens(), torch.zeros(2, 5), r"a tensor \[2, 5\] for targets \[2, 3\]; expected .batch, context, vocabulary"),
        (Classes(), torch.zeros(4, 5), r"a tensor \[4, 5\] for targets \[2, 3\]; expected .batch, classes"),
        (Classes(), torch.tensor(0.0), r"a tensor \[\] for targets"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(task: Any, scores: Any, said: str) -> None:
    targets = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(UserError, match=said) as refusal:
        task.loss(scores, targets)
    assert "\n" not in str(refusal.value)
    assert task.loss(torch.zeros(2, 3, 5), targets).item() == pytest.approx(6 * math.log(5))


def test_running_statistics_of_live_weights_go_with_averaged_ones() -> None:
    rows = [evaluation(10, "live", 3.0, "latest"), evaluation(10, "lawa-k2-s5", 2.0, "average")]
    assert curve(rows, "live") == [(10, 3.0)] and curve(rows, "lawa-k2-s5") == [(10, 2.0)]
    assert curve([evaluation(10, "live", 3.0, None)], "live") == [(10, 3.0)]


def test_what_is_kept_in_ones_own_loop_is_what_was_evaluated() -> None:
    """mosaicml/composer 624: an average with the statistics of other weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    lawa = Lawa(model, k=2, spacing=1)
    for step in (1, 2):
        model(torch.randn(16, 4) * step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        lawa.update(step)
    batches, inputs = [torch.randn(16, 4) for _ in range(3)], torch.randn(5, 4)
    live = copy.deepcopy(model.state_dict())
    with lawa.applied():
        torch.optim.swa_utils.update_bn(batches, model)
        evaluated, kept = model.eval()(inputs), lawa.full_average()
        assert kept is not None
        model.train()
    assert all(torch.equal(live[name], tensor) for name, tensor in model.state_dict().items())
    outside = lawa.full_average()
    assert outside is not None and torch.equal(outside["1.running_mean"], live["1.running_mean"])
    assert torch.equal(outside["0.weight"], kept["0.weight"])
    other = copy.deepcopy(model).eval()
    other.load_state_dict(kept)
    assert torch.equal(other(inputs), evaluated)


def test_a_summary_says_whose_rows_are_left_out(tmp_path: Path) -> None:
    run, sweep, ids = RunDir(tmp_path / "run"), tmp_path / "sweep", ["lawa-k2-s5", "swa-e5", "ema-d0.9-e1"]
    rows = [evaluation(20, id, 2.0, bn) for id, bn in zip(ids, ("average", "average", "latest"), strict=True)]
    write_rows(run.metrics, [evaluation(20, "live", 3.0, "latest"), *rows])
    run.mark("DONE", step=20)
    sweep.mkdir()
    entry = {"overrides": [], "run_dir": str(run.path), "steps": 20, "averages": ids}
    manifest.write(sweep, {"command": "", "entries": [entry]})
    assert "ema-d0.9-e1 (evaluate.bn=latest, up to step 20)" in summarise(sweep, tmp_path / "out")


def test_seeds_that_were_evaluated_otherwise_are_tables_of_their_own(tmp_path: Path) -> None:
    entries: list[Any] = []
    for seed, (bn, loss) in enumerate((("recalibrate", 1.0), ("latest", 3.0), ("recalibrate", 2.0))):
        run = RunDir(tmp_path / f"run{seed}")
        rows = [evaluation(10, "live", loss, bn), evaluation(10, "lawa-k2-s5", loss - 0.5, bn)]
        rows += [evaluation(10, "lawa-k2-s5", 99.0, bn, view="int8")]
        write_rows(run.metrics, rows)
        run.mark("DONE", step=10)
        entries.append({"overrides": [f"seed={seed}"], "run_dir": run.path, "steps": 10, "averages": ["lawa-k2-s5"]})
    groups, unfinished = read_groups(entries)
    assert unfinished == [] and {g.name: g.final("live") for g in groups} == {
        "all entries (evaluate.bn=recalibrate)": [1.0, 2.0],
        "all entries (evaluate.bn=latest)": [3.0],
    }
    assert "99.0" not in table(groups[0]) and "-0.5000" in table(groups[0])
