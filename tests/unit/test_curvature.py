"""Curvature: against explicit Hessians and numpy's eigenvalues, the theory against random matrices, and the command."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, rows, run, states, tiny
from torch import nn
from torch.func import functional_call

from lawa_exp.axes.dataset import tasks
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.axes.objective.task_loss import TaskLoss
from lawa_exp.curvature.command import density
from lawa_exp.curvature.theory import implied_noise, outlier, saturation
from lawa_exp.evaluation.hessian import TrainingLoss, gradient_step, lanczos, random_unit
from lawa_exp.system.distributed import Ranks

SAMPLES = np.arange(10)


class Tokens:
    """50 training samples of 4 tokens out of 7."""

    tokens_per_sample = 4

    def eval_batch(self, split, indices):
        assert split == "train"
        drawn = np.random.default_rng(0).integers(0, 7, (50, 5))[indices]
        return drawn[:, :-1].copy(), drawn[:, 1:].copy()


def gpt_loss() -> TrainingLoss:
    torch.manual_seed(0)
    settings = GPTSettings("tiny", 1, 2, 4, 4, 7, True, 0.5, False)  # dropout must be off in what is measured
    loss = TrainingLoss(TaskLoss(settings.build(), tasks.Tokens()).double(), Tokens(), Ranks())
    loss.chunk = 3  # 10 samples in chunks of 3, 3, 3 and 1
    return loss


def explicit(loss: TrainingLoss, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient and the Hessian of the mean loss by torch.autograd.functional, [P] and [P, P]."""
    model = loss.objective.model.eval()
    names = [n for n, _ in model.named_parameters()]
    sizes = [p.numel() for p in loss.parameters]
    inputs, targets = (torch.from_numpy(a) for a in loss.data.eval_batch("train", indices))

    def mean_loss(weights: torch.Tensor) -> torch.Tensor:
        parts = [w.view_as(p) for w, p in zip(weights.split(sizes), loss.parameters, strict=True)]
        tensors = {f"model.{n}": part for n, part in zip(names, parts, strict=True)}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            terms = functional_call(TaskLoss(model, tasks.Tokens()).eval(), tensors, (inputs, targets))
            return terms["loss"] / targets.numel()

    weights = torch.cat([p.detach().reshape(-1) for p in loss.parameters])
    gradient = torch.autograd.functional.jacobian(mean_loss, weights)
    return gradient, torch.autograd.functional.hessian(mean_loss, weights)


def test_products_and_lanczos_against_the_explicit_hessian():
    loss = gpt_loss()
    loss.objective.train()
    gradient, hessian = explicit(loss, SAMPLES)
    loss.objective.train()
    torch.testing.assert_close(loss.gradient(SAMPLES), gradient, rtol=1e-10, atol=1e-12)
    start = random_unit(loss.size, gradient, 0)
    torch.testing.assert_close(loss.times(SAMPLES, start), hessian @ start, rtol=1e-9, atol=1e-11)
    values = np.linalg.eigvalsh(hessian.numpy())
    found = lanczos(lambda v: loss.times(SAMPLES, v), start, 40)
    assert found.largest == pytest.approx(values[-1], rel=1e-8) and found.smallest == pytest.approx(values[0], rel=1e-8)
    assert found.errors[-1] < 1e-6 and values[-1] > 2 * values[-5] > 0 > values[0]
    assert loss.objective.training and loss.objective.model.transformer["drop"].training, "its mode was not restored"
    assert all(p.grad is None for p in loss.parameters)
    assert gradient @ hessian @ gradient < 0 and gradient_step(loss, SAMPLES) is None


def test_noise_is_the_variance_of_single_hessians():
    """sum over samples of ||(H_i - H) z||^2, over their number less one."""
    loss, few = gpt_loss(), SAMPLES[:5]
    singles = torch.stack([explicit(loss, few[i : i + 1])[1] for i in range(len(few))])
    scatter = singles - singles.mean(0)
    for seed in range(3):
        z = random_unit(loss.size, singles, seed)
        exact = float((scatter @ z).square().sum()) / (len(few) - 1)
        assert loss.noise(few, z) == pytest.approx(exact, rel=1e-8)


def test_noise_does_not_depend_on_the_groups():
    """Of 200 samples whose Hessians are diagonal and random: groups of 6 and of 1 estimate the same variance."""

    class Diagonal(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(300, dtype=torch.float64))

        def forward(self, inputs, targets):
            return {"loss": (inputs * self.w**2).sum() / 2}

    drawn = np.random.default_rng(0).standard_normal((200, 300)) * 0.5 + 2
    loss = TrainingLoss(
        Diagonal(), SimpleNamespace(tokens_per_sample=1, eval_batch=lambda _, i: (drawn[i], i)), Ranks()
    )
    z = random_unit(300, loss.parameters[0].detach(), 0)
    assert loss.noise(np.arange(200), z) == pytest.approx(0.25, rel=0.15)  # the groups are of 6 and one of 2
    loss.chunk = 1
    assert loss.noise(np.arange(200), z) == pytest.approx(0.25, rel=0.05)


def test_lanczos_on_a_matrix():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((60, 60)))
    values = np.concatenate([np.linspace(-1, 1, 57), [-5, 8, 20]])
    matrix = torch.from_numpy(q * values @ q.T)
    start = random_unit(60, matrix, 1)
    part = lanczos(lambda v: matrix @ v, start, 25)
    assert (part.largest, part.smallest) == pytest.approx((20, -5), rel=1e-10)
    assert part.weights.sum() == pytest.approx(1)
    nearest = np.abs(part.values[:, None] - values).min(1)
    assert (nearest <= part.errors + 1e-10).all() and part.errors.max() > 0.01
    moments = [float(start @ torch.linalg.matrix_power(matrix, k) @ start) for k in range(8)]
    assert [part.weights @ part.values**k for k in range(8)] == pytest.approx(moments, rel=1e-8)  # Gauss quadrature
    whole = lanczos(lambda v: matrix @ v, start, 500)
    np.testing.assert_allclose(
        whole.values, np.sort(values), atol=1e-8
    )  # without re-orthogonalisation there are ghosts
    assert len(lanczos(lambda v: 3 * v, start, 10).values) == 1, "an invariant subspace was left"


def test_density_is_that_of_the_eigenvalues():
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(rng.standard_normal((400, 400)))
    matrix = (matrix + matrix.T) / np.sqrt(800)
    matrix[0, 0] += 6
    values = np.linalg.eigvalsh(matrix.numpy())
    grid, width = np.linspace(-4, 9, 500), 0.3
    spectra = [lanczos(lambda v: matrix @ v, random_unit(400, matrix, 0, i), 40) for i in range(20)]
    exact = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))
    found = density(spectra, grid, width)
    assert np.trapezoid(found, grid) == pytest.approx(1, abs=1e-6)
    assert np.abs(found - exact).max() < 0.05 * exact.max()


@pytest.mark.parametrize("batch", [1, 4, 16, 64, 400])
def test_outlier_of_a_batch_of_random_hessians(batch):
    """The whole: 5 u u'; each of 400 samples adds noise of variance sigma^2 = 1/4 (P = 600)."""
    parameters, size, sigma, largest = 600, 400, 0.5, 5.0
    noise = parameters * sigma**2
    rng = np.random.default_rng(batch)
    entries = rng.standard_normal((parameters, parameters)) * sigma * np.sqrt(1 / batch - 1 / size)
    matrix = np.triu(entries) + np.triu(entries, 1).T
    matrix[0, 0] += largest
    top = np.linalg.eigvalsh(matrix)[-1]
    assert outlier(largest, noise, batch, size) == pytest.approx(top, rel=0.06)
    if batch < size:
        assert implied_noise(largest, outlier(largest, noise, batch, size), batch, size) == pytest.approx(noise)
    assert saturation(largest, noise) == 6.0  # so B = 1 and 4 are in the regime of the noise, the others are not


def test_gradient_step_of_a_quadratic():
    """Loss sum_i a_i w_i^2 / 2 in two parameters: g = a w, so g'g / g'Hg = sum a^2 w^2 / sum a^3 w^2."""

    class Quadratic(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

        def forward(self, inputs, targets):
            return {"loss": (inputs * self.w**2).sum() / 2}

    def step(a, w):
        data = SimpleNamespace(
            tokens_per_sample=1, eval_batch=lambda split, i: (np.array([a] * len(i)), np.zeros(len(i)))
        )
        loss = TrainingLoss(Quadratic(w), data, Ranks())
        return gradient_step(loss, np.arange(5))

    assert step([1.0, 10.0], [3.0, 1.0]) == pytest.approx((9 + 100) / (9 + 1000))
    assert step([4.0, 4.0], [3.0, 1.0]) == pytest.approx(1 / 4)  # one step to the minimum
    assert step([1.0, -10.0], [3.0, 1.0]) is None  # curved downwards along the gradient
    assert step([1.0, 1.0], [0.0, 0.0]) is None
    assert step([1.0, 1.0], [np.inf, 0.0]) is None


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curvature") / "run"
    done = run(*tiny("steps=20", "evaluate.every=10"), f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


def curvature(*arguments):
    return run(*arguments, module="lawa_exp.curvature", warm=True)


FAST = ["--samples", "24", "--iterations", "6", "--batches", "2"]


def test_the_command(a_run, tmp_path):
    done = curvature(str(a_run), *FAST, "--batch", "2,8")
    assert done.returncode == 0, done.stderr
    folder = a_run / "curvature" / "live-step_00000020"
    assert sorted(p.name for p in folder.iterdir()) == ["curvature.json", "curvature.png", "summary.md"]
    found = json.loads((folder / "curvature.json").read_text())
    assert (found["step"], found["samples"], found["parameters"]) == (20, 24, 21600)
    assert [(b["size"], len(b["largest"])) for b in found["batches"]] == [(2, 2), (8, 2)]
    assert found["stable_rate"] == 2 / found["largest"] > 0 and found["noise_of_entries"] > 0
    assert "B_sat" in done.stdout and f"{found['largest']:.4g}" in done.stdout
    again = curvature(str(a_run), *FAST, "--batch", "2,8", "--out", str(tmp_path / "again"))
    assert again.returncode == 0
    assert (tmp_path / "again/curvature.json").read_bytes() == (folder / "curvature.json").read_bytes()
    average = curvature(str(a_run), *FAST, "--weights", "ema-d0.9-e1", "--step", "20", "--name", "ema")
    assert average.returncode == 0, average.stderr
    of_average = json.loads((a_run / "curvature/ema/curvature.json").read_text())
    assert of_average["largest"] != found["largest"] and [b["size"] for b in of_average["batches"]] == [1, 4]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--step", "7"], ["--step=7", "near it: 5, 10"]),
        (["--step", "last"], ["--step=last: expected an integer of at least 0"]),
        (["--weights", "ema"], ["--weights=ema: expected one of live, ", "ema-d0.9-e1"]),
        (["--iterations", "1"], ["--iterations=1: expected an integer of at least 2"]),
        (["--samples", "some"], ["--samples=some: expected an integer of at least 2 or one of all"]),
        (["--samples", "8", "--batch", "8"], ["--batch=8: expected fewer than the 8 samples"]),
        (["--batch", "4,x"], ["--batch=x: expected an integer of at least 1"]),
        (["--probes", "0"], ["--probes=0: expected"]),
        (["--batches", "0"], ["--batches=0: expected"]),
        (["--seed", "-1"], ["--seed=-1: expected an integer of at least 0"]),
        (["--device", "tpu"], ["trainer.device=tpu: expected auto, cpu or cuda"]),
        (["--rate"], ["unrecognized arguments"]),
    ],
)
def test_mistakes_are_one_line(a_run, flags, said):
    done = curvature(str(a_run), *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    for part in said:
        assert part in done.stderr


def test_no_run_there(tmp_path):
    done = curvature(str(tmp_path))
    assert (done.returncode, done.stderr) == (2, f"error: RUN={tmp_path}: no run there (config.yaml is missing)\n")


def test_help_does_not_load_torch():
    code = (
        "import sys\nfrom lawa_exp.curvature.__main__ import parser\n"
        "assert 'unconfirmed' in parser().format_help() and 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


ON_THE_FLY = [
    *tiny("batch.size=16", "lr.warmup_steps=3"),
    *("lr=on_the_fly", "lr.peak=0.3", "lr.every=10", "lr.start=15", "optimizer=sgd", "optimizer.momentum=0"),
    "logger.every=1",
]
SGD_UPDATE = UPDATE


def rates_of(folder: Path) -> dict[int, float]:
    return {r["step"]: r["lr"] for r in rows(folder) if r["split"] == "train"}


def test_a_run_on_the_fly_undisturbed_and_killed(tmp_path):
    """The rate is the peak, then what is measured on the snapshots: the same number again from the files."""
    asked, twin, folder = [*ON_THE_FLY, "lr.samples=16"], tmp_path / "twin", tmp_path / "run"
    done = run(*asked, f"run_dir={twin}", warm=True)
    assert done.returncode == 0, done.stderr
    assert "0.3 at step 15; measured every 10 steps from step 20 on" in done.stdout
    rates = rates_of(twin)
    assert {rates[s] for s in range(3, 21)} == {0.3}
    pieces = [{rates[s] for s in range(first + 1, first + 11)} for first in (20, 30, 40, 50)]
    assert [len(piece) for piece in pieces] == [1, 1, 1, 1] and len({0.3}.union(*pieces)) == 5
    for step in (20, 50):
        out = tmp_path / str(step)
        few = ["--samples", "16", "--batch", "1", "--batches", "1", "--iterations", "2"]
        assert curvature(str(twin), *few, "--step", str(step), "--out", str(out)).returncode == 0
        assert json.loads((out / "curvature.json").read_text())["gradient_step"] == rates[step + 1]

    # Goes on from 15 (nothing measured yet), 30 (measured again there) and 45 (the rate of step 40 is in the state).
    for n, newest in ((28, 15), (20, 30), (20, 45)):
        died = run(*asked, f"run_dir={folder}", strike=Strike(SGD_UPDATE, n=n))
        assert died.returncode == -signal.SIGKILL and states(folder)[-1] == newest, died.stdout + died.stderr
    assert run(*asked, f"run_dir={folder}", warm=True).returncode == 0
    assert_same_run(folder, twin)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_on_the_fly(tmp_path):
    """Both take part in the measurement (300 samples are two chunks), and agree on the rate."""
    asked, one, two, killed = [*ON_THE_FLY, "lr.samples=300"], *(tmp_path / n for n in ("one", "two", "killed"))
    assert run(*asked, f"run_dir={one}", warm=True).returncode == 0
    assert run(*asked, f"run_dir={two}", ranks=2, warm=True).returncode == 0
    first, second = rates_of(one), rates_of(two)
    assert first[21] == pytest.approx(second[21], rel=1e-4) and first[60] != second[60]
    died = run(*asked, f"run_dir={killed}", ranks=2, warm=True, strike=Strike(SGD_UPDATE, n=48, rank=1))
    assert died.returncode == 1 and states(killed)[-1] == 45, died.stderr
    assert run(*asked, f"run_dir={killed}", ranks=2, warm=True).returncode == 0
    assert_same_run(killed, two)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["lr.every=0"], "lr.every=0: expected a number of steps of at least 1"),
        (["lr.every=0%"], "lr.every=0% is 0 steps: expected at least 1"),
        (["lr.samples=few"], "lr.samples=few: expected an integer of at least 1 or one of all"),
        (["lr.start=-5"], "lr.start=-5: expected a number of steps of at least 0"),
        (["lr.final_ratio=0"], "lr.final_ratio"),
    ],
)
def test_mistakes_of_on_the_fly(tmp_path, overrides, said):
    done = run(*tiny(*overrides), "lr=on_the_fly", f"run_dir={tmp_path / 'run'}", warm=True)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_what_the_plan_says_on_the_fly(tmp_path):
    done = run(*tiny("steps=60"), "lr=on_the_fly", "plan=true", f"run_dir={tmp_path / 'run'}", warm=True)
    assert done.returncode == 0 and "measured every 3,278 steps from step 6,556 on" in done.stdout, done.stdout
    assert "the first measurement, after step 6,556, is beyond the budget" in done.stdout
    assert "meant for optimizer=sgd" in done.stdout
