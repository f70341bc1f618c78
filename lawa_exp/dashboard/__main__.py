"""`python -m lawa_exp.dashboard SWEEP`: runs, curves and heat maps of a sweep as one HTML page, made from its files."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_output


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)

    def command() -> int:
        from lawa_exp.dashboard.collect import collect
        from lawa_exp.dashboard.page import write_page

        out = Path(args.out or Path(args.sweep) / "dashboard.html")
        if args.out:
            check_page(out)
        content = collect(Path(args.sweep), out, time.time())
        size = write_page(content, out)
        print(f"{len(content['runs']):,} run(s), {size}: {out}")
        return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.dashboard",
        description="One self-contained HTML page: a table of the runs that sorts and filters, validation curves by "
        "averager, heat maps of k against spacing, links into the run folders. It shows the moment it was written.",
    )
    p.add_argument("sweep", metavar="SWEEP", help="<runs_root>/sweeps/<name>, a run directory, or a folder of runs")
    p.add_argument("--out", metavar="FILE", help="the page (default: SWEEP/dashboard.html)")
    return p


def check_page(out: Path) -> None:
    """UserError: the page would replace what is no page, or a file of a run."""
    if (out.exists() or out.is_symlink()) and not out.is_file():
        raise UserError(f"--out={out}: is there already and is no file")
    if out.name != "dashboard.html":
        check_output("--out", out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
