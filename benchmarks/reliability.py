"""The counts of the harness (tests/harness, --harness-out FILE) as a page.

make reliability
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pairs import table

HEAD = ("harness", "tried", "how it ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path, help="what --harness-out wrote")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    options = parser.parse_args()
    page = page_of([json.loads(line) for line in options.counts.read_text().splitlines()])
    options.out.write_text(page)
    print(page)


def page_of(lines: list[dict]) -> str:
    """A line for each harness, of several with one name the last; what was tried is the sum of how it ended."""
    last = {line["harness"]: line for line in lines}
    rows = []
    for name, line in sorted(last.items()):
        ended = {how: n for how, n in line["counts"].items() if n}
        part = "" if line["whole"] else " (a tenth)"
        rows.append(
            (f"{name}{part}", f"{tried(line['counts']):,}", ", ".join(f"{n:,} {how}" for how, n in ended.items()))
        )
    parts = [
        "# Reliability",
        "Made by `make reliability`: files of a run damaged, commands killed, run twice at once and on a full "
        "disk, and what else tests/harness tries. The tests fail at a traceback, a hang, another number in silence, or "
        "bytes that are not the undisturbed twin's, so what is counted here has none of these.",
        table(HEAD, rows),
    ]
    return "\n\n".join(parts) + "\n"


def tried(counts: dict[str, int]) -> int:
    signals = [n for how, n in counts.items() if how.startswith("SIG")]
    return sum(signals or counts.values())


if __name__ == "__main__":
    main()
