"""`python -m lawa_exp.status SWEEP`: every run of a sweep: queued, running, done, diverged, failed, stopped or lost."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import one_line

if TYPE_CHECKING:
    from lawa_exp.status.standing import Standing

STATES_HELP = """
running       step, throughput and time left are those of its last heartbeat (every 5 seconds)
starting      its process is there, or its SLURM job runs, and no step is done yet
queued        SLURM has its job, and says why it waits
submitted     to SLURM, whose queue cannot be read on this machine
not started   nothing is there yet: its turn comes, or the sweep's command was stopped
stopped       by a signal, and saved: the same command goes on
lost          it was killed, or its machine: no sign of life since then; the same command goes on
damaged       a file of its folder is not what was written, and which
failed        with the last line of its error
diverged, done
"""


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)

    def command() -> int:
        if not args.watch:
            height = None if args.all else shutil.get_terminal_size().lines
            print(show(Path(args.sweep), args.json, height), flush=True)
            return 0
        try:
            while True:
                refresh(show(Path(args.sweep), args.json, shutil.get_terminal_size().lines))
                time.sleep(args.watch)
        except KeyboardInterrupt:
            return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.status",
        description="How every run of a sweep stands. Nothing is written, and no run is disturbed.",
        epilog=f"states:{STATES_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("sweep", metavar="SWEEP", help="<runs_root>/sweeps/<name>, a run directory, or a folder of runs")
    p.add_argument(
        "--watch", nargs="?", const=5.0, type=positive, metavar="SECONDS", help="refresh (every 5 s) until Ctrl-C"
    )
    p.add_argument("--all", action="store_true", help="every run, also where they do not fit on the terminal")
    p.add_argument("--json", action="store_true", help="one JSON object, for scripts: what is null is not known")
    return p


def positive(text: str) -> float:
    """ValueError for what is no number above 0."""
    if not 0 < (number := float(text)) < 1e6:
        raise ValueError(text)
    return number


def refresh(text: str) -> None:
    """In place on a terminal, below what was printed elsewhere."""
    print(f"\x1b[H\x1b[J{text}" if on_terminal() else text, flush=True)


def show(sweep: Path, as_json: bool, height: int | None) -> str:
    """The answer, as it stands now. height: of the terminal that it has to fit on."""
    from lawa_exp.status.runs import list_runs
    from lawa_exp.status.standing import STATES, standings

    found, problem = standings(list_runs(sweep), now := time.time())
    counts = Counter(s.state for s in found)
    if as_json:
        counted = {state: counts[state] for state in STATES}
        return json.dumps({"time": now, "squeue": problem, "counts": counted, "runs": [s.as_json() for s in found]})
    said = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    lines = [f"{len(found):,} run{'s' * (len(found) != 1)}: {said}", *([f"warning: {problem}"] if problem else []), ""]
    shown = table(sorted(found, key=lambda s: STATES.index(s.state)), now)
    room = len(shown) if height is None or not on_terminal() else max(height - len(lines) - 2, 5)
    left = [f"... and {len(shown) - room:,} more (--all)"] if len(shown) > room else []
    return "\n".join([one_line(line) for line in lines] + [*shown[:room], *left])


def table(standings: list[Standing], now: float) -> list[str]:
    """A line for each run under a head; on a terminal cut to its width."""
    from lawa_exp.status.standing import duration

    cells = [("run", "state", "step", "throughput", "time left", "restarts", "")]
    for s in standings:
        step = (
            "" if s.step is None and s.steps is None else f"{s.step or 0:,}/{s.steps:,}" if s.steps else f"{s.step:,}"
        )
        speed = "" if s.tokens_per_second is None else f"{s.tokens_per_second:,.0f} {s.unit}s/s"
        left = "" if s.state != "running" else "?" if s.seconds_left is None else duration(s.seconds_left)
        since = f"since {moment(s.since, now)}" if s.since and s.state not in ("running", "done") else ""
        note = one_line(": ".join(part for part in (since, s.note) if part))
        name = " ".join(s.run.overrides) or s.run.path.resolve().name
        cells.append((one_line(name), s.state, step, speed, left, f"{s.restarts or ''}", note))
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    lines = []
    for row in cells:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))]
        lines.append("  ".join([*padded, row[6]]).rstrip())
    width = shutil.get_terminal_size().columns
    return [line[:width] for line in lines] if on_terminal() else lines


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # None: it was closed


def moment(at: float, now: float) -> str:
    """The local time, with the day where it is another one."""
    same_day = time.localtime(at)[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", time.localtime(at))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
