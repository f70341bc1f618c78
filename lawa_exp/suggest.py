"""`python -m lawa_exp.suggest RUN`: which average to take from a trajectory, and what to attach next time."""

from __future__ import annotations

import argparse
import sys

from lawa_exp.readout.request import Target
from lawa_exp.system import signals
from lawa_exp.system.cli import Parser, add_trust, exit_code, threads

EPILOG = """
Candidates: the live weights, the averages that were attached and kept, and of the snapshots LAWA over k x spacing, WMA
and EMA over k, SWA from several starts. All are evaluated on val after the last evaluated step, by what their
task says: images by accuracy, tokens by the loss.
The choice: the cheapest within one standard error of the best (paired by batch), or a tolerance (0.002 nats); live is
the cheapest.
The gain is measured by cross-fitting, on parts of val that had no vote in the choice; lawa_exp/readout/choice.py has
the rule and its sources. The test split is not touched, and weights are judged as they are: for their worth in
bfloat16 or int8 read them out with --view. Rows, table and plots: RUN/readouts/suggest/.
Exit codes: 0 done, 1 failed, 2 a mistake in the command, or nothing to choose between.
"""


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)
    target = Target(args.run, args.trust, args.device, args.threads)
    signals.listen("evaluation")

    def command() -> int:
        from lawa_exp.readout.suggestion import NAME, as_json, lines_of, suggest

        suggestion, subject, _ = suggest(target, say=(lambda _: None) if args.json else print)
        if subject.is_main and args.json:
            print(as_json(suggestion), end="")
        elif subject.is_main:
            print("\n".join([*lines_of(suggestion), f"in {subject.root / NAME}: rows, table and plots"]))
        return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.suggest",
        description="Reads a run's trajectory and recommends averager, k, spacing and start, with the expected gain\n"
        "over the live weights and its noise; or the live weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", help="a run directory")
    p.add_argument("--json", action="store_true", help="the suggestion as JSON, and nothing else")
    p.add_argument("--device", help="auto, cpu or cuda (default: the run's)")
    add_trust(p)
    p.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: the run's)")
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
