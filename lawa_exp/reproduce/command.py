"""`python -m lawa_exp.reproduce PAPER`: plans, trains what is missing, reads everything, writes tables and plots."""

from __future__ import annotations

import argparse
from pathlib import Path

from lawa_exp.reproduce.book import FOLDER, PAPERS, SCALES
from lawa_exp.system import signals
from lawa_exp.system.cli import Parser, exit_code, threads
from lawa_exp.system.errors import UserError

LAUNCHERS = ("local", "slurm")
CURVES = Path("results/claims/curves.jsonl.gz")


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser().parse_args(arguments[:end])
    args.words = arguments[end + 1 :]

    def command() -> int:
        check_claim(args)
        from lawa_exp.reproduce.reproduction import reproduce  # torch and Hydra: not for --help

        signals.listen()
        return reproduce(args)

    return exit_code(command)


def check_claim(args: argparse.Namespace) -> None:
    """Fills in what goes with --claim. UserError: a flag goes with it alone, or not with it."""
    if not args.claim and args.seed is not None:
        raise UserError(f"--seed={args.seed} is of --claim, which is missing")
    if not args.claim:
        return
    for flag, given in (("plan", args.plan), ("read", args.read), ("launcher=slurm", args.launcher == "slurm")):
        if given:
            raise UserError(f"--{flag} does not go with --claim, which trains one run here, now")
    args.recompute, args.seed = args.recompute or CURVES, args.seed or 0


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.reproduce",
        description="Reruns the published claims of a paper and judges them: trains what is missing (a training that "
        "is there already is read), and writes Markdown, LaTeX, CSV and plots. Stopped, the same command goes on.",
    )
    p.add_argument("paper", metavar="PAPER", help=f"one of {', '.join(PAPERS)}, or all")
    p.add_argument(
        "--scale",
        choices=SCALES,
        default="cpu",
        help="cpu (default): small models on embedded data; paper: the exact configurations, trained by slurm",
    )
    p.add_argument("--plan", action="store_true", help="show runs and costs, and what is done already; train nothing")
    p.add_argument("--read", action="store_true", help="train nothing: judge from the runs that are there")
    p.add_argument(
        "--recompute",
        nargs="?",
        type=Path,
        const=CURVES,
        metavar="FILE",
        help=f"train and read no run: judge from the table of curves that a reproduction wrote next to its pages "
        f"(default: {CURVES})",
    )
    p.add_argument(
        "--claim",
        metavar="ID",
        help="train one run of this claim again, and say whether its losses are those of the table (--recompute) to "
        "the last digit",
    )
    p.add_argument("--seed", type=int, metavar="N", help="of the run of --claim (default: 0)")
    p.add_argument("--out", type=Path, help="where tables and plots go (default: RUNS_ROOT/reproduce/SCALE)")
    p.add_argument("--runs-root", default="runs", metavar="DIR", help="where the runs are (default: runs)")
    p.add_argument("--jobs", type=threads, default=1, help="sets of trainings at a time on this machine (default: 1)")
    p.add_argument("--launcher", choices=LAUNCHERS, default="local", help="slurm: queue what is missing and return")
    p.add_argument("--claims", type=Path, default=FOLDER, metavar="DIR", help="claims of your own, in files like ours")
    p.usage = p.format_usage().removeprefix("usage: ").rstrip() + " [-- KEY=VALUE ...]\n"
    p.epilog = "After --: Hydra overrides for every training, such as hydra.launcher.partition=NAME."
    return p
