"""What plans say of memory, against the tensors of real trainings; and of the models of the papers."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny

from lawa_exp.axes.model.outline import outline
from lawa_exp.launch.compose import compose, main, read
from lawa_exp.reproduce.book import PAPERS
from lawa_exp.reproduce.configurations import FACTS
from lawa_exp.runs.cost import evaluated_samples, tensors_and_cost
from lawa_exp.runs.memory import Memory, drop_content, memory_lines, memory_of, size
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.storage.store import Store
from lawa_exp.system.distributed import Ranks

STEPS = (
    "steps=6",
    "k=2",
    "spacing=2",
    "evaluate.every=3",
    "save.every=6",
    "trajectory.every=2",
)
NORMED = ("model=resnet20", "model.layers=8", "dataset=digits", "batch.size=8", "evaluate.bn_samples=16", "lr=constant")
ALL = "avg=[lawa,wma,ema,power_ema,swa,bema]"


def prepared(*overrides: str, world: int = 1) -> Prepared:
    ((values, given),), _ = compose(list(overrides))
    return prepare(*read(values, given), torch.device("cpu"), Ranks(0, world, 0, world))


def planned_memory(p: Prepared, world: int = 1) -> Memory:
    return memory_of(p.planned(world), outline(p.config), p.opened)


def carried(state: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of what a committed state holds."""
    for name in ("model", *json.loads((state / "state.json").read_text())["carried"]):
        if any(state.glob(f"{name}.safetensors*")):
            yield name, size(Store().read(state, name).values())


@pytest.mark.parametrize(
    "choices",
    [
        ["optimizer=adamw", ALL, "averagers.bema.every=1"],
        ["optimizer=sgd", "optimizer.momentum=0.9", "avg=[lawa,wma]"],
        ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "avg=none"],
        ["optimizer=lamb", "feedback=lawa_restart", "feedback.k=2", "feedback.spacing=3", "feedback.every=6"],
        ["optimizer=lars", "feedback=lookahead", "avg=ema"],
        ["optimizer=muon", "avg=[lawa,ema]"],
        ["optimizer=schedule_free", "avg=swa"],
        [*NORMED, ALL, "averagers.bema.every=1"],
    ],
    ids=lambda choices: choices[0].partition("=")[2] + ("" if len(choices) < 4 else f"-{choices[2]}"),
)
def test_it_is_that_of_the_tensors_of_a_training(choices: list[str], tmp_path: Path) -> None:
    """Byte for byte what its last state holds, whose window is full and whose averages are all begun."""
    if "optimizer=schedule_free" in choices:
        pytest.importorskip("schedulefree")
    shape = [] if choices[0] in NORMED else [o for o in tiny() if o.startswith(("dataset=", "model.", "batch."))]
    asked = [*shape, *STEPS, "evaluate.samples=8", "lr.warmup_steps=0", "trainer.threads=1", *choices]
    p = prepared(*asked)
    m = planned_memory(p)
    assert main([*asked, f"run_dir={tmp_path / 'run'}"]) == 0
    held = dict(carried(tmp_path / "run/resume/step_00000006"))
    model = p.config.model.build()
    assert m.weights == size((*model.parameters(), *model.buffers()))
    assert m.gradients == size(model.parameters())
    assert m.optimizer == held.get("optimizer", 0)
    of_windows = {name: n for name, n in held.items() if name in ("window", "feedback")}
    averages = sum(n for name, n in held.items() if name.startswith("averagers/"))
    snapshots = 2 if "feedback=lawa_restart" in choices else 0
    averages += of_windows.get("feedback", 0) - snapshots * held["model"]
    assert (m.averages, m.window) == (averages, of_windows.get("window", 0) + snapshots * held["model"])
    assert m.staged == sum(n for name, n in held.items() if name != "window")


@pytest.mark.parametrize("more", [["avg=[lawa,swa]"], ["avg=none"], [*NORMED, "avg=[lawa,ema]"]], ids=str)
def test_the_evaluations_of_a_plan_are_those_of_the_run(more: list[str], tmp_path: Path) -> None:
    shape = [] if "dataset=digits" in more else [o for o in tiny() if o.startswith(("dataset=", "model.", "batch."))]
    asked = [
        *shape,
        *STEPS,
        "evaluate.every=4",
        "evaluate.samples=8",
        "evaluate.batch_size=8",
        "lr.warmup_steps=0",
        *more,
    ]
    p = prepared(*asked, "trainer.threads=1")
    assert main([*asked, "trainer.threads=1", f"run_dir={tmp_path / 'run'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rows += [json.loads(line) for line in (tmp_path / "run/readouts/test/metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if row["split"] != "train"]
    recalibrated = [row for row in evaluated if row.get("bn") == "recalibrate"]
    live = [row for row in recalibrated if row["weights"] == "live"]  # also with the statistics of training
    bn = "recalibrate" if recalibrated else None
    expected = 8 * (len(evaluated) + len(live)) + 16 * len(recalibrated)
    assert evaluated_samples(p.config, p.data, 0, bn) == expected
    cost = tensors_and_cost(p)[1]
    assert cost.evaluation_share == pytest.approx(expected / 3 / (expected / 3 + cost.samples))


def test_a_rank_of_a_sharded_model_has_its_rows_alone() -> None:
    shape = ["model.layers=1", "model.width=24", "model.heads=2", "batch.size=15", "avg=[lawa,ema]", "k=2", "spacing=2"]
    p = prepared(*shape, "steps=6", "trainer=fsdp", world=5)
    m = planned_memory(p, world=5)
    parameters = {id(w): w for w in outline(p.config).parameters()}.values()
    rows = sum(len(torch.arange(len(w)).chunk(5)[0]) * w[0].numel() for w in parameters)
    whole = sum(w.numel() for w in parameters)
    assert whole < 5 * rows < 1.2 * whole
    assert (m.gradients, m.averages, m.snapshots) == (4 * rows, 4 * rows, 2)
    assert m.optimizer == 8 * rows + 4 * len(parameters)
    accumulated = prepared(*shape, "steps=6", "trainer=fsdp", "trainer.micro_batch=1", world=5)
    assert planned_memory(accumulated, world=5).gradients == 4 * rows + 4 * whole


def test_tied_tensors_stay_tied_without_content() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6))
    model[1].weight = model[0].weight
    drop_content(model, 4)
    assert model[1].weight is model[0].weight and model[0].weight.shape == (2, 4)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_an_optimizer_that_needs_content_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    from lawa_exp.axes.optimizer.adamw import AdamW

    p = prepared("steps=6")
    monkeypatch.setattr(AdamW, "build", lambda self, model: torch.optim.AdamW(model.parameters(), fused=True))
    m = planned_memory(p)
    assert m.optimizer is None and "optimizer unknown" in next(memory_lines(m, p.planned(1)))


@pytest.mark.parametrize(
    "model, more, ranks, lines",
    [
        (
            "gpt2_medium",
            ["avg=lawa"],
            8,
            [
                "weights 1.42 GB, gradients 1.42 GB, optimizer 2.84 GB: 5.67 GB; in evaluations 1.42 GB more",
                "5 snapshots 7.09 GB, a complete state while it is written 4.26 GB",
            ],
        ),
        (
            "pythia_12b",
            ["trainer=fsdp"],
            256,
            ["weights 185 MB, gradients 185 MB, optimizer 370 MB", "layers that are gathered from all ranks"],
        ),
        ("resnet50", [], 4, ["weights 102 MB, gradients 102 MB, optimizer 102 MB"]),
        ("roberta_base", [], 8, ["weights 499 MB, gradients 499 MB, optimizer 998 MB"]),
    ],
)
def test_a_papers_training_is_planned_on_many_ranks_without_its_data(
    model: str, more: list[str], ranks: int, lines: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWA_DATA", raising=False)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    assert main([f"model={model}", *more, "plan=true"]) == 0
    printed = capsys.readouterr().out
    assert f"{ranks} rank(s)" in printed and re.search(r"evaluations take about [\d.]+% of the FLOPs", printed)
    for line in lines:
        assert line in printed


@pytest.mark.parametrize("paper", PAPERS)
def test_every_set_up_of_a_paper_says_its_memory(paper: str, tmp_path: Path, monkeypatch) -> None:
    """As many bytes as its parameters take, on one rank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWA_DATA", raising=False)
    for words in {" ".join(s["words"].split()) for s in yaml.safe_load(FACTS.read_text())[paper] if s.get("words")}:
        p = prepared(*shlex.split(words), "plan=true")
        cost, m = tensors_and_cost(p)[1], planned_memory(p)
        assert m.gradients == 4 * cost.parameters and m.weights >= m.gradients, words
        assert m.optimizer is not None and m.optimizer >= m.gradients, words
        assert m.window == m.snapshots * cost.model_bytes and m.staged > m.optimizer, words
        assert 0 < cost.evaluation_share < 1, words
