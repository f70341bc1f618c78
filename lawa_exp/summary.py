"""`python -m lawa_exp.summary SWEEP`: what the runs of a multirun say together, over seeds."""

from __future__ import annotations

import sys
from pathlib import Path

from lawa_exp.results.summary import summarise
from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.files import check_output


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)

    def command() -> int:
        if args.out:
            check_output("--out", Path(args.out))
        print(summarise(Path(args.sweep), Path(args.out or args.sweep)))
        return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.summary",
        description="Tables (mean and standard deviation over seeds; differences to live, paired by seed, with their "
        "95% interval; choice on val and report on test) and a plot of the finished runs of a multirun.",
    )
    p.add_argument("sweep", metavar="SWEEP", help="a folder with a manifest.json: <runs_root>/sweeps/<name>")
    p.add_argument("--out", metavar="DIR", help="where summary.md and curves.png go (default: SWEEP)")
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
