"""The measurement itself, its table, curvature.json and curvature.png."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lawa_exp.averaging.tensors import live_tensors, load_live
from lawa_exp.axes.configuration import Config
from lawa_exp.config.rules import Rule, either, integer, one_of
from lawa_exp.config.shared import Options
from lawa_exp.curvature.theory import implied_noise, outlier, saturation, stable_rate
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.evaluation.hessian import Spectrum, TrainingLoss, gradient_step, lanczos, random_unit
from lawa_exp.evaluation.numerics import seeded_model, set_up_arithmetic, task_loss
from lawa_exp.parallel.sharing import batches_of
from lawa_exp.results.figures import pyplot, save_figure
from lawa_exp.results.tables import markdown
from lawa_exp.runs.builders import admit
from lawa_exp.runs.choices import unresolved_from
from lawa_exp.runs.folder import check_content
from lawa_exp.runs.prepare import prepare
from lawa_exp.storage.commit import Damaged, steps_in, verify
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.safetensors import map_stored
from lawa_exp.system import signals
from lawa_exp.system.cli import plain_name
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import check_links, check_output, in_turn, write_text_atomically

if TYPE_CHECKING:
    from torch import Tensor

LIVE = "live"
CONVERGED = 0.01  # of the eigenvalue: a larger error is told


@dataclass(frozen=True)
class OnBatches:
    """The largest eigenvalues of some batches of `size` samples."""

    size: int
    largest: list[float]

    @property
    def mean(self) -> float:
        return sum(self.largest) / len(self.largest)


@dataclass
class Measured:
    """What was found at one snapshot; JSON as it stands. noise: P sigma^2 as each random vector saw it."""

    run: str
    weights: str
    step: int
    parameters: int
    samples: int
    training_set: int
    iterations: int
    seed: int
    spectra: list[Spectrum] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    gradient_step: float | None = None
    batches: list[OnBatches] = field(default_factory=list)
    batch_spectrum: Spectrum | None = None

    @property
    def top(self) -> Spectrum:
        """The spectrum that found the largest eigenvalue."""
        return max(self.spectra, key=lambda s: s.largest)

    @property
    def mean_noise(self) -> float:
        return sum(self.noise) / len(self.noise)

    @property
    def implied(self) -> float:
        """The noise that the smallest batches' outliers imply: there it shows best."""
        smallest = self.batches[0]
        return implied_noise(self.top.largest, smallest.mean, smallest.size, self.samples)

    def predicted(self, batch: int, noise: float) -> float:
        return outlier(self.top.largest, noise, batch, self.samples)


def measure(args: argparse.Namespace) -> int:
    """Measures what the flags ask for; the exit code."""
    seed = flag("seed", args.seed, integer(0))
    iterations = flag("iterations", args.iterations, integer(2))
    probes = flag("probes", args.probes, integer(1))
    count = flag("batches", args.batches, integer(1))
    run = RunDir(Path(args.run))
    written = run.read_config()
    if written is None:
        raise UserError(f"RUN={args.run}: no run there (config.yaml is missing)")
    check_links(run.path, "RUN")
    if args.out:
        check_output("--out", Path(args.out))
    if args.name:
        plain_name("--name", args.name)
    step, folder = snapshot(run, args.weights, args.step)
    loss, config = loss_of(run, written, folder, args.device, args.trust)
    training_set = loss.data.sizes["train"]
    samples = flag("samples", args.samples, either(integer(2), one_of("all")))
    if isinstance(samples, int) and samples > training_set:
        raise UserError(f"--samples={samples}: the training set has {training_set:,}; all takes them")
    whole = fixed_set(training_set, samples)
    sizes = batch_sizes(args.batch, batches_of(config, loss.data).sizes[-1], len(whole))
    say: Callable[[str], None] = functools.partial(print, flush=True) if loss.ranks.is_main else lambda _: None
    like = loss.parameters[0].detach()

    def spectrum(indices: np.ndarray, *start: int) -> Spectrum:
        def times(vector: Tensor) -> Tensor:
            if signals.stop_requested():
                raise Failed("stopped: nothing was written; the same command begins anew")
            product = loss.times(indices, vector)
            if not product.isfinite().all():
                raise Failed(f"the curvature of the {args.weights} weights after step {step:,} is not finite")
            return product

        return lanczos(times, random_unit(loss.size, like, seed, *start), iterations)

    m = Measured(run.path.resolve().name, args.weights, step, loss.size, len(whole), training_set, iterations, seed)
    say(f"{args.weights} weights after step {step:,}: {loss.size:,} parameters, {len(whole):,} training samples")
    for probe in range(probes):
        m.spectra.append(spectrum(whole, 0, probe))
        m.noise.append(loss.noise(whole, random_unit(loss.size, like, seed, 1, probe)))
        say(f"vector {probe + 1} of {probes}: largest {m.spectra[-1].largest:.4g}, noise {m.noise[-1]:.4g}")
    if m.top.largest <= 0:
        raise Failed(f"the largest eigenvalue is {m.top.largest:.3g}: no direction curves upwards, any rate is stable")
    m.gradient_step = gradient_step(loss, whole)
    for size in sizes:
        of_batches = []
        for number in range(count):
            rng = np.random.default_rng((seed, 2, size, number))
            of_batches.append(spectrum(np.sort(rng.choice(whole, size, replace=False)), 3, size, number))
        m.batches.append(OnBatches(size, [s.largest for s in of_batches]))
        m.batch_spectrum = m.batch_spectrum or of_batches[0]
        say(f"batches of {size:,}: largest " + ", ".join(f"{s.largest:.4g}" for s in of_batches))
    if loss.ranks.is_main:
        out = Path(args.out) if args.out else run.path / "curvature" / (args.name or f"{args.weights}-{folder.name}")
        summary = text(m)
        write(m, out, summary)
        print(f"\n{summary}\n\nin {out}: curvature.json, curvature.png, summary.md")
    return 0


def loss_of(
    run: RunDir, written: dict[str, Any], folder: Path, device_name: str | None, trust: bool
) -> tuple[TrainingLoss, Config]:
    """The training loss of a run at the weights in `folder`, and its configuration. trust: see `custom.admit`."""
    in_memory = {**written["trajectory"], "window": "memory"}
    unresolved = unresolved_from({**written, "averagers": [], "trajectory": in_memory})
    admit(unresolved, written, run.path, trust)
    device, ranks = start_device(device_name or unresolved.device)
    options = Options(run_dir=str(run.path), runs_root=".", plan=False, rerun=False)
    p = prepare(unresolved, options, device, ranks)
    if p.data.fingerprint != written["identity"]["dataset"]["fingerprint"]:
        raise UserError(f"dataset={unresolved.dataset.name}: its content is not what {run.path} was trained on")
    check_content(run, p, ranks)
    set_up_arithmetic(p.config)
    model = seeded_model(p.config, device)
    try:
        verify(folder)
        load_live(live_tensors(model), map_stored(folder))
    except Damaged as error:
        raise UserError(f"{error}; choose another --step") from None
    return TrainingLoss(task_loss(p.config, model, p.data.task), p.data, ranks), p.config


def flag(name: str, text: str, rule: Rule) -> Any:
    """A flag's value; UserError where it is not what `rule` expects."""
    try:
        return rule.parse(int(text) if text.lstrip("-").isdigit() else text)
    except (ValueError, TypeError):
        raise UserError(f"--{name}={text}: expected {rule.expected}") from None


def batch_sizes(requested: str | None, own: int, samples: int) -> list[int]:
    """Ascending; without --batch 1 and the run's own, if that is fewer than `samples`."""
    if requested is None:
        return sorted({1, own if own < samples else 1})
    sizes = [flag("batch", text, integer(1)) for text in requested.split(",")]
    for size in sizes:
        if size >= samples:
            raise UserError(f"--batch={size}: expected fewer than the {samples} samples that stand for the whole set")
    return sorted(set(sizes))


def snapshot(run: RunDir, weights: str, requested: str | None) -> tuple[int, Path]:
    """The step and folder of the weights of --step, or of the last step."""
    if weights not in (LIVE, *run.average_ids):
        raise UserError(f"--weights={weights}: expected one of {', '.join((LIVE, *run.average_ids))}")
    saved = steps_in(run.trajectory if weights == LIVE else run.averages / weights)
    if not saved:
        raise UserError(f"RUN={run.path}: no snapshot of the {weights} weights was kept (trajectory.keep)")
    if requested is None:
        return max(saved.items())
    step = flag("step", requested, integer(0))
    if step not in saved:
        near = sorted(sorted(saved, key=lambda s: abs(s - step))[:5])
        raise UserError(f"--step={requested}: no {weights} weights of that step; near it: {', '.join(map(str, near))}")
    return step, saved[step]


def text(m: Measured) -> str:
    """The findings as text, a Markdown table in it."""
    largest, error, smallest = m.top.largest, float(m.top.errors[-1]), m.batches[0].size
    by_noise, by_outliers = saturation(largest, m.mean_noise), saturation(largest, m.implied)
    each = f" (mean of {', '.join(f'{n:.4g}' for n in m.noise)})" if len(m.noise) > 1 else ""
    of = f"batches of {smallest:,}"
    lines = [
        f"whole set   {m.samples:,} of {m.training_set:,} training samples: largest eigenvalue {largest:.4g}, "
        f"smallest {min(s.smallest for s in m.spectra):.4g}",
        f"noise       P sigma^2 = {m.mean_noise:.4g}{each}: sigma^2 = {m.mean_noise / m.parameters:.3g} is the "
        "variance of an entry between samples",
        f"            P sigma^2 = {m.implied:.4g} as the outliers of {of} imply it",
        f"B_sat       {by_noise:.3g} samples by the noise, {by_outliers:.3g} by the outliers of {of} "
        f"(scaling=capped scaling.saturation={max(1, round(by_outliers))})",
        f"rate        on the whole set SGD without momentum is stable below 2 / {largest:.4g} = "
        f"{stable_rate(largest):.3g}; "
        + (f"g'g / g'Hg = {m.gradient_step:.3g}" if m.gradient_step else "g'Hg is not positive"),
    ]
    if error > CONVERGED * largest:
        lines.append(f"warning     the largest eigenvalue has not converged (± {error:.2g}): more --iterations")
    if m.samples < m.training_set:
        lines.append(f"note        {m.samples:,} samples stand for the whole set; --samples all takes it")
    head = ["batch", "largest eigenvalue", "by the noise", f"by {of}", "largest stable rate", f"by {of}"]
    table = [head]
    measured = {b.size: b for b in m.batches}
    for size in sorted({*measured, *predicted_sizes(m)}):
        by = [m.predicted(size, noise) for noise in (m.mean_noise, m.implied)]
        found = rate = ""
        if batch := measured.get(size):
            scatter = f" ± {np.std(batch.largest, ddof=1):.2g}" if len(batch.largest) > 1 else ""
            found, rate = f"{batch.mean:.4g}{scatter}", f"{stable_rate(batch.mean):.3g}" if batch.mean > 0 else "any"
        table.append([f"{size:,}", found, f"{by[0]:.4g}", f"{by[1]:.4g}", rate, f"{stable_rate(by[1]):.3g}"])
    of_whole = [f"{largest:.4g}"] * 3 + [f"{stable_rate(largest):.3g}"] * 2
    return "\n".join([*lines, "", markdown([*table, [f"{m.samples:,}", *of_whole]])])


def predicted_sizes(m: Measured) -> list[int]:
    """Powers of 4 below the samples."""
    return [size for size in (4**i for i in range(25)) if size < m.samples]


def write(m: Measured, out: Path, text: str) -> None:
    found = {
        **asdict(m),
        "largest": m.top.largest,
        "largest_error": float(m.top.errors[-1]),
        "stable_rate": stable_rate(m.top.largest),
        "noise_of_entries": m.mean_noise,
        "noise_of_outliers": m.implied,
        "b_sat_of_entries": saturation(m.top.largest, m.mean_noise),
        "b_sat_of_outliers": saturation(m.top.largest, m.implied),
    }
    title = f"{m.run}: {m.weights} weights after step {m.step:,}"
    with in_turn(out):
        write_text_atomically(out / "curvature.json", json.dumps(found, indent=1, default=lambda a: a.tolist()) + "\n")
        write_text_atomically(out / "summary.md", f"# {title}\n\n```\n{text}\n```\n\n![curvature](curvature.png)\n")
        draw(m, out / "curvature.png", title)


def draw(m: Measured, path: Path, title: str) -> None:
    """The spectral densities, and the largest stable rate against the batch."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3.6), dpi=120)
    spectra = [("whole set", "-", m.spectra)]
    if m.batch_spectrum:
        spectra.append((f"a batch of {m.batches[0].size:,}", "--", [m.batch_spectrum]))
    low = min(s.smallest for _, _, group in spectra for s in group)
    high = max(s.largest for _, _, group in spectra for s in group)
    width = 0.02 * (high - low)
    grid = np.linspace(low - 4 * width, high + 4 * width, 1000)
    for label, style, group in spectra:
        left.semilogy(grid, density(group, grid, width), style, color="black", linewidth=1.2, label=label)
    left.set_ylim(bottom=1e-7 / width)
    left.set_xlabel("eigenvalue")
    left.set_ylabel(f"density (Gaussians of width {width:.2g})")
    sizes = np.unique(np.geomspace(1, m.samples, 100))
    for noise, style, label in (
        (m.mean_noise, ":", "by the noise"),
        (m.implied, "-", f"by batches of {m.batches[0].size:,}"),
    ):
        rates = [stable_rate(m.predicted(b, noise)) for b in sizes]
        right.loglog(sizes, rates, style, color="black", linewidth=1.2, label=label)
    for batch in m.batches:
        rates = [stable_rate(value) for value in batch.largest if value > 0]
        right.loglog([batch.size] * len(rates), rates, "o", color="black", markersize=3)
    right.set_xlabel("batch (samples)")
    right.set_ylabel("largest stable rate of SGD")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def density(spectra: Sequence[Spectrum], grid: np.ndarray, width: float) -> np.ndarray:
    """The spectral density on `grid`, each Ritz value a Gaussian of standard deviation `width`; it integrates to 1."""
    values, weights = np.concatenate([s.values for s in spectra]), np.concatenate([s.weights for s in spectra])
    bells = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
    total: np.ndarray = bells @ weights / len(spectra)
    return total
