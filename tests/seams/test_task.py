"""A task with a metric of its own, and inputs that are a dict: trained, resumed, on two ranks, and read everywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import UPDATE, Strike, assert_same_run, lines_of, rows, run

from lawa_exp.axes.dataset.loading import to_device, train_batches
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.logger.rows import Steps, columns, final
from lawa_exp.axes.objective.task_loss import TaskLoss
from lawa_exp.dashboard.__main__ import main as dashboard
from lawa_exp.evaluation.hessian import TrainingLoss
from lawa_exp.parallel.model import checkpoint_activations
from lawa_exp.readout.noise import OfAdded, paired
from lawa_exp.reproduce.arms import Arm, Run, measure
from lawa_exp.reproduce.rules import check
from lawa_exp.results.summary import read_run
from lawa_exp.seams.samples import Samples
from lawa_exp.seams.task import Metric
from lawa_exp.storage.metrics import KNOWN, check_metrics, metrics_in, metrics_of, own_metrics, written_metrics
from lawa_exp.storage.rows import name_of
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError
from seams.clicks import BINS, Clicks, ClicksData, Towers

IDS = ("live", "lawa-k3-s10", "ema-d0.9-e1")
TRAINING = [
    "batch.size=64",
    "steps=60",
    "k=3",
    "spacing=10",
    "avg=[lawa,ema]",
    "averagers.ema.decay=0.9",
    "evaluate.every=10",
    "evaluate.samples=all",
    "evaluate.batch_size=64",
    "save.every=15",
    "trajectory.every=5",
    "lr.warmup_steps=5",
    "lr.peak=0.03",
    "trainer.threads=1",
]


def command(name: str, *arguments: object, ranks: int = 1, strike: Strike | None = None, code: int = 0) -> str:
    """What it prints."""
    words = [name, *map(str, arguments)]
    done = run(*words, module="seams.clicks", ranks=ranks, strike=strike, warm=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two seeds, each read out and with a suggestion; `log` is what the sweep printed."""
    root = tmp_path_factory.mktemp("clicks")
    said = command("lawa_exp", "-m", *TRAINING, "seed=0,1", f"runs_root={root}", "sweep=both")
    (root / "log").write_text(said)
    yield root / "sweeps" / "both"


def runs_of(sweep: Path) -> list[Path]:
    entries = json.loads((sweep / "manifest.json").read_text())["entries"]
    return [sweep.parents[1] / Path(entry["run_dir"]).name for entry in entries]


def by_pairs(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """The share of pairs of a click and none that the bins of the scores rank rightly; one bin: half."""
    bins = (scores.sigmoid() * BINS).long()
    clicked, without = bins[targets == 1], bins[targets == 0]
    pairs = clicked[:, None] - without[None, :]
    return float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2)


def test_the_auc_of_added_histograms_is_that_of_all_pairs() -> None:
    task, draw = Clicks(), torch.Generator().manual_seed(0)
    scores, targets = torch.randn(500, generator=draw), torch.randint(2, (500,), generator=draw)
    scores += targets / 2
    targets[::7] = -100  # these do not count
    sums = torch.stack([task.sums(s, t) for s, t in zip(scores.split(90), targets.split(90), strict=True)])
    fields, counts = task.fields(sums.sum(0).numpy()), targets >= 0
    assert fields["auc"] == pytest.approx(by_pairs(scores[counts], targets[counts]), rel=1e-12)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(scores[counts], targets[counts].float())
    assert fields["loss"] == pytest.approx(float(plain), rel=1e-5)
    assert np.isnan(task.fields(task.sums(scores[:2], torch.ones(2, dtype=torch.long)).numpy())["auc"])


def test_the_jackknife_of_a_mean_is_its_closed_form() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (np.stack([draw.normal(2, 1, 40), np.full(40, 50.0)], axis=1) for _ in range(2))
    difference, half = OfAdded(lambda added: added[0] / added[1]).difference(ours, theirs)
    assert (difference, half) == pytest.approx(paired(ours, theirs), rel=1e-9)
    assert np.isnan(OfAdded(lambda added: added[0]).difference(ours[:1], theirs[:1])[1])


def test_its_metrics_are_known_from_the_folder_alone(sweep: Path) -> None:
    first, _ = runs_of(sweep)
    written = yaml.safe_load((first / "config.yaml").read_text())["metrics"]
    assert written["auc"] == {"unit": "of 1", "higher_is_better": True, "digits": 4} and list(written) == [
        "loss",
        "auc",
    ]
    assert metrics_of(first)["auc"].higher_is_better and metrics_of(first)["loss"].unit == "nats per impression"
    assert written_metrics(KNOWN) == {} and metrics_in({}) == KNOWN == metrics_of(first / "nowhere")
    aucs = [r["auc"] for r in rows(first) if r["split"] == "val" and r["weights"] == "live"]
    assert aucs[-1] > aucs[0] + 0.1 and aucs[-1] > 0.7  # it learned


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"auc": Metric("of 1")}, "expected loss first"),
        ({"loss": Metric("nats"), "grad_norm": Metric("1")}, "grad_norm is no name for a metric"),
        ({"loss": Metric("nats"), "decay": Metric("1")}, "decay is no name for a metric"),
        ({"loss": Metric("nats"), "top/5": Metric("1")}, "top/5 is no name for a metric"),
        ({"loss": Metric("nats", higher_is_better=True)}, "of loss lower values are better"),
    ],
)
def test_metrics_that_readers_could_not_tell_are_refused(metrics: dict[str, Metric], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_metrics(metrics, {"decay"})


def test_killed_and_resumed_it_ends_with_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    folder, first = tmp_path / "run", runs_of(sweep)[0]
    arguments = ("lawa_exp", *TRAINING, f"run_dir={folder}")
    command(*arguments, strike=Strike(UPDATE, n=37), code=-9)
    command(*arguments)
    assert_same_run(folder, first)


def test_evaluations_are_equal_on_one_rank_and_on_two(sweep: Path, tmp_path: Path) -> None:
    """Byte for byte, of the same weights; those that two ranks train are equal up to rounding."""
    first = runs_of(sweep)[0]
    flags = ("--avg", "lawa", "--k", "2,3", "--spacing", "5,10")
    for ranks in (1, 2):
        command("lawa_exp.readout", first, *flags, "--out", tmp_path / str(ranks), ranks=ranks)
    assert rows(tmp_path / "1") == rows(tmp_path / "2") and (tmp_path / "1" / "metrics.yaml").is_file()
    for name, more in {"ddp": (), "fsdp": ("trainer.parallel=fsdp", "trainer.checkpoint_activations=true")}.items():
        folder = tmp_path / name
        command("lawa_exp", *TRAINING, f"run_dir={folder}", "trainer.micro_batch=16", *more, ranks=2)
        for ours, theirs in zip(rows(folder), rows(first), strict=True):
            assert ours.keys() == theirs.keys()
            numbers = [name for name in ("loss", "auc") if name in ours]
            assert [ours[n] for n in numbers] == pytest.approx([theirs[n] for n in numbers], rel=2e-3)
        assert lines_of(folder, "live")[0] == lines_of(first, "live")[0]  # step 0: the same weights


def test_log_and_report_show_it(sweep: Path) -> None:
    first = runs_of(sweep)[0]
    last = {r["weights"]: r["auc"] for r in rows(first) if r["step"] == 60 and r["split"] == "val"}
    tested = {r["weights"]: r["auc"] for r in rows(first / "readouts" / "test")}
    log, report = (sweep.parents[1] / "log").read_text(), (first / "report.md").read_text()
    assert f"step      60  val auc: live {last['live']:.4f}  lawa-k3-s10 {last['lawa-k3-s10']:.4f}" in log
    assert f"(auc {tested['live']:.4f})" in log
    assert "## Validation auc" in report and "val auc, step 60" in report and "nats per impression" in report
    table, of_test = report.split("## Validation auc")[1].split("## Test loss")
    assert all(f"{id} " in table and f" {auc:.4f} |" in table for id, auc in last.items())
    assert all(f"{auc:.4f} |" in of_test for auc in tested.values())


def test_a_read_out_has_it_in_table_and_heat_map(sweep: Path) -> None:
    first = runs_of(sweep)[0]
    flags = ("--avg", "lawa", "--k", "2,3", "--spacing", "5,10", "--name", "grid")
    said = command("lawa_exp.readout", first, *flags)
    found = {r["weights"]: r for r in rows(first / "readouts" / "grid") if r["step"] == 60 and r["split"] == "val"}
    live = next(r for r in rows(first) if r["step"] == 60 and r["weights"] == "live" and r["split"] == "val")
    assert "auc, step 60" in said and "; auc " in said
    for row in found.values():
        if row["weights"] != "live":
            assert f"{row['auc']:.4f} | {row['auc'] - live['auc']:+.4f} ±" in said
    plain = (first / "readouts" / "grid" / "heatmap.png").read_bytes()
    width = int.from_bytes(plain[16:20], "big")
    assert width > 2 * 4.5 * 120 * 1.4  # a third column of panels


def test_views_have_it_in_rows_and_table(sweep: Path) -> None:
    first = runs_of(sweep)[0]
    flags = ("--avg", "lawa", "--k", "2", "--spacing", "10", "--view", "int8", "--name", "views")
    said = " ".join(command("lawa_exp.readout", first, *flags).split())
    val = [r for r in rows(first / "readouts" / "views") if r["step"] == 60 and r["split"] == "val"]
    auc = {name_of(r): r["auc"] for r in val}
    average, live = auc["lawa-k2-s10@int8"], auc["live@int8"]
    of_views = said.partition("to live in this view")[2].partition("Views: ")[0]
    assert f"{average:.4f} | {average - live:+.4f} ±" in of_views and f"{live:.4f} | " in of_views
    plain = next(r for r in rows(first) if r["step"] == 60 and r["weights"] == "live" and r["split"] == "val")
    gain = auc["lawa-k2-s10"] - plain["auc"]
    assert f"{auc['lawa-k2-s10']:.4f} | {gain:+.4f} ±" in said.partition("to live in this view")[0]


def test_suggest_chooses_by_it(sweep: Path, tmp_path: Path) -> None:
    first = runs_of(sweep)[0]
    found = json.loads(command("lawa_exp.suggest", first, "--json"))
    of = {r["weights"]: r["auc"] for r in rows(first / "readouts" / "suggest") if r["step"] == 60}
    live = next(r["auc"] for r in rows(first) if r["step"] == 60 and r["weights"] == "live" and r["split"] == "val")
    assert found["by"] == "auc" and found["unit"] == "points of auc"
    assert of | {"live": live} and max(of | {"live": live}, key=(of | {"live": live}).__getitem__) == found["best"]
    assert found["best_gain"] == pytest.approx(100 * (max([*of.values(), live]) - live), abs=1e-9)
    assert found["best"] == "live" or 0 < found["best_half"] < 20
    assert "auc, step 60" in (first / "readouts" / "suggest" / "summary.md").read_text()


def test_summary_and_dashboard_show_it(sweep: Path, tmp_path: Path) -> None:
    said = command("lawa_exp.summary", sweep, "--out", tmp_path)
    aucs = [
        next(r["auc"] for r in rows(folder) if r["step"] == 60 and r["weights"] == "live" and r["split"] == "val")
        for folder in runs_of(sweep)
    ]
    assert "val auc" in said and f"{sum(aucs) / 2:.4f} (sd " in said and "auc (higher is better)" in said
    assert dashboard([str(sweep), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0].replace("\\u003c", "<"))
    assert data["metrics"] == {"auc": {"label": "validation auc", "higher_is_better": True, "digits": 4}}
    assert data["unit"] == "nats per impression"
    place = data["columns"]["runs"].index("val auc, live")
    assert sorted(item["cells"][place][0] for item in data["runs"]) == sorted(aucs)
    for item, auc in zip(data["runs"], aucs, strict=True):
        assert item["curves"]["live"]["auc"][-1] == [60, pytest.approx(auc, rel=1e-5)]
    (group,) = data["groups"]
    assert group["name"] == "all runs"
    of_group = group["cells"][data["columns"]["groups"].index("val auc, live")]
    assert of_group[0] == pytest.approx(sum(aucs) / 2) and "(sd " in of_group[1]
    assert group["curves"]["live"]["auc"][-1][1] == pytest.approx(sum(aucs) / 2, rel=1e-5)


def test_wandb_gets_it(sweep: Path) -> None:
    first = runs_of(sweep)[0]
    sent = dict(Steps(first / "metrics.jsonl", first / "timing.jsonl").new(whole=True))
    found = {r["weights"]: r["auc"] for r in rows(first) if r["step"] == 60 and r["split"] == "val"}
    assert sent[60]["val/live/auc"] == found["live"] and sent[60]["best/lawa/auc"] == found["lawa-k3-s10"]
    metrics, test = metrics_of(first), rows(first / "readouts" / "test")
    lines, summary = final(rows(first), test, metrics)
    assert columns(metrics)[-2:] == ["last auc", "test auc"]
    assert {line[0]: line[-2] for line in lines} == found
    assert {line[0]: line[-1] for line in lines} == {r["weights"]: r["auc"] for r in test}
    assert summary["test/live/auc"] == test[0]["auc"]


def test_the_workspace_has_panels_for_it() -> None:
    pytest.importorskip("wandb_workspaces")
    from lawa_exp.axes.logger.wandb.workspace import workspace

    def names(metrics: dict[str, Metric]) -> list[str]:
        return [section.name for section in workspace("p", None, {**KNOWN, **metrics}).sections]

    own = own_metrics(Clicks.metrics)
    assert [name for name in names(own) if name not in names({})] == ["auc by averager"]


def test_a_rule_of_a_claim_judges_it(sweep: Path) -> None:
    runs = []
    for folder in runs_of(sweep):
        config = RunDir(folder).read_config() or {}
        val, test = read_run(folder, list(IDS[1:]), 60)
        runs.append(Run(folder, 60, config["seed"], {}, val, test, metrics=metrics_in(config)))
    arms = {id: measure(Arm(("all",), {}, id, metric="auc"), {"all": runs}) for id in IDS}
    missing = {id: {run.seed: 1 - row["auc"] for run in runs for row in run.test if row["weights"] == id} for id in IDS}
    assert {id: dict(arm.values) for id, arm in arms.items()} == missing
    named = {"live": arms["live"], "lawa": arms[IDS[1]]}
    found = check("live - lawa > 0", named)
    gains = [missing["live"][seed] - missing[IDS[1]][seed] for seed in (0, 1)]
    assert found.mean == pytest.approx(sum(gains) / 2) and found.n == 2
    with pytest.raises(UserError, match=r"metric: f1: .* has no such metric; expected loss, loss_bits, accuracy, auc"):
        measure(Arm(("all",), {}, metric="f1"), {"all": runs})


def test_inputs_that_are_a_dict_reach_every_pass() -> None:
    """Loader and its noise, curvature, activation checkpointing."""
    data, device = ClicksData(), torch.device("cpu")
    samples = in_epochs(0, 6, data.sizes["train"], seed=0)
    noise = Samples(samples.numbers, samples.indices, noise=True)
    for requested in (samples, noise):
        ((inputs, targets),) = train_batches(data, 0, [requested], device)
        expected = data.noise_batch(0, requested) if requested.noise else data.train_batch(0, requested)
        assert isinstance(inputs, dict) and inputs.keys() == {"user", "item"}
        assert all(np.array_equal(inputs[name].numpy(), of) for name, of in expected[0].items())
        assert np.array_equal(targets.numpy(), expected[1])
    torch.manual_seed(0)
    objective = TaskLoss(Towers(norm=False), data.task)
    indices = np.arange(50)
    inputs, targets, *_ = to_device(data.eval_batch("train", indices), device)
    plain = torch.autograd.grad(objective(inputs, targets)["loss"] / 50, list(objective.parameters()))
    flat = torch.cat([g.reshape(-1) for g in plain])
    torch.testing.assert_close(TrainingLoss(objective, data, Ranks()).gradient(indices), flat)
    checkpoint_activations(objective.model)
    again = torch.autograd.grad(objective(inputs, targets)["loss"] / 50, list(objective.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


def test_statistics_are_recalibrated_with_such_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command("--norm", "lawa_exp", *TRAINING, f"run_dir={folder}", "evaluate.bn_samples=256")
    evaluated = [r for r in rows(folder) if r["split"] == "val"]
    assert {r["bn"] for r in evaluated} == {"recalibrate"} and all(0 < r["auc"] < 1 for r in evaluated)
    assert all(r["loss"] != r["loss_running_bn"] for r in evaluated if r["weights"] == "live" and r["step"])
