"""The analysis itself: levels, fits, intervals over seeds, the held-out batch size, and what is written."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from lawa_exp.critical_batch import fits, report
from lawa_exp.critical_batch.findings import Errors, Findings, HeldOut, Level
from lawa_exp.critical_batch.fits import Fit
from lawa_exp.critical_batch.runs import FEWEST, Measured, is_sweep, measure, read_runs
from lawa_exp.results.statistics import noise_scale, t95
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import check_output, write_text_atomically

POOR = 0.1  # relative error of a fit that is told
LEVELS = 8  # loss levels where --levels names none
NEAR = 1.25  # the noise scale at a step is over the training rows within this factor of it


def analyse(args: argparse.Namespace, command: list[str]) -> int:
    """Fits, predicts, writes critical_batch.* and prints the page; the exit code."""
    if args.smooth < 1 or args.smooth % 2 == 0:
        raise UserError(f"--smooth={args.smooth}: expected an odd number of evaluations")
    if args.out:
        check_output("--out", Path(args.out))
    runs, left_out = read_runs(args.paths)
    measured = measure(runs, args.weights, args.smooth)
    losses = chosen_levels(measured, args.levels)
    fitted = fits.fits_at(losses, measured.mean)
    by_seed = [fits.fits_at(losses, curves) for curves in measured.by_seed]
    law = fits.power_law(fitted)
    findings = Findings(
        weights=args.weights,
        smooth=args.smooth,
        batch_sizes=measured.sizes,
        seeds=len(by_seed),
        tokens_per_sample=measured.tokens_per_sample,
        levels=[level(f, by_seed, law, measured) for f in fitted],
        law=law,
        laws_by_seed=[fits.power_law(of_seed) for of_seed in by_seed],
        hold_out=None if args.hold_out is None else held_out(measured, args.hold_out),
        runs=[str(run.path) for seeds in measured.runs.values() for run in seeds.values()],
        notes=notes(fitted, law, measured) + left_out,
    )
    out = Path(args.out) if args.out else next((p for p in map(Path, args.paths) if is_sweep(p)), Path())
    out.mkdir(parents=True, exist_ok=True)
    text = report.text(findings)
    page = ["# Critical batch size", "", f"    {shlex.join(command)}", "", text, "", "![plot](critical_batch.png)", ""]
    write_text_atomically(out / "critical_batch.md", "\n".join(page))
    write_text_atomically(out / "critical_batch.json", json.dumps(findings.as_json(), indent=1) + "\n")
    write_text_atomically(out / "critical_batch.csv", report.as_csv(findings.levels))
    report.draw(findings, measured.mean, out / "critical_batch.png")
    print(f"{text}\n\npage: {out / 'critical_batch.md'}, with .json, .csv and .png of the same name")
    return 0


def chosen_levels(measured: Measured, listed: str | None) -> list[float]:
    """Losses in falling order that the mean curve of every batch size passes. listed: by the flag."""
    means = measured.mean
    if listed is None:  # losses that every seed passes too
        curves = {size: [means[size], *seeds.values()] for size, seeds in measured.curves.items()}
        first = {size: min(c[0][1] for c in of_size) for size, of_size in curves.items()}
        last = {size: max(min(v for _, v in c) for c in of_size) for size, of_size in curves.items()}
        early, late = min(first, key=first.__getitem__), max(last, key=last.__getitem__)
        high, low = first[early], last[late]
        if high <= low:
            raise Failed(
                f"no loss is passed at every batch size after its warm-up: {late} gets down to {low:.4f}, {early} is "
                f"at {high:.4f} by its first evaluation; train {late} longer, or evaluate {early} earlier"
            )
        return fits.evenly(high, low, LEVELS)
    try:
        levels = sorted({float(text) for text in listed.split(",")}, reverse=True)
    except ValueError:
        raise UserError(f"--levels={listed}: expected losses, such as 2.5,2.25") from None
    for loss in levels:
        for size, points in means.items():
            lowest = min(v for _, v in points)
            if not lowest <= loss:
                raise UserError(f"--levels={loss:g}: batch size {size} does not reach it (its lowest is {lowest:.4f})")
            if points[0][1] < loss:
                raise UserError(
                    f"--levels={loss:g}: batch size {size} is under it at its first evaluation after the warm-up "
                    f"({points[0][1]:.4f} at step {points[0][0]:,})"
                )
    return levels


def level(fit: Fit, by_seed: Sequence[Sequence[Fit]], law: fits.Law | None, measured: Measured) -> Level:
    low, high = interval(fit, by_seed)
    return Level(
        loss=fit.loss,
        s_min=fit.s_min,
        e_min=fit.e_min,
        b_crit=fit.critical,
        b_crit_low=low,
        b_crit_high=high,
        b_crit_law=law.at(fit.loss) if law else None,
        noise_scale=noise_at(fit, measured),
        fit_error=fit.error,
        steps=dict(fit.steps),
    )


def interval(fit: Fit, by_seed: Sequence[Sequence[Fit]]) -> tuple[float, float] | tuple[None, None]:
    """95% interval of B_crit: the spread of its logarithm over fits seed by seed (Student's t), around the fit."""
    same = [f.critical for of_seed in by_seed for f in of_seed if f.loss == fit.loss]
    logs = [math.log(b) for b in same if b is not None]
    if fit.critical is None or len(logs) < 2 or len(logs) < len(by_seed):
        return None, None
    factor = math.exp(t95(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs)))
    return fit.critical / factor, fit.critical * factor


def noise_at(fit: Fit, measured: Measured) -> float | None:
    """The gradient noise scale when the runs were at this loss: the median over the batch sizes that logged it."""
    found = []
    for size, seeds in measured.runs.items():
        rows = [row for run in seeds.values() for row in run.rows]
        found.append(noise_scale(rows, fit.steps[size] / NEAR, fit.steps[size] * NEAR))
    known = [value for value in found if value is not None]
    return statistics.median(known) if known else None


def held_out(measured: Measured, size: int) -> HeldOut:
    """The curve of `size` as the other batch sizes predict it."""
    if size not in measured.curves:
        raise UserError(f"--hold-out={size}: expected one of {', '.join(map(str, measured.sizes))}")
    if len(measured.sizes) <= FEWEST:
        raise UserError(f"--hold-out={size}: leaves {len(measured.sizes) - 1} batch sizes, expected {FEWEST} or more")
    truth, others = measured.mean[size], {b: c for b, c in measured.mean.items() if b != size}
    prediction = fits.predicted(size, others)
    errors = fits.relative_errors(prediction, truth)
    if not prediction:
        raise Failed(
            f"--hold-out={size}: the other batch sizes have a B_crit at fewer than two losses, so no power law"
        )
    if not errors:
        raise Failed(f"--hold-out={size}: the other batch sizes share no losses with its evaluations")
    end = fits.common_range(others.values())[1]
    covered = [(step, loss) for step, loss in truth if errors[0][0] <= step <= errors[-1][0]]
    nearest = min(others, key=lambda b: abs(math.log(b / size)))
    same_samples = [(step * nearest / size, loss) for step, loss in others[nearest]]
    by_seed = []
    for curves in measured.by_seed:
        alone = fits.predicted(size, {b: c for b, c in curves.items() if b != size})
        by_seed.append(summary(fits.relative_errors(alone, curves[size])))
    return HeldOut(
        batch_size=size,
        others=list(others),
        covered=covered,
        last_step=truth[-1][0],
        errors=summary(errors),
        beyond=summary([e for e, (_, loss) in zip(errors, covered, strict=True) if loss < end]),
        by_seed=by_seed,
        nearest=nearest,
        at_same_samples=summary(fits.relative_errors(same_samples, covered)),
        at_same_steps=summary(fits.relative_errors(others[nearest], covered)),
        predicted=prediction,
    )


def summary(errors: Sequence[tuple[float, float]]) -> Errors:
    """The median and the largest of relative errors."""
    values = [error for _, error in errors]
    return Errors(len(values), statistics.median(values) if values else None, max(values, default=None))


def notes(fitted: Sequence[Fit], law: fits.Law | None, measured: Measured) -> list[str]:
    """What makes the figures less than they seem."""
    smallest, largest = measured.sizes[0], measured.sizes[-1]
    known = [f.critical for f in fitted if f.critical is not None]
    found = []
    if any(f.s_min == 0 for f in fitted):
        found.append(f"S_min 0: up to {largest} the steps fall as fast as the batch grows, B_crit lies beyond it")
    if any(f.e_min == 0 for f in fitted):
        found.append(f"E_min 0: from {smallest} on a larger batch saves no steps, B_crit lies below it")
    if known and not smallest <= statistics.median(known) <= largest:
        found.append(f"most of B_crit lies outside of the batch sizes {smallest} to {largest}: it is extrapolated")
    if law and law.exponent <= 0:
        found.append("B_crit does not grow as the loss falls, as the law has it: the noise is larger than the effect")
    if poor := [f for f in fitted if f.error > POOR]:
        found.append(f"the fit misses a measured number of steps by more than {POOR:.0%} at {len(poor)} of the losses")
    if any(run.decays for seeds in measured.runs.values() for run in seeds.values()):
        found.append("the rate decays towards each run's end: a loss reached earlier was reached at a higher rate")
    if len(measured.by_seed) < 2:
        found.append("fewer than two seeds that every batch size has: no intervals")
    return found
