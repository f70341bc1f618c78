"""The runs that are compared: one way of training at each batch size, and its loss curves over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from lawa_exp.critical_batch.fits import smoothed
from lawa_exp.results.statistics import Curve, curve
from lawa_exp.storage import manifest
from lawa_exp.storage.rows import Row, each_row, policy_of, read_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError

FEWEST = 3  # batch sizes in a fit of two unknowns


class Batch(TypedDict):
    """How the batch is sized."""

    kind: str
    size: int


class Rate(TypedDict):
    """horizon: of a schedule that depends on it."""

    kind: str
    warmup_steps: int
    horizon: NotRequired[int]


class Identity(TypedDict):
    """What is used here of what determined a run's weights (`identity` in its config.yaml)."""

    model: dict[str, object]
    dataset: dict[str, object]
    batch: Batch
    lr: Rate
    seed: int


@dataclass(frozen=True)
class Run:
    """A finished run. variant: its identity but for the batch and the seed; warmup: steps; decays: its rate does."""

    path: Path
    size: int
    seed: int
    variant: str
    warmup: int
    decays: bool
    rows: list[Row]


@dataclass(frozen=True)
class Measured:
    """Runs and loss curves (smoothed, after the warm-up) by batch size, ascending, and seed."""

    runs: Mapping[int, Mapping[int, Run]]
    curves: Mapping[int, Mapping[int, Curve]]

    @property
    def sizes(self) -> list[int]:
        return list(self.runs)

    @property
    def mean(self) -> dict[int, Curve]:
        """By batch size: the mean over its seeds, at the steps that all of them evaluated."""
        return {size: mean_curve(list(seeds.values())) for size, seeds in self.curves.items()}

    @property
    def by_seed(self) -> list[dict[int, Curve]]:
        """The same of each seed that every batch size has."""
        common = sorted(set.intersection(*(set(seeds) for seeds in self.curves.values())))
        return [{size: seeds[seed] for size, seeds in self.curves.items()} for seed in common]

    @property
    def tokens_per_sample(self) -> int:
        run = next(iter(self.runs[self.sizes[0]].values()))
        row = next(r for r in reversed(run.rows) if r.get("trained_samples"))
        return row["trained_tokens"] // row["trained_samples"]


def is_sweep(path: Path) -> bool:
    return (path / manifest.NAME).exists()


def read_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The finished runs of these sweeps and run directories, each once, and a line on each of the others."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        if is_sweep(path):
            folders |= dict.fromkeys(e["run_dir"] for e in manifest.read(path, runs_alone=True)["entries"])
        elif (path / "config.yaml").exists():
            folders[path] = None
        else:
            raise UserError(f"SWEEP={path}: expected a sweep (manifest.json) or a run directory (config.yaml)")
    others = {folder: why for folder in folders if (why := manifest.not_finished(folder))}
    done = [folder for folder in folders if folder not in others]
    left_out = [f"{folder.name} is {why}, and left out" for folder, why in others.items()]
    if not done:
        raise UserError(f"SWEEP={paths[0]}: none of its runs is finished" + (f" ({left_out[0]})" if left_out else ""))
    identities = {folder: identity(folder) for folder in done}
    parts: tuple[Literal["model", "dataset"], ...] = ("model", "dataset")
    for part in parts:
        one = next((f for f in done if identities[f][part] != identities[done[0]][part]), None)
        if one:
            raise UserError(f"SWEEP: {one.name} and {done[0].name} differ in {part}; expected the same everywhere")
    return [read_run(f, identities[f]) for f in done], left_out


def identity(folder: Path) -> Identity:
    """What determined the weights; UserError where config.yaml is missing or damaged."""
    content = RunDir(folder).read_config()
    if content is None or "identity" not in content:
        raise UserError(f"SWEEP: {folder} has no config.yaml that tells how it was trained")
    trained: Identity = content["identity"]
    return trained


def read_run(folder: Path, identity: Identity) -> Run:
    batch, lr = identity["batch"], identity["lr"]
    if batch["kind"] != "constant":
        raise UserError(f"SWEEP: {folder.name} has batch={batch['kind']}; expected batch=constant")
    variant = json.dumps({k: v for k, v in identity.items() if k not in ("batch", "seed")}, sort_keys=True)
    rows = [r for r in each_row(folder / "metrics.jsonl") if r["split"] != "train" or "grad_squared" in r]
    decays = "horizon" in lr or lr["kind"] == "step"
    return Run(folder, batch["size"], identity["seed"], variant, lr["warmup_steps"], decays, rows)


def measure(runs: Iterable[Run], weights: str, smooth: int) -> Measured:
    """The loss curves of `weights`; UserError for fewer than three batch sizes, or no evaluations of them."""
    found: dict[int, dict[str, dict[int, Run]]] = {}
    runs = list(runs)
    if len(policies := {policy_of(run.rows) for run in runs}) > 1:
        raise UserError(
            f"SWEEP: its runs were evaluated with evaluate.bn={' and '.join(sorted(map(str, policies)))}; expected the "
            "same BatchNorm statistics everywhere"
        )
    for run in runs:
        found.setdefault(run.size, {}).setdefault(run.variant, {})[run.seed] = run
    if len(found) < FEWEST:
        sizes = ", ".join(map(str, sorted(found)))
        raise UserError(f"SWEEP: only batch size {sizes}; expected {FEWEST} different ones or more")
    chosen: dict[int, dict[int, Run]] = {}
    curves: dict[int, dict[int, Curve]] = {}
    for size in sorted(found):
        tried = {v: {seed: loss_curve(r, weights, smooth) for seed, r in rs.items()} for v, rs in found[size].items()}
        most = max(map(len, tried.values()))  # a way tried with one seed alone says little beside one with three
        tried = {v: cs for v, cs in tried.items() if len(cs) == most}
        lowest = {v: min(loss for _, loss in mean_curve(list(cs.values()))) for v, cs in tried.items()}
        best = min(lowest, key=lowest.__getitem__)
        chosen[size], curves[size] = found[size][best], tried[best]
    return Measured(chosen, curves)


def loss_curve(run: Run, weights: str, smooth: int) -> Curve:
    points = curve(run.rows, weights) or curve(read_rows(run.path / "readouts" / weights / "metrics.jsonl"), weights)
    points = [(s, v) for s, v in points if s >= max(run.warmup, 1)]
    if len(points) < 2:
        raise UserError(f"--weights={weights}: {run.path.name} has {len(points)} evaluations of it after its warm-up")
    return smoothed(points, smooth)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    by_step = [dict(c) for c in curves]
    steps = sorted(set.intersection(*(set(c) for c in by_step)))
    return [(s, statistics.fmean(c[s] for c in by_step)) for s in steps]
