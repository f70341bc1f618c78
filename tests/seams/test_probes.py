"""Each probe alone, killed and resumed, on one and two ranks (DDP, and FSDP where that is not refused), with one pass a
step and with four: the bytes of an undisturbed run, and the losses of one rank."""

from pathlib import Path

import pytest
from helpers import UPDATE, Done, Strike, assert_same_run, rows, run

COMMAND = "seams.command"
BASE = [
    *("--config-dir", str(Path(__file__).parent / "conf"), "model=tower", "dataset=pydocs"),
    *("batch.size=16", "steps=8", "avg=[lawa,ema]", "k=2", "spacing=2", "averagers.ema.decay=0.9", "lr.warmup_steps=2"),
    *("evaluate.every=4", "evaluate.samples=16", "save.every=3", "logger.every=1", "trainer.threads=1"),
]
PROBES = {
    "hard_batches": ["sampling.kind=hard_batches", "+sampling.share=0.5", "+sampling.count=4"],
    "largest_losses": ["sampling.kind=largest_losses"],
    "two_terms": ["objective.kind=two_terms", "+objective.weight=0.1", "+objective.tied=true"],
    "own_module": ["objective.kind=two_terms", "+objective.weight=0.1", "+objective.tied=false"],
    "pairs": ["objective.kind=pairs"],
    "depths": ["objective.kind=depths"],
    "focus": ["objective.kind=focus"],
    "running_mean": ["+layers.running_mean={kind:running_mean}", "evaluate.bn_samples=32"],
    "rounding": ["+update.rounding={kind:rounding,bits:10,ramp:50%}"],
}
REFUSED = {"two_terms": "objective: it shares parameters with the model: not with trainer=fsdp; choose trainer=ddp"}
PER_PASS = {"running_mean"}  # what passes see decides statistics, so their number and the ranks are not one training
PASSES = {(1, 1): 16, (1, 4): 4, (2, 1): 8, (2, 4): 2}  # (ranks, passes a step): samples of a pass
HALVED = {(1, 1): 8, (1, 4): 4, (2, 1): 4, (2, 4): 2}  # where a batch is worked through in two phases


def train(folder: Path, name: str, ranks: int, passes: int, *more: str, strike: Strike | None = None) -> Done:
    micro = (HALVED if name == "depths" else PASSES)[ranks, passes]
    words = [*BASE, *PROBES[name], f"trainer.micro_batch={micro}", f"run_dir={folder}", *more]
    return run(*words, module=COMMAND, ranks=ranks, warm=True, strike=strike)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def agree(name: str, folder: Path, other: Path) -> bool:
    return losses(folder) == pytest.approx(losses(other), rel=0.05 if name in PER_PASS else 1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each probe on one rank, with four passes a step, in a folder of its name; and a run without any."""
    folder = tmp_path_factory.mktemp("alone")
    for name in PROBES:
        done = train(folder / name, name, 1, 4)
        assert done.returncode == 0, done.stdout + done.stderr
    done = run(*BASE, "trainer.micro_batch=4", f"run_dir={folder / 'plain'}", module=COMMAND)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", PROBES)
def test_killed_and_resumed(name: str, alone: Path, tmp_path: Path) -> None:
    died = train(tmp_path / "run", name, 1, 4, strike=Strike(UPDATE, n=5))
    assert died.returncode == -9, died.stdout + died.stderr
    done = train(tmp_path / "run", name, 1, 4)
    assert done.returncode == 0 and "continuing from step 3" in done.stdout, done.stdout + done.stderr
    assert_same_run(tmp_path / "run", alone / name)
    assert losses(alone / name) != losses(alone / "plain")


@pytest.mark.parametrize("name", PROBES)
def test_one_pass_a_step(name: str, alone: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", name, 1, 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert agree(name, tmp_path / "run", alone / name)


@pytest.mark.distributed
@pytest.mark.parametrize("name", PROBES)
def test_two_ranks(name: str, alone: Path, tmp_path: Path) -> None:
    for passes in (1, 4):
        done = train(tmp_path / f"run{passes}", name, 2, passes)
        assert done.returncode == 0, done.stdout + done.stderr
        assert agree(name, tmp_path / f"run{passes}", alone / name)
    died = train(tmp_path / "died", name, 2, 4, strike=Strike(UPDATE, n=5))
    assert died.returncode != 0
    done = train(tmp_path / "died", name, 2, 4)
    assert done.returncode == 0 and "continuing from step" in done.stdout, done.stdout + done.stderr
    assert_same_run(tmp_path / "died", tmp_path / "run4")


@pytest.mark.distributed
@pytest.mark.parametrize("name", PROBES)
def test_two_ranks_that_share_the_model(name: str, alone: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", name, 2, 4, "trainer=fsdp", "trainer.threads=1")
    if name in REFUSED:
        assert done.returncode != 0 and REFUSED[name] in done.stderr, done.stdout + done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert agree(name, tmp_path / "run", alone / name)


def planned(*words: str) -> str:
    """The trajectory id of a training that is only planned."""
    keys = {word.split("=")[0] for word in words}
    done = run(*(w for w in BASE if w.split("=")[0] not in keys), *words, "plan=true", module=COMMAND)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0].rpartition("-")[2]


def test_a_share_of_two_budgets_has_two_ids() -> None:
    """A ramp over half of the budget is as many steps as that: in another budget it is another method."""
    half, steps = PROBES["rounding"], ["+update.rounding={kind:rounding,bits:10,ramp:4}"]
    assert planned(*half) == planned(*steps, "steps=16") != planned(*half, "steps=16")


def test_two_lists_in_another_order_have_two_ids() -> None:
    first, second = "+update.a={kind:rounding,bits:4,ramp:1}", "+update.b={kind:rounding,bits:8,ramp:1}"
    assert planned(first, second) != planned(second, first)
    assert planned(first, second) == planned("+update.one={kind:rounding,bits:4,ramp:1}", second.replace(".b", ".two"))


def test_a_distillation_from_an_average_is_planned_before_its_teacher_exists(tmp_path: Path) -> None:
    """The teacher is an average of another run, named by trajectory, averager and step."""
    student = ["objective.kind=distillation", "steps=4", "teacher.weights=ema-d0.9-e1", "teacher.step=8"]
    base = [word for word in BASE if not word.startswith("steps=")]

    def command(*words: str, **options: Strike) -> Done:
        return run(*base, *words, f"runs_root={tmp_path}", module=COMMAND, **options)  # type: ignore[arg-type]

    def folder_of(done: Done) -> Path:
        assert done.returncode == 0, done.stdout + done.stderr
        return Path(done.stdout.splitlines()[0].removeprefix("run_dir="))

    teacher = folder_of(command("steps=8", "seed=1", "plan=true"))
    words = [*student, f"teacher.from={teacher}"]
    folder = folder_of(command(*words, "plan=true"))
    assert not teacher.exists()
    done = command(*words)
    assert done.returncode == 2 and f"teacher.from={teacher}: no such run, file or folder" in done.stderr
    assert folder_of(command("steps=8", "seed=1")) == teacher
    assert command(*words, strike=Strike(UPDATE, n=4)).returncode == -9
    assert folder_of(command(*words)) == folder
    twin = tmp_path / "twin"
    folder_of(command(*words, f"run_dir={twin}"))
    assert_same_run(folder, twin)
    trained = [row for row in rows(folder) if row["split"] == "train"]
    assert all(row["objective"] == pytest.approx((row["loss"] + row["distilled"]) / 2, rel=1e-6) for row in trained)
    assert not [path for path in folder.rglob("*.safetensors") if "teacher" in path.name]
    other = planned(*student[:1], "steps=4", f"teacher.from={teacher}", "teacher.step=8")
    assert other != folder.name.rpartition("-")[2], "the live weights are another teacher"


def test_a_teacher_that_nobody_learns_from_and_none_where_one_is_needed_are_refused(tmp_path: Path) -> None:
    for words, said in (
        ([f"teacher.from={tmp_path / 'run-0123456789ab'}", "teacher.step=8"], "the objective takes no teacher"),
        (["objective.kind=distillation"], "teacher.from is missing: the objective learns from a teacher"),
        (["objective.kind=distillation", f"teacher.from={tmp_path}/run-0123456789ab"], "teacher.step is missing"),
        (["objective.kind=distillation", f"teacher.from={tmp_path}/other"], "no such run, file or folder"),
    ):
        done = run(*BASE, *words, "plan=true", module=COMMAND)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) <= 2, done.stderr


def test_a_layers_statistics_under_recalibration_and_recomputed_activations(alone: Path, tmp_path: Path) -> None:
    """Rows say how they were had; blocks that are computed again count nothing twice."""
    done = train(tmp_path / "run", "running_mean", 1, 4, "trainer.checkpoint_activations=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(tmp_path / "run") == rows(alone / "running_mean")
    evaluated = [row for row in rows(tmp_path / "run") if row["split"] == "val"]
    assert {row["bn"] for row in evaluated} == {"recalibrate"}
    assert all("loss_running_bn" in row for row in evaluated if row["weights"] == "live")


def test_rows_say_what_was_read_and_passed_through_besides_training(alone: Path) -> None:
    last = {name: [row for row in rows(alone / name) if row["split"] == "val"][-1] for name in PROBES}
    assert all(row["trained_samples"] == 8 * 16 for row in last.values())
    assert {name: row["read_samples"] for name, row in last.items() if "read_samples" in row} == {"largest_losses": 256}
    passes = {name: row["passes"] for name, row in last.items() if "passes" in row}
    assert passes == {"largest_losses": pytest.approx(5 / 3), "focus": pytest.approx(4 / 3)}


@pytest.mark.parametrize("name", ["largest_losses", "focus", "depths"])
def test_killed_and_resumed_with_dropout(name: str, tmp_path: Path) -> None:
    """What is drawn in a step follows from the step, whatever looked at its samples before."""
    done = train(tmp_path / "twin", name, 1, 4, "model.dropout=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert train(tmp_path / "run", name, 1, 4, "model.dropout=0.5", strike=Strike(UPDATE, n=5)).returncode == -9
    assert train(tmp_path / "run", name, 1, 4, "model.dropout=0.5").returncode == 0
    assert_same_run(tmp_path / "run", tmp_path / "twin")


def test_a_sampler_that_learns_within_a_fault(alone: Path, tmp_path: Path) -> None:
    fault = ["fault=batches", "fault.at=2", "fault.length=2"]
    done = train(tmp_path / "twin", "hard_batches", 1, 4, *fault)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "twin") != losses(alone / "hard_batches")
    assert train(tmp_path / "run", "hard_batches", 1, 4, *fault, strike=Strike(UPDATE, n=5)).returncode == -9
    assert train(tmp_path / "run", "hard_batches", 1, 4, *fault).returncode == 0
    assert_same_run(tmp_path / "run", tmp_path / "twin")


def test_a_kept_state_of_another_method_is_refused(alone: Path, tmp_path: Path) -> None:
    for name, key in (("two_terms", "objective"), ("hard_batches", "sampling"), ("rounding", "update")):
        origin = [f"init.from={alone / 'plain'}", "init.step=6", "steps=10", f"run_dir={tmp_path / name}"]
        words = [*(w for w in BASE if not w.startswith("steps=")), *PROBES[name], "trainer.micro_batch=4", *origin]
        done = run(*words, "init.optimizer=keep", module=COMMAND)
        assert done.returncode == 2 and "init.optimizer=keep" in done.stderr, done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, key


def test_an_objective_brings_a_task_of_its_own(alone: Path) -> None:
    evaluated = {name: [row for row in rows(alone / name) if row["split"] == "val"] for name in PROBES}
    assert {name for name, found in evaluated.items() if "doubtful" in found[0]} == {"focus"}
    assert all(0 <= row["doubtful"] <= 1 for row in evaluated["focus"])
    assert "doubtful" in (alone / "focus" / "config.yaml").read_text()
