"""The ladder of sizes (results/ladder/README.md): trains one rung after another, and collects the rows of its runs.

    python benchmarks/ladder.py train 0.12m           # the pilot, the judged runs; goes on where it stopped
    python benchmarks/ladder.py train horizons        # the papers' horizons at 0.12M
    python benchmarks/ladder.py train 0.12m --print   # the commands, as far as the peaks are known
    python benchmarks/ladder.py noise 0.12m           # of the evaluation's samples, from the weights of seed 0
    python benchmarks/ladder.py collect               # results/ladder/rows.jsonl.gz

Needs the data set enwiki2015 in LAWA_DATA. What the table of `collect` has is not trained again.
Nothing is chosen by hand.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SMOKE = "gpt_smoke"  # a model that is trained on other data, to see that scripts work
PILOT = 100  # the seed of the pilot; never judged
EMA4 = "ema-hl4pct-e1"
SHORTEST_WARMUP = 60  # steps
WITHIN = 0.05  # nats: a rate is "high" while its live end is this near to the best one's


@dataclass(frozen=True)
class Rung:
    """One size: its model, dtype, horizons in steps (of 2,048 tokens), seeds, and the peaks of its pilot."""

    model: str
    dtype: str
    horizons: tuple[int, ...]
    high_rate: tuple[int, ...]  # the horizons that the trunk at the high rate reaches
    seeds: tuple[int, ...]
    constant: tuple[float, ...]
    cosine: tuple[float, ...]
    pilot: tuple[int, ...]  # the horizons at which peaks are chosen; one takes the peak of the last at or below it

    @property
    def warmup(self) -> int:
        return max(self.horizons[0] // 10, SHORTEST_WARMUP)

    @property
    def name(self) -> str:
        return self.model.split()[0].partition("=")[2]

    def kind(self, schedule: str) -> dict[str, Any]:
        return {"name": self.name, "schedule": schedule, "warmup_steps": self.warmup}

    @property
    def words(self) -> str:
        return f"experiment=ladder {self.model} trainer.dtype={self.dtype} lr.warmup_steps={self.warmup}"


def shape(name: str, layers: int, width: int, heads: int) -> str:
    return f"model.name={name} model.layers={layers} model.width={width} model.heads={heads}"


RUNGS = {
    "0.12m": Rung(
        shape("gpt_0.12m", 2, 64, 4), "float32", (150, 300, 600, 1200, 2400), (150, 300, 600, 1200, 2400), (0, 1, 2, 3),
        (2e-3, 2.8e-3, 4e-3, 5.7e-3, 8e-3, 11.3e-3, 16e-3), (2e-3, 4e-3, 8e-3, 16e-3), (150, 300, 600, 1200, 2400),
    ),
    "0.8m": Rung(
        shape("gpt_0.8m", 4, 128, 4), "bfloat16", (1020, 2040, 4080, 8160), (1020, 2040, 4080, 8160), (0, 1, 2, 3),
        (1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.7e-3, 8e-3), (1e-3, 2e-3, 4e-3, 8e-3), (1020, 4080),
    ),
    "2.7m": Rung(
        shape("gpt_2.7m", 6, 192, 6), "bfloat16", (3330, 6660, 13320), (3330, 6660), (0, 1),
        (1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.7e-3), (1e-3, 2e-3, 4e-3), (3330,),
    ),
    "4.8m": Rung(
        shape("gpt_4.8m", 6, 256, 8), "bfloat16", (5880,), (), (0, 1),
        (1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3), (1e-3, 2e-3, 4e-3), (5880,),
    ),
}  # fmt: skip

HORIZONS = (1200, 2400, 4800)  # 1, 2 and 4 Chinchilla (20 tokens a parameter) at 0.12M
WARMUP = 480  # 40% of the first, as Meterez et al.'s 5,000 of 12,500 steps
BASE = f"experiment=ladder {shape('gpt_0.12m', 2, 64, 4)} trainer.dtype=float32 lr.warmup_steps={WARMUP}"
FEW = "k=10 spacing=16 averagers.ema.decay=half_life:4% averagers.ema.every=1"
SCHEDULES = {  # of the horizons: words; all but the first two are trained for each horizon
    "constant": "lr=constant",
    "inverse_sqrt": "lr=inverse_sqrt lr.timescale=4915",  # 51,200 of 12,500 steps
    "cosine": "lr=cosine",
    "cosine_to_zero": "lr=cosine_to_zero",
    "wsd_linear": "lr=wsd init.from=stable lr.decay_steps=10% lr.shape=linear lr.final_ratio=0.1 avg=none",
    "wsd_sqrt": "lr=wsd init.from=stable lr.decay_steps=20% avg=none",
}
ONE_RUN = ("constant", "inverse_sqrt")


def listed(values: Sequence[Any]) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


@dataclass(frozen=True)
class Command:
    """A multirun, and what it trains: (what identifies a run, step)."""

    words: list[str]
    cells: list[tuple[dict[str, Any], int]]


def multirun(
    words: str, kind: dict[str, Any], peaks: Sequence[float], steps: Sequence[int], seeds: Sequence[int]
) -> Command:
    """kind: what identifies its runs, besides peak, seed and (of schedules that have one) horizon."""
    swept = [f"lr.peak={listed(peaks)}", f"steps={listed(steps)}", f"seed={listed(seeds)}"]
    planned = kind["schedule"] not in ONE_RUN
    cells = [
        ({**kind, "peak": p, "seed": s, **({"horizon": h} if planned else {})}, h)
        for p in peaks
        for h in steps
        for s in seeds
    ]
    return Command([sys.executable, "-m", "lawa_exp", "-m", *shlex.split(words), *swept], cells)


def trunk(
    rung: Rung, peak: Sequence[float], horizons: Sequence[int], seeds: Sequence[int], few: bool = False
) -> Command:
    keep = f"save.keep=[{listed([8 * h // 10 for h in rung.horizons])}]"
    words = f"{rung.words} lr=constant {keep} {FEW if few else ''}"
    return multirun(words, rung.kind("constant"), peak, horizons, seeds)


def cosines(rung: Rung, peak: Sequence[float], horizons: Sequence[int], seeds: Sequence[int]) -> Command:
    return multirun(f"{rung.words} lr=cosine {FEW}", rung.kind("cosine"), peak, horizons, seeds)


def cooldowns(rung: Rung, peak: float, seeds: Sequence[int]) -> Command:
    words = f"{rung.words} lr=wsd init.from=stable lr.decay_steps=20% avg=none"
    return multirun(words, rung.kind("wsd"), [peak], rung.horizons, seeds)


class NotTrained(Exception):
    pass


class Runs:
    """The runs under a folder, and those of a table that `collect` wrote, by what was trained."""

    def __init__(self, root: Path, table: Path) -> None:
        collected = gzip.decompress(table.read_bytes()).decode().splitlines() if table.exists() else []
        known = {run["id"]: run for run in map(json.loads, collected)}
        known |= {run["id"]: run for run in map(read_run, sorted(root.glob("*/config.yaml"))) if run}
        self.runs = list(known.values())

    def value(self, want: dict[str, Any], step: int, weights: str, split: str = "val") -> float:
        """The loss; inf where it diverged. NotTrained where no such run is known."""
        for run in self.runs:
            if all(run["key"].get(k) == v for k, v in want.items()):
                of = [r["loss"] for r in run["rows"] if (r["step"], r["weights"], r["split"]) == (step, weights, split)]
                if of or run["diverged"]:
                    return of[0] if of and of[0] is not None else math.inf
        raise NotTrained(f"{want}: {weights} at step {step} is not trained yet")

    def have(self, command: Command) -> bool:
        """Whether all that it trains is known, up to the test rows, which come last."""
        try:
            for want, step in command.cells:
                self.value(want, step, "live", "test")
            return True
        except NotTrained:
            return False


def read_run(config: Path) -> dict[str, Any] | None:
    """What identifies a run of the ladder, and its rows of val and of test, where it has them; None of other runs."""
    values = yaml.safe_load(config.read_text())
    if values["dataset"]["name"] != "enwiki2015" and values["model"]["name"] != SMOKE:
        return None
    lr = values["lr"]
    key = {"name": values["model"]["name"], "seed": values["seed"], "schedule": lr["kind"], "peak": lr["peak"]}
    key |= {
        k: lr[k] for k in ("warmup_steps", "horizon", "decay_steps", "shape", "final_ratio", "timescale") if k in lr
    }
    folder = config.parent
    files = [folder / "metrics.jsonl", folder / "readouts" / "test" / "metrics.jsonl"]
    rows = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    training = [r for r in rows if r["split"] == "train"]
    rows = [r for r in rows if r["split"] != "train"]
    if not rows:
        return None
    facts = {"id": values["trajectory_id"], "key": key, "diverged": (folder / "DIVERGED").exists()}
    return {**facts, "early": {h: early(training, h) for h in sorted({r["step"] for r in rows} - {0})}, "rows": rows}


def early(training: list[dict[str, Any]], horizon: int) -> float | None:
    """The mean training loss around a fifth of the horizon: it tells a run that stays long on the first plateau."""
    losses = [r["loss"] for r in training if 0.15 * horizon <= r["step"] <= 0.25 * horizon and r["loss"] is not None]
    return statistics.fmean(losses) if losses else None


def best(losses: dict[float, float], what: str) -> float:
    """The peak with the lowest loss. Exits where it is at the edge of its grid, which is then to be extended."""
    found = min(losses, key=lambda peak: losses[peak])
    if found in (min(losses), max(losses)):
        raise SystemExit(f"{what}: the best peak, {found:g}, is at the edge of {sorted(losses)}; extend the grid")
    return found


def peaks(rung: Rung, runs: Runs) -> dict[str, Any]:
    """What the pilot chooses, by the rules of results/ladder/README.md."""
    constant, at = {**rung.kind("constant"), "seed": PILOT}, rung.pilot[-1]
    live = {p: runs.value({**constant, "peak": p}, at, "live") for p in rung.constant}
    ema = {p: runs.value({**constant, "peak": p}, at, EMA4) for p in rung.constant}
    usual = best(live, "constant rate")
    high = max(p for p in live if live[p] <= live[usual] + WITHIN)
    cosine: dict[int, float] = {}
    for h in rung.pilot:
        kind = {**rung.kind("cosine"), "horizon": h, "seed": PILOT}
        cosine[h] = best({p: runs.value({**kind, "peak": p}, h, "live") for p in rung.cosine}, f"cosine at {h}")
    of = {h: cosine[max(p for p in rung.pilot if p <= h)] for h in rung.horizons}
    return {"usual": usual, "high": high, "ema": min((usual, high), key=lambda p: ema[p]), "cosine": of}


def rung_commands(rung: Rung, known: Callable[[], Runs]) -> Iterator[Command]:
    yield trunk(rung, rung.constant, rung.pilot, [PILOT], few=True)
    yield cosines(rung, rung.cosine, rung.pilot, [PILOT])
    chosen = peaks(rung, known())
    print(f"peaks: {chosen}", flush=True)
    for seed in rung.seeds:
        yield trunk(rung, [chosen["usual"]], rung.horizons, [seed])
        last = rung.horizons if chosen["ema"] == chosen["high"] else rung.high_rate
        if last and chosen["high"] != chosen["usual"]:
            yield trunk(rung, [chosen["high"]], last, [seed])
        for peak in sorted(set(chosen["cosine"].values())):
            yield cosines(rung, [peak], [h for h, p in chosen["cosine"].items() if p == peak], [seed])
        yield cooldowns(rung, chosen["ema"], [seed])


def horizon_commands(known: Callable[[], Runs]) -> Iterator[Command]:
    """Peaks 2e-3, 4e-3 and 8e-3 on the pilot's seed, then each schedule at each horizon with its own best peak."""
    grid, keep = (2e-3, 4e-3, 8e-3), f"save.keep=[{listed([s for h in HORIZONS for s in (8 * h // 10, 9 * h // 10)])}]"

    def command(schedule: str, peaks: Sequence[float], steps: Sequence[int], seed: int) -> Command:
        extra = keep if schedule == "constant" else ""
        averages = "" if "avg=none" in SCHEDULES[schedule] else FEW
        return multirun(f"{BASE} {SCHEDULES[schedule]} {extra} {averages}", kind(schedule), peaks, steps, [seed])

    def kind(schedule: str) -> dict[str, Any]:
        name = schedule.removesuffix("_to_zero").removesuffix("_linear") if schedule != "wsd_sqrt" else "wsd"
        found: dict[str, Any] = {"name": "gpt_0.12m", "schedule": name, "warmup_steps": WARMUP}
        if name == "wsd":
            found["shape"] = "linear" if schedule == "wsd_linear" else "1-sqrt"
        if name == "cosine":
            found["final_ratio"] = 0.0 if schedule == "cosine_to_zero" else 0.1
        return found

    for schedule in SCHEDULES:
        yield command(schedule, grid, HORIZONS, PILOT)
    runs, chosen = known(), {}
    for schedule in SCHEDULES:
        for h in HORIZONS:
            at = {**kind(schedule), "seed": PILOT, **({} if schedule in ONE_RUN else {"horizon": h})}
            weights = EMA4 if schedule in ONE_RUN else "live"
            losses = {p: runs.value({**at, "peak": p}, h, weights) for p in grid}
            chosen[schedule, h] = min(losses, key=lambda peak: losses[peak])  # of three: an edge is reported
    print(f"peaks: {chosen}", flush=True)
    for seed in range(8):
        for schedule in SCHEDULES:
            for peak in grid:
                at = [h for h in HORIZONS if chosen[schedule, h] == peak]
                if schedule == "constant":  # the cool-downs of this peak go on from it
                    at = [h for h in HORIZONS if peak in (chosen[s, h] for s in ("constant", "wsd_linear", "wsd_sqrt"))]
                if at:
                    yield command(schedule, [peak], at, seed)


def noise(rung: Rung, root: Path, known: Runs) -> dict[str, dict[str, float]]:
    """The evaluation's samples' part in each effect: on test at the last horizon, seed 0, paired by batch."""
    import torch

    from lawa_exp.evaluation.score import OnModel
    from lawa_exp.readout.noise import paired
    from lawa_exp.runs.choices import config_from
    from lawa_exp.runs.prepare import open_dataset
    from lawa_exp.storage.safetensors import map_stored
    from lawa_exp.system.distributed import Ranks

    chosen, last = peaks(rung, known), rung.horizons[-1]
    step = f"step_{last:08d}"
    folders = {path.name.split("-")[-1]: path for path in root.glob("gpt_*")}

    def run(schedule: str, peak: float, **more: Any) -> Path:
        want = {**rung.kind(schedule), "seed": 0, "peak": peak, **more}
        found = [r for r in known.runs if all(r["key"].get(k) == v for k, v in want.items())]
        return folders[found[0]["id"]]

    usual, of_ema = run("constant", chosen["usual"]), run("constant", chosen["ema"])
    weights = {
        "live": usual / "resume" / step,
        "ema": usual / "averages" / EMA4 / step,
        "lawa": usual / "averages" / "lawa-k10-s8" / step,
        "ema_equal": usual / "averages" / "ema-lawa10-e8" / step,
        "ema_fair": of_ema / "averages" / EMA4 / step,
        "cooldown": run("wsd", chosen["ema"], horizon=last) / "resume" / step,
        "cosine": run("cosine", chosen["cosine"][last], horizon=last) / "resume" / step,
    }
    config = config_from(yaml.safe_load((usual / "config.yaml").read_text()))
    score = OnModel(config, open_dataset(config.dataset, config.model.context), torch.device("cpu"), Ranks())
    sums = {name: score(map_stored(folder), "test").sums for name, folder in weights.items()}
    pairs = {
        "E1": ("live", "ema"),
        "E2": ("ema_fair", "cooldown"),
        "E3": ("ema_fair", "cosine"),
        "E5": ("lawa", "ema_equal"),
    }
    found = {effect: paired(sums[a], sums[b]) for effect, (a, b) in pairs.items()}
    return {effect: {"difference": mean, "half": half} for effect, (mean, half) in found.items()}


def collect(known: Runs, out: Path) -> None:
    """The evaluation rows of every run: one JSON object a run and line, gzipped; the same rows give the same bytes."""
    lines = [json.dumps(run, sort_keys=True) + "\n" for run in sorted(known.runs, key=lambda r: r["id"])]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write("".join(lines).encode())
    print(f"{out}: {len(lines)} runs")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=["train", "noise", "collect"])
    p.add_argument("size", nargs="?", choices=[*RUNGS, "horizons"])
    p.add_argument("--root", type=Path, default=Path("runs/ladder"))
    p.add_argument("--out", type=Path, default=Path("results/ladder/rows.jsonl.gz"))
    p.add_argument("--print", action="store_true", help="print the commands and train nothing")
    args = p.parse_args()

    def known() -> Runs:
        return Runs(args.root, args.out)

    if args.what == "collect":
        collect(known(), args.out)
        return 0
    if args.size is None:
        p.error(f"{args.what} needs a size")
    if args.what == "noise":
        out = args.out.with_name(f"noise_{args.size}.json")
        out.write_text(json.dumps(noise(RUNGS[args.size], args.root, known()), indent=1) + "\n")
        return 0
    try:
        for command in horizon_commands(known) if args.size == "horizons" else rung_commands(RUNGS[args.size], known):
            words = [*command.words, f"runs_root={args.root}"]
            is_known = known().have(command)
            print(("known: " if is_known else "") + shlex.join(words), flush=True)
            if not (is_known or args.print) and (code := subprocess.run(words).returncode):
                return code
    except NotTrained as error:
        raise SystemExit(str(error)) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
