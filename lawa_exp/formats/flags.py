"""The flags about which checkpoints of a folder or list are taken, and of which step each is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lawa_exp.formats.choice import Choice


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags about which checkpoints are of which step, shared by the commands that read folders of them."""
    parser.add_argument(
        "--step-from",
        metavar="REGEX",
        help="of checkpoints that are no run of ours: a regular expression whose one group is the step in their names "
        r"('it(\d+)'); what does not match is left out (default: what the files say inside, else their names)",
    )
    parser.add_argument(
        "--include-averages",
        action="store_true",
        help="take in averages, too: known by their content (ours, Lightning's, mmengine's, torch's) or name (ema)",
    )
    parser.add_argument("--verbose", action="store_true", help="list every checkpoint that is left out, and why")


def choice_of(args: argparse.Namespace) -> Choice:
    from lawa_exp.formats.choice import Choice

    return Choice(args.step_from, args.include_averages, args.key)
