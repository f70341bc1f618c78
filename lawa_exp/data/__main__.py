"""`python -m lawa_exp.data prepare openwebtext --out DIR`: get a data set ready for training."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lawa_exp.axes.dataset.sources import CORPORA
from lawa_exp.data.prepare import prepare
from lawa_exp.system.cli import Parser, exit_code, threads
from lawa_exp.system.machine import usable_cores


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code. SIGINT and SIGTERM stop it at its last commit."""
    options = parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)

    def command() -> int:
        source = options.source or CORPORA[options.dataset][0]
        path, share, workers = options.tokenizer_path, options.val_fraction, options.workers
        print(prepare(options.out, source, path, share, workers, options.dataset))
        return 0

    try:
        return exit_code(command)
    except Stopped as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print(f"stopped by {stop}, progress is saved in {options.out}: the same command goes on", file=sys.stderr)
        return 75


def parser() -> Parser:
    cores = usable_cores()
    p = Parser(prog="python -m lawa_exp.data", description="Get a data set ready for training.")
    commands = p.add_subparsers(dest="command", required=True)
    prepare_parser = commands.add_parser(
        "prepare",
        help="tokenize a corpus into train.bin and val.bin",
        description=(
            "Tokenize a corpus into OUT/train.bin and OUT/val.bin (uint16, nanoGPT's layout): OpenWebText with GPT-2's "
            "BPE, the deduplicated Pile with GPT-NeoX's, which is Pythia's. "
            "Killed at any moment, the same command goes on from the last 2,000 documents, with the same bytes."
        ),
        epilog="Exit codes: 0 done (also: was done already), 1 failed, 2 the user's mistake, 75 stopped and saved.",
    )
    prepare_parser.add_argument("dataset", choices=list(CORPORA), help="the data set")
    prepare_parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    prepare_parser.add_argument(
        "--source",
        metavar="SRC",
        help=(
            "owner/name[@revision] on the Hugging Face hub, or local: a file or folder of .jsonl or .jsonl.gz "
            "(field `text`), .parquet (column `text`) or .txt (one document a file); default: "
            + ", ".join(f"{source} for {name}" for name, (source, _) in CORPORA.items())
        ),
    )
    prepare_parser.add_argument(
        "--tokenizer-path",
        metavar="DIR",
        help="folder of GPT-2's encoder.json and vocab.bpe, or of 20B_tokenizer.json; default: LAWA_TOKENIZER, "
        "LAWA_DATA/gpt2_bpe, data/gpt2_bpe (neox_tokenizer in place of gpt2_bpe)",
    )
    prepare_parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.0005,
        metavar="F",
        help="share of the documents held out, by a hash of their number (not nanoGPT's draw); default: %(default)s",
    )
    prepare_parser.add_argument(
        "--workers",
        type=threads,
        default=cores,
        metavar="N",
        help="threads that encode; the bytes do not depend on it; default: all cores (%(default)s)",
    )
    return p


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signal.Signals(number).name)


class Stopped(BaseException):
    """SIGINT or SIGTERM came. Raised wherever the program is: only what is committed counts, so any place will do."""


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a parquet stream left half read can abort or hang the interpreter's own exit (apache/arrow 45214)
