"""The loss along the line from the live weights to an average, and how far snapshots lie apart."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.reproduce.material import Material
from lawa_exp.results.sheets import Sheet, ramp
from lawa_exp.results.tables import NATS
from lawa_exp.system.files import read_json, write_text_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from lawa_exp.evaluation.score import Score

ALPHAS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
NUMBERS = "line.json"  # where what was computed is kept


@dataclass(frozen=True)
class Along:
    """alphas: 0 is the live weights after `step`, 1 the average; losses: val, in nats; apart: L2 between the two.

    steps: of the snapshots; distances: between each two of them, L2 over all averaged weights, [T, T].
    """

    step: int
    weights: str
    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    apart: float
    steps: tuple[int, ...]
    distances: tuple[tuple[float, ...], ...]


def losses_on_line(
    score: Score,
    live: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    averaged: frozenset[str],
    step: int,
    id: str,
    bn: str | None = None,
) -> list[float]:
    """The val loss at (1 - alpha) live + alpha average for each of ALPHAS; what is not averaged is the average's.

    bn: as `batchnorm.policy` gives it.
    """
    from lawa_exp.averaging.arithmetic import weighted_mean
    from lawa_exp.evaluation.read_out import evaluated

    points = (weighted_mean([live, average], [1 - a, a], averaged) for a in ALPHAS)
    return [evaluated(score, w, id, step, bn=bn).fields["loss"] for w in points]


def distances(snapshots: Sequence[Mapping[str, Tensor]], averaged: frozenset[str]) -> list[list[float]]:
    """L2 between each two, over the averaged weights in float64, [T, T]."""
    import torch

    flat = torch.stack([torch.cat([s[n].flatten().double() for n in sorted(averaged)]) for s in snapshots])
    return [[round(float(x), 4) for x in (flat - row).norm(dim=1)] for row in flat]


def measure_line(folder: Path, id: str) -> Along | None:
    """Of a finished run and the average `id` that was kept after its last step; None where either is not there."""
    from lawa_exp.config.shared import Options
    from lawa_exp.evaluation.replay import read_snapshot
    from lawa_exp.evaluation.score import OnModel
    from lawa_exp.readout.attached import Attached
    from lawa_exp.runs.builders import admit
    from lawa_exp.runs.choices import config_from, unresolved_from
    from lawa_exp.runs.folder import check_content
    from lawa_exp.runs.prepare import prepare
    from lawa_exp.storage.origin import snapshots_of
    from lawa_exp.storage.rundir import RunDir
    from lawa_exp.system.distributed import start_device
    from lawa_exp.system.errors import UserError

    run = RunDir(folder)
    written = run.read_config()
    if written is None:
        return None
    config = config_from(written)
    step = config.steps
    snapshots = snapshots_of(run)
    kept = next((Attached(a, run) for a in config.averagers if a.id == id), None)
    if kept is None or step not in kept.paths or step not in snapshots:
        return None
    device, ranks = start_device(config.trainer.device)
    options = Options(run_dir=str(folder), runs_root=".", plan=False, rerun=False)
    in_memory = {**written["trajectory"], "window": "memory"}
    unresolved = unresolved_from({**written, "averagers": [], "trajectory": in_memory})
    admit(unresolved, written, folder, trust=False)
    p = prepare(unresolved, options, device, ranks)
    if p.data.fingerprint != written["identity"]["dataset"]["fingerprint"]:
        raise UserError(f"dataset={config.dataset.name}: its content is not what {folder} was trained on")
    check_content(run, p, ranks)
    score = OnModel(p.config, p.data, device, ranks)
    tensors = [read_snapshot(path) for path in snapshots.values()]
    live, average = read_snapshot(snapshots[step]), kept.weights(step)
    losses = losses_on_line(score, live, average, score.averaged, step, id, score.bn)
    apart = distances([live, average], score.averaged)[0][1]
    every = distances(tensors, score.averaged)
    return Along(step, id, ALPHAS, tuple(losses), apart, tuple(snapshots), tuple(tuple(row) for row in every))


def lines(folders: Sequence[Path], id: str, kept: Path) -> list[Along]:
    """`measure_line` of each run; what was computed before is read from the JSON file `kept`."""
    known: dict[str, Any] = read_json(kept) if kept.exists() else {}
    for folder in folders:
        key = f"{folder.name} {id}"
        if key not in known and (found := measure_line(folder, id)):
            known[key] = dataclasses.asdict(found)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(kept, json.dumps(known) + "\n")
    return [Along(**known[key]) for key in (f"{folder.name} {id}" for folder in folders) if key in known]


def line_to_average(m: Material) -> Sheet | None:
    """Val loss from the live weights to LAWA as published, and the distances between snapshots, after the last step."""
    id = m.names.get("lawa")
    found = {
        title: lines([r.folder for r in runs], str(id), m.cache / NUMBERS) for title, runs in m.schedules().items()
    }
    found = {title: alongs for title, alongs in found.items() if alongs}
    if not id or not found:
        return None
    first, shown = next(iter(found.items()))
    heads = ["loss on the line", "distance against lag", f"distances, {first}"]
    sheet = Sheet.of(heads, share_y=False)
    line, lag, matrix = sheet.panels
    for n, (title, alongs) in enumerate(found.items()):
        here = [a.losses[a.alphas.index(0.0)] for a in alongs]
        by_alpha = zip(alongs[0].alphas, *(a.losses for a in alongs), strict=True)
        rises = {alpha: [v - h for v, h in zip(values, here, strict=True)] for alpha, *values in by_alpha}
        sheet.line(0, title, rises, ramp(n, 3))
        sheet.line(1, title, by_lag(alongs), ramp(n, 3))
    line.axvline(0, color="0.35", linewidth=0.9, zorder=1)
    line.axvline(1, color="0.35", linewidth=0.9, linestyle=":", zorder=1)
    line.axhline(0, color="0.35", linewidth=0.9, zorder=1)
    line.set_xlabel("position on the line (0: live, 1: average)")
    line.set_ylabel(f"validation loss minus live's ({NATS})")
    lag.set_xlabel("lag |t - s| (steps)")
    lag.set_ylabel("‖θ(t) - θ(s)‖ (L2, all weights)")
    lag.set_ylim(bottom=0)
    steps = shown[0].steps
    picture = matrix.pcolormesh(steps, steps, shown[0].distances, cmap="cividis", shading="nearest", rasterized=True)
    matrix.grid(False)
    matrix.set_aspect("equal")
    matrix.set_xlabel("step s (optimizer updates)")
    matrix.set_ylabel("step t (optimizer updates)")
    sheet.figure.colorbar(picture, ax=matrix, label="‖θ(t) - θ(s)‖ (L2)")
    sheet.rows += [
        [heads[2], f"t = {t}", s, d, "", 1]
        for t, row in zip(steps, shown[0].distances, strict=True)
        for s, d in zip(steps, row, strict=True)
    ]
    apart = ", ".join(f"{title} {sum(a.apart for a in alongs) / len(alongs):.3g}" for title, alongs in found.items())
    sheet.notes.append(f"distance from live to average: {apart}")
    return sheet.legend()


def by_lag(alongs: Sequence[Along]) -> dict[float, list[float]]:
    """{lag: mean distance of each run}, over the snapshots of the last half of the budget."""
    found: dict[float, list[float]] = {}
    for a in alongs:
        late = [i for i, s in enumerate(a.steps) if s >= a.step / 2]
        own: dict[int, list[float]] = {}
        for i in late:
            for j in late:
                if j > i:
                    own.setdefault(a.steps[j] - a.steps[i], []).append(a.distances[i][j])
        for gap, values in own.items():
            found.setdefault(gap, []).append(math.fsum(values) / len(values))
    return found
