"""The estimates of the gradient noise scale: unbiased, of the right gradients, and training is what it was."""

import itertools
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, contents, markers, rows, run, tiny

from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.watch.noise_scale import NoiseScale
from lawa_exp.evaluation.numerics import seeded_model, task_loss
from lawa_exp.launch.compose import compose, read
from lawa_exp.results.statistics import noise_scale
from lawa_exp.runs.prepare import prepare
from lawa_exp.seams.batches import Batches
from lawa_exp.seams.context import Context
from lawa_exp.seams.samples import Pass, Samples
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.distributed import Ranks

NAMES = ("grad_squared", "grad_variance")  # in the order of `estimates`
FIELDS = set(NAMES)
ASKED = [*tiny("batch.size=4"), "trainer.micro_batch=2", "logger.every=5"]


@pytest.fixture(scope="module")
def with_noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise") / "run"
    done = run(*ASKED, "watch=noise_scale", f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without") / "run"
    done = run(*ASKED, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


class Targets:
    """A data set whose samples have as many targets as their numbers say."""

    def train_targets(self, seed: int, samples: Samples) -> int:
        return int(samples.numbers.sum())


def watching(weight: torch.nn.Parameter, batch: int) -> NoiseScale:
    """The watch over a training of one parameter, at batches of `batch` samples."""
    objective = torch.nn.ParameterList([weight])
    cpu, none = torch.device("cpu"), frozenset[str]()
    sizes = Batches([(0, batch)], 1)
    optimizer = torch.optim.SGD([weight])
    return NoiseScale(Context(0, Targets(), sizes, objective, optimizer, none, Ranks(), cpu, nullcontext, 1))  # type: ignore[arg-type]


def a_pass(samples: int, batch: int, targets: int, of_batch: int) -> Pass:
    """A pass over so many of the batch's samples, with so many of its targets."""
    numbers = np.zeros(samples, np.int64)
    numbers[0] = targets
    return Pass(1, 0, 0, Samples(numbers, numbers), batch, of_batch, {}, False)


@pytest.mark.parametrize("micro, accumulate", [(1, 2), (1, 3), (2, 2)])
def test_unbiased_over_every_batch_that_can_be_drawn(micro: int, accumulate: int) -> None:
    """A loss linear in the weights: the gradients of the samples are the samples, their moments are known."""
    population = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.0, 4.0]])
    weight = torch.nn.Parameter(torch.zeros(2))
    batch = micro * accumulate
    norms = watching(weight, batch)
    found = []
    for drawn in itertools.product(population, repeat=batch):
        norms.before_step(1)
        weight.grad = None
        for samples in torch.stack(drawn).view(accumulate, micro, 2):
            norms.before_pass(a_pass(micro, batch, micro, batch))
            ((samples @ weight).sum() / batch).backward()
        assert weight.grad is not None
        numbers = {"grad_norm": weight.grad.norm().item(), **{n: t.item() for n, t in norms.after_passes(1).items()}}
        found.append(norms.arrived(1, numbers))
    assert len(found) == 3**batch
    mean = population.mean(0)
    expected = {"grad_squared": mean.square().sum(), "grad_variance": (population - mean).square().sum(1).mean()}
    for name in FIELDS:
        assert np.mean([f[name] for f in found]) == pytest.approx(expected[name].item(), rel=1e-6)
        assert np.std([f[name] for f in found]) > 0.1


@pytest.mark.parametrize("counts", [(1, 3), (2, 1, 1)])
def test_unbiased_where_micro_batches_have_unequal_numbers_of_targets(counts: tuple[int, ...]) -> None:
    """As in a masked language model: the batch's gradient is the mean over all of its targets."""
    population = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.0, 4.0]])
    weight = torch.nn.Parameter(torch.zeros(2))
    batch, passes = sum(counts), len(counts)
    norms = watching(weight, passes)
    found = []
    for drawn in itertools.product(population, repeat=batch):
        norms.before_step(1)
        weight.grad = None
        for targets in torch.stack(drawn).split(counts):
            norms.before_pass(a_pass(1, passes, len(targets), batch))  # a sample of several targets
            ((targets @ weight).sum() / batch).backward()
        assert weight.grad is not None
        numbers = {"grad_norm": weight.grad.norm().item(), **{n: t.item() for n, t in norms.after_passes(1).items()}}
        found.append(norms.arrived(1, numbers))
    mean = population.mean(0)
    variance = (population - mean).square().sum(1).mean() * passes / batch
    assert np.mean([f["grad_squared"] for f in found]) == pytest.approx(mean.square().sum().item(), rel=1e-6)
    assert np.mean([f["grad_variance"] for f in found]) == pytest.approx(variance.item(), rel=1e-6)


def asked_with(folder: Path, *changes: str) -> list[str]:
    """ASKED and the noise scale, with these settings in place of its own."""
    keys = {c.split("=")[0] for c in changes}
    return [
        *(o for o in ASKED if o.split("=")[0] not in keys),
        *changes,
        "watch=noise_scale",
        f"run_dir={folder}",
    ]


RECORDED = Path(__file__).parents[1] / "fidelity" / "recorded" / "fairseq" / "data"
MASKED = [
    *("model=roberta_base", "model.layers=1", "model.width=8", "model.heads=2", "model.context=48", "avg=none"),
    *("model.vocab_size=null", "model.dropout=0", "model.attention_dropout=0", f"dataset.path={RECORDED}"),
    *("batch.size=4", "evaluate.samples=2", "evaluate.every=1", "lr.horizon=null", "lr.warmup_steps=1"),
    *("trainer.threads=1", "trainer.micro_batch=2", "watch=noise_scale"),
]


@pytest.mark.parametrize("masked", [False, True])
def test_rows_are_of_the_gradients_of_the_micro_batches(masked: bool, tmp_path: Path) -> None:
    """The first step's row, against autograd on the two halves of the first batch, of equal or unequal targets."""
    if masked:
        pytest.importorskip("transformers")
        asked = [*MASKED, f"run_dir={tmp_path / 'run'}", "logger.every=1", "steps=1"]
    else:
        asked = asked_with(tmp_path / "run", "logger.every=1", "steps=1")
    ((values, overrides),), _ = compose(asked)
    config, options = read(values, overrides)
    p = prepare(config, options, torch.device("cpu"), Ranks())
    objective = task_loss(p.config, seeded_model(p.config, torch.device("cpu")), p.data.task)
    gradients, counts = [], []
    for first in (0, 2):
        inputs, targets = map(
            torch.from_numpy,
            p.data.train_batch(p.config.seed, in_epochs(first, 2, p.data.sizes["train"], p.config.seed)),
        )
        counts.append(int((targets != IGNORE).sum()))
        weights = [w for w in objective.parameters() if w.requires_grad]
        found = torch.autograd.grad(objective(inputs, targets)["loss"] / counts[-1], weights)
        gradients.append(torch.cat([g.flatten() for g in found]).double())
    assert (counts[0] != counts[1]) == masked
    shares = [count / sum(counts) for count in counts]
    whole = sum(share * g for share, g in zip(shares, gradients, strict=True)).square().sum().item()
    halves = sum(share * g.square().sum().item() for share, g in zip(shares, gradients, strict=True))
    done = run(*asked, warm=True)
    assert done.returncode == 0, done.stderr
    row = next(r for r in rows(tmp_path / "run") if r["split"] == "train")
    assert row["grad_norm"] ** 2 == pytest.approx(whole, rel=1e-5)
    assert row["grad_squared"] == pytest.approx(2 * whole - halves, rel=1e-4)
    assert row["grad_variance"] == pytest.approx(4 * (halves - whole), rel=1e-4)


def test_training_is_byte_equal_with_and_without(with_noise: Path, without: Path) -> None:
    mine, other = contents(with_noise), contents(without)
    assert mine.keys() == other.keys() and len(mine) > 20
    same = {name for name in mine if mine[name] == other[name]}
    # The rows have the fields, so the saved length of metrics.jsonl differs, and with it the manifest beside it.
    assert {Path(name).name for name in mine.keys() - same} == {"metrics.jsonl", "state.json", "manifest.json"}
    assert not [name for name in mine.keys() - same if name.startswith(("trajectory", "averages"))]
    bare = [{k: v for k, v in row.items() if k not in FIELDS} for row in rows(with_noise)]
    assert bare == rows(without)
    for row in rows(with_noise):
        assert (row.keys() & FIELDS == FIELDS) == (row["split"] == "train"), row


def test_killed_and_gone_on_with(with_noise: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    died = run(*ASKED, "watch=noise_scale", f"run_dir={folder}", strike=Strike(UPDATE, n=22))
    assert died.returncode < 0
    done = run(*ASKED, "watch=noise_scale", f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and "continuing from step 15" in done.stdout
    assert_same_run(folder, with_noise)


def test_a_rerun_adds_them_to_a_finished_run(without: Path, with_noise: Path) -> None:
    done = run(*ASKED, "watch=noise_scale", "rerun=true", f"run_dir={without}", warm=True)
    assert done.returncode == 0 and "the rerun equals the first training" in done.stdout, done.stdout
    assert (without / "metrics.jsonl").read_bytes() == (with_noise / "metrics.jsonl").read_bytes()
    assert not (without / "readouts" / "before-rerun").exists()
    again = run(*ASKED, "rerun=true", f"run_dir={without}", warm=True)
    assert again.returncode == 0 and "the rerun equals the first training" in again.stdout, again.stdout
    kept = rows(without / "readouts" / "before-rerun")
    assert len(kept) == 12 and all(row.keys() >= FIELDS for row in kept)
    assert not any(row.keys() & FIELDS for row in rows(without))


@pytest.mark.parametrize("size, choice", [(4, "choose trainer.micro_batch=2 or"), (1, "choose a larger batch")])
@pytest.mark.parametrize("plan", ["true", "false"])
def test_one_micro_batch_on_one_rank_is_refused(tmp_path: Path, size: int, choice: str, plan: str) -> None:
    folder = tmp_path / "run"
    asked = [*tiny(f"batch.size={size}"), "watch=noise_scale", f"plan={plan}", f"run_dir={folder}"]
    done = run(*asked, warm=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"watch=noise_scale: a batch of {size} is one micro-batch on one rank; {choice}" in done.stderr
    assert not (folder / "config.yaml").exists() and markers(folder) == []


def test_a_gradient_that_is_not_finite_is_null_in_the_row(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(*asked_with(folder, "lr.peak=1e12", "optimizer.clip_norm=0", "logger.every=1"), warm=True)
    assert done.returncode == 3, done.stderr
    last = [r for r in rows(folder) if r["split"] == "train"][-1]
    assert last["grad_norm"] is None and last["grad_squared"] is None and {"grad_norm", *FIELDS} <= {*last["nonfinite"]}


def test_the_noise_scale_is_a_ratio_of_means() -> None:
    found = [{"step": s, "grad_squared": g, "grad_variance": v} for s, g, v in ((1, -1.0, 8.0), (2, 3.0, 4.0))]
    found += [{"step": 2, "loss": 1.0}, {"step": 3, "grad_squared": None, "grad_variance": None}]
    assert noise_scale(found, 1, 3) == 6.0
    assert noise_scale(found, 2, 2) == 4 / 3
    assert noise_scale(found, 1, 1) is None and noise_scale(found, 3, 9) is None
