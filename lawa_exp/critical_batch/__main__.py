"""`python -m lawa_exp.critical_batch SWEEP`: the critical batch size, from runs at several batch sizes."""

from __future__ import annotations

import sys

from lawa_exp.system.cli import Parser, exit_code


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)

    def command() -> int:
        from lawa_exp.critical_batch.command import analyse

        return analyse(args, ["python", "-m", "lawa_exp.critical_batch", *arguments])

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.critical_batch",
        description="From finished runs at three or more batch sizes: the steps S and samples E to each of several "
        "losses; S_min, E_min and B_crit = E_min / S_min of (S/S_min - 1)(E/E_min - 1) = 1; the power law B_crit(L). "
        "Where a batch size was trained in several ways (rates, say), the one that gets to the lowest loss counts, of "
        "those with the most seeds.",
    )
    p.add_argument("paths", metavar="SWEEP", nargs="+", help="<runs_root>/sweeps/<name>, or several run directories")
    p.add_argument("--levels", metavar="L,L,...", help="losses (default: 8 that all pass after their warm-up)")
    p.add_argument(
        "--hold-out", metavar="B", type=int, help="predict the loss curve of this batch size from the others"
    )
    p.add_argument("--weights", default="live", metavar="ID", help="an averager's id instead of the live weights")
    p.add_argument("--smooth", default=1, metavar="N", type=int, help="mean over N evaluations, odd (default: 1, none)")
    p.add_argument("--out", metavar="DIR", help="where critical_batch.* go (default: SWEEP, else the current folder)")
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
