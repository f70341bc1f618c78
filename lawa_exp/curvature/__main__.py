"""`python -m lawa_exp.curvature RUN`: the outlier eigenvalue, the noise, B_sat and the largest stable rate."""

from __future__ import annotations

import argparse
import sys

from lawa_exp.system import signals
from lawa_exp.system.cli import Parser, add_trust, exit_code

EPILOG = """
The model: the Hessian of a batch of B is that of the whole set of N plus a random matrix whose entries have the
variance sigma^2 (1/B - 1/N). With s^2 that variance times the parameters P, and l the largest eigenvalue of the whole
set, a batch's is l + s^2/l where s < l, else 2 s. SGD is stable below 2 over it: a rate that grows with B up to about
B_sat = P sigma^2 / l^2. The theorem is that of random matrices, and checked by our tests; the form for batches is
Granziol et al. (2022) as we have it from memory, unconfirmed: the text of the paper was not at hand. A network's noise
is no such matrix: the noise as measured and the noise that batches' outliers imply are printed apart.
"""


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)
    signals.listen()

    def command() -> int:
        from lawa_exp.curvature.command import measure

        return measure(args)

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.curvature",
        description="The Hessian of a run's training loss at one of its snapshots, on batches and on the whole set,\n"
        "by Lanczos on Hessian-vector products: the largest eigenvalue, the noise, B_sat and the largest stable rate.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", help="a run directory")
    p.add_argument("--step", help="of the snapshot (default: the latest)")
    p.add_argument("--weights", default="live", help="live, or the id of an attached average (default: live)")
    p.add_argument("--batch", help="samples in a batch; comma-separated (default: 1 and the run's last batch size)")
    p.add_argument("--batches", default="4", help="how many batches of each size are measured (default: 4)")
    p.add_argument(
        "--samples", default="128", help="that stand for the training set, evenly spaced, or all (default: 128)"
    )
    p.add_argument("--iterations", default="20", help="Lanczos iterations, each a Hessian-vector product (default: 20)")
    p.add_argument("--probes", default="1", help="random vectors, for the density and the noise (default: 1)")
    p.add_argument("--seed", default="0", help="of the vectors and the batches (default: 0)")
    p.add_argument("--name", help="the results go to RUN/curvature/NAME (default: WEIGHTS-step_XXXXXXXX)")
    p.add_argument("--out", metavar="DIR", help="another folder for the results")
    p.add_argument("--device", help="auto, cpu or cuda (default: the run's)")
    add_trust(p)
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
