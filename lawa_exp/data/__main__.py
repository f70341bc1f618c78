"""`python -m lawa_exp.data prepare NAME --from SOURCE`: get a data set ready for training."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lawa_exp.axes.dataset.corpora import corpora
from lawa_exp.axes.dataset.sources import CORPORA
from lawa_exp.system.cli import Parser, exit_code, threads
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_output
from lawa_exp.system.machine import usable_cores


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code. SIGINT and SIGTERM stop it at its last commit."""
    options = parser().parse_args(arguments)
    if options.command is None:
        return exit_code(show)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def command() -> int:
        for line in prepared(options):
            print(line)
        return 0

    try:
        code = exit_code(command)
        for number, handler in before.items():
            signal.signal(number, handler)
        return code
    except Stopped as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print(
            f"stopped by {stop}, progress is saved in {options.out or 'data'}: the same command goes on",
            file=sys.stderr,
        )
        return 75


def prepared(options: argparse.Namespace) -> list[str]:
    """Makes the corpus that was named; lines on what is there now."""
    corpus = corpora()[options.dataset]
    if options.dataset in CORPORA:
        from lawa_exp.data.prepare import prepare

        out = options.out or Path("data") / corpus.folder
        source = options.source or CORPORA[options.dataset][0]
        path, share, workers = options.tokenizer_path, options.val_fraction, options.workers
        return [prepare(out, source, path, share, workers, options.dataset)]
    from lawa_exp.data.make import check, make

    if options.source is None:
        place = options.out or next((place for place in corpus.places() if corpus.is_in(place)), None)
        if place is None or not corpus.is_in(place):
            raise UserError(f"--from is missing: {corpus.name} is made from a copy of {corpus.source} ({corpus.rule})")
        return check(corpus, place)
    out = options.out or Path("data") / corpus.folder
    check_output("--out", out)
    return [*make(corpus, Path(options.source).expanduser(), out), f"licence: {corpus.licence}; for {corpus.use}"]


def show() -> int:
    """Prints each corpus: where it is, or that it is not here, and what it is made from."""
    for corpus in corpora().values():
        there = next((place for place in corpus.places() if corpus.is_in(place)), None)
        looked = ", ".join(map(str, corpus.places()))
        damage = there and corpus.damage(there)
        where = f"in {there}" + f", damaged: {damage}; remove it and make it again" * bool(damage)
        print(f"{corpus.name}: {where if there else f'not here; looked in {looked}'}")
        for name, text in (
            ("for", corpus.use),
            ("from", corpus.source),
            ("licence", corpus.licence),
            ("rule", corpus.rule),
        ):
            print(f"  {name:8}{' '.join(text.split())}")
    print("pydocs, digits: in this package")
    return 0


def parser() -> Parser:
    cores = usable_cores()
    p = Parser(
        prog="python -m lawa_exp.data",
        description="Get a data set ready for training. Without a command: which corpora there are, where each is, its "
        "public source, its licence and the rule that makes it.",
    )
    commands = p.add_subparsers(dest="command", required=False)
    prepare_parser = commands.add_parser(
        "prepare",
        help="make a corpus from its public source",
        description=(
            "Make a corpus from a copy of its public source, by a rule, and check its sha256; without --from the one "
            "in its place is checked. `python -m lawa_exp.data` lists sources, licences, rules. openwebtext (GPT-2's "
            "BPE) and pile (GPT-NeoX's, which is Pythia's) are tokenized into OUT/train.bin and OUT/val.bin (uint16, "
            "nanoGPT's layout); killed at any moment, the same command goes on from the last 2,000 documents, with the "
            "same bytes."
        ),
        epilog="Exit codes: 0 done (also: was done already), 1 failed, 2 the user's mistake, 75 stopped and saved.",
    )
    prepare_parser.add_argument(
        "dataset",
        metavar="NAME",
        type=_name,
        choices=list(corpora()),
        help=f"the corpus: {', '.join(corpora())}",
    )
    prepare_parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: the corpus's own in data/)"
    )
    prepare_parser.add_argument(
        "--from",
        "--source",
        dest="source",
        metavar="SOURCE",
        help=(
            "a folder, an archive or a clone of the public source. Of openwebtext and pile: owner/name[@revision] on "
            "the Hugging Face hub, or local: a file or folder of .jsonl or .jsonl.gz (field `text`), .parquet (column "
            "`text`) or .txt (one document a file); default: "
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


def _name(text: str) -> str:
    """argparse's error for what is no corpus, with the one that is meant where it is a data set's name."""
    if text in corpora():
        return text
    from lawa_exp.config.rules import near

    of = next((c.name for c in corpora().values() if f"dataset={text}" in c.use.split(", ")), None)
    meant = f"did you mean {of}, of dataset={text}? choices: {', '.join(corpora())}" if of else near(text, corpora())
    raise argparse.ArgumentTypeError(f"{text}: no such corpus; {meant}")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signal.Signals(number).name)


class Stopped(BaseException):
    """SIGINT or SIGTERM came. Raised wherever the program is: only what is committed counts, so any place will do."""


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a parquet stream left half read can abort or hang the interpreter's own exit (apache/arrow 45214)
