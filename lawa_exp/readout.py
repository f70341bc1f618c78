"""`python -m lawa_exp.readout RUN`: averages and their evaluations from a saved trajectory, without training."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from pathlib import Path
from typing import Any

from lawa_exp import signals
from lawa_exp.averaging import AVERAGERS
from lawa_exp.averaging.flags import DEFAULTS, add_flags, plain
from lawa_exp.cli import Parser, exit_code
from lawa_exp.config import UserError, near, setting_names

RESERVED = ("test", "before-rerun")  # folders of readouts/ that the training writes


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)
    signals.listen()
    return exit_code(lambda: read(args))


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.readout",
        description="Averages of a finished or stopped run, recomputed from its snapshots and evaluated where its live "
        "weights were; the same bytes as if they had been attached while it trained. Lists combine as a product.",
    )
    p.add_argument("run", metavar="RUN", help="a run directory")
    p.add_argument("--avg", default="lawa", help=f"comma-separated: {', '.join(AVERAGERS)} (default: lawa)")
    add_flags(p, "comma-separated", {})
    p.add_argument("--name", help="the rows go to RUN/readouts/NAME (default: the averages' ids)")
    p.add_argument("--out", metavar="DIR", help="another folder for the rows")
    p.add_argument("--device", help="auto, cpu or cuda (default: the run's)")
    return p


def read(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from lawa_exp.checkpoint.commit import steps_in
    from lawa_exp.config import Options
    from lawa_exp.metrics import read_rows
    from lawa_exp.replay import problem_with, read_out
    from lawa_exp.report import draw_curves, readout_table
    from lawa_exp.run import prepare, start_device
    from lawa_exp.rundir import RunDir
    from lawa_exp.settings import config_from

    run = RunDir(Path(args.run))
    written = run.read_config()
    if written is None:
        raise UserError(f"RUN={args.run}: no run there (config.yaml is missing)")
    config = config_from(written)
    if args.name in RESERVED:
        raise UserError(f"--name={args.name} is the training's own; choose another")
    asked = list(combinations(args, int(config.trajectory.every or 1)))
    config = config_from({**written, "averagers": asked})
    device, ranks = start_device(args.device or config.trainer.device)
    options = Options(run_dir=args.run, runs_root=".", sweep=None, plan=False, rerun=False)
    p = prepare(config, options, device, ranks)
    if p.data.fingerprint != written["identity"]["dataset"]["fingerprint"]:
        raise UserError(f"dataset={config.dataset.name}: its content is not what {args.run} was trained on")
    rows = read_rows(run.metrics)
    last = max((r["step"] for r in rows if r["weights"] == "live" and r["split"] == "val"), default=0)
    saved = set(steps_in(run.trajectory))
    chosen = []
    for settings in p.config.averagers:
        problem = problem_with(settings, saved, last)
        if problem:
            print(f"{settings.id} is left out: {problem}")
        else:
            chosen.append(settings)
    if not chosen:
        raise UserError("none of these averages can be had from the saved snapshots")
    name = args.name or readout_name([s.id for s in chosen])
    out = Path(args.out) if args.out else run.readouts / name
    found = read_out(replace(p.config, averagers=()), p.data, run, chosen, out, device, ranks, print)
    print("\n" + readout_table(rows, found))
    draw_curves([r for r in rows if r["weights"] == "live"] + found, out / "curves.png", f"{config.model.name}: {name}")
    print(f"\nrows: {out / 'metrics.jsonl'}, plot: {out / 'curves.png'}")
    return 0


def readout_name(ids: list[str]) -> str:
    """The ids, or the first of them and a hash of all where that would be long."""
    name = "+".join(ids)
    return name if len(name) <= 80 else f"{ids[0]}+{len(ids) - 1}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def combinations(args: argparse.Namespace, snapshots: int) -> list[dict[str, Any]]:
    """One entry for each averager that the flags ask for. snapshots: steps between the run's snapshots."""
    entries = []
    for kind in args.avg.split(","):
        if kind not in AVERAGERS:
            raise UserError(f"--avg={kind}: {near(kind, AVERAGERS)}")
        lists = []
        names = setting_names(AVERAGERS[kind][0])
        for name in names:
            given = getattr(args, name) or DEFAULTS.get(name)
            lists.append([plain(v) for v in given.split(",")] if given else [snapshots])
        entries += [{"kind": kind, **dict(zip(names, values, strict=True))} for values in itertools.product(*lists)]
    return entries


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
