"""`python -m lawa_exp.suggest RUN`: which average to take from a trajectory, and what to attach next time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lawa_exp.formats.flags import add_flags as add_input_flags
from lawa_exp.formats.flags import choice_of
from lawa_exp.readout.request import Averages, Evaluation, Request, Target
from lawa_exp.system import signals
from lawa_exp.system.cli import Parser, add_trust, exit_code, threads
from lawa_exp.system.errors import UserError

EPILOG = """
RUN is a run of ours, or any folder of checkpoints with --data or --evaluate. Of a folder the model is recognised
(nanoGPT, Hugging Face, timm, torchvision; others: --model MODULE:FUNCTION), with its tokenizer and the data, and the
last three lines say what to take, what it gains, and the `average` command that writes it. Nothing is written into the
folder, and none of its code runs. --data DATA is a file or folder:
  val.bin, or the folder of it     tokens, with a meta.pkl or meta.json in their folder
  FILE.txt                         text
  FILE.jsonl, .csv, .parquet       with a column `text`, or FILE:COLUMN; of a classifier FILE:TEXT,LABEL
  FOLDER                           images in a folder for each class; or what `datasets` saved with save_to_disk
Of a folder with splits val is taken, else test.
Candidates: the live weights (of a folder the last checkpoint), the averages that were attached and kept, and of the
snapshots LAWA over k x spacing, WMA and EMA over k, SWA from several starts. All are evaluated after the last step, by
what their task says: images by accuracy, tokens by the loss.
The choice: the cheapest within one standard error of the best (paired by batch), or a tolerance (0.002 nats); live is
the cheapest.
The gain is measured by cross-fitting, on parts of val that had no vote in the choice; lawa_exp/readout/choice.py has
the rule and its sources. The test split of a run is not touched, and weights are judged as they are: for their worth in
bfloat16 or int8 read them out with --view. Rows, table and plots: RUN/readouts/suggest/, of a folder
readouts/FOLDER-suggest-data-DATA/ here.
Exit codes: 0 done, 1 failed, 2 a mistake in the command, or nothing to choose between.
"""


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)
    signals.listen("evaluation")
    return exit_code(lambda: command(args))


def command(args: argparse.Namespace) -> int:
    return of_run(args) if is_of_run(args) else of_folder(args)


def is_of_run(args: argparse.Namespace) -> bool:
    """UserError: RUN is neither a run nor a folder that goes with the flags."""
    root = Path(args.run)
    if not root.exists():
        raise UserError(f"RUN={args.run}: no such file or folder")
    flags = [name for name in ("data", "evaluate", "model", "samples", "key", "out") if getattr(args, name) is not None]
    if (root / "config.yaml").is_file():
        if flags:
            raise UserError(
                f"--{flags[0]}={getattr(args, flags[0])}: RUN={args.run} is a run of ours, which has its own"
            )
        return True
    if args.data is None and args.evaluate is None:
        raise UserError(
            f"RUN={args.run}: no run there (config.yaml is missing); a folder of checkpoints needs --data DATA, what "
            "to evaluate on, or --evaluate MODULE:FUNCTION"
        )
    return False


def of_run(args: argparse.Namespace) -> int:
    from lawa_exp.readout.suggestion import NAME, as_json, lines_of, suggest

    target = Target(args.run, args.trust, args.device, args.threads)
    suggestion, subject, _ = suggest(target, say=(lambda _: None) if args.json else print)
    if subject.is_main and args.json:
        print(as_json(suggestion), end="")
    elif subject.is_main:
        print("\n".join([*lines_of(suggestion), f"in {subject.root / NAME}: rows, table and plots"]))
    return 0


def of_folder(args: argparse.Namespace) -> int:
    if args.evaluate is not None and ":" not in args.evaluate:
        raise UserError(f"--evaluate={args.evaluate}: expected MODULE:FUNCTION; the command readout takes others")
    if args.evaluate is not None and args.model is not None:
        raise UserError(f"--model={args.model}: is for --data; a function gets the weights alone")
    from lawa_exp.readout.of_folder import as_json_of, suggest_for_folder

    target = Target(
        args.run, device=args.device, threads=args.threads, choice=choice_of(args), verbose=args.verbose, key=args.key
    )
    evaluation = Evaluation(how=args.evaluate, model=args.model, data=args.data, samples=args.samples)
    request = Request(target, Averages((), {}), evaluation, out=args.out)
    answer, out = suggest_for_folder(request, say=(lambda _: None) if args.json else print)
    if out is not None and args.json:
        print(as_json_of(answer), end="")
    elif out is not None:
        print("\n".join([f"in {out}: rows, table and plots", "", *answer.lines]))
    return 0


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.suggest",
        description="Reads a run's trajectory, or a folder of checkpoints of any origin, and recommends averager, k,\n"
        "spacing and start, with the expected gain over the live weights and its noise; or the live weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", help="a run directory, or a folder of checkpoints")
    p.add_argument("--data", metavar="DATA", help="of a folder: what its model is evaluated on")
    p.add_argument(
        "--evaluate",
        metavar="MODULE:FUNCTION",
        help="instead of --data: function(tensors by name) -> loss, or {'loss': ..., 'losses': one for each sample or "
        "batch, for the noise}",
    )
    p.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="with --data: builds the model (a torch.nn.Module) of checkpoints that do not say theirs, as Lightning's",
    )
    p.add_argument(
        "--samples",
        metavar="N",
        help="with --data: how many blocks (default: 256), texts or images (default: 2,048) are evaluated, evenly "
        "spaced; or all",
    )
    p.add_argument("--key", metavar="NAME", help="of the state dict in a folder's files (generator, state.model)")
    p.add_argument("--out", metavar="DIR", help="of a folder: where rows, table and plots go")
    add_input_flags(p)
    p.add_argument("--json", action="store_true", help="the suggestion as JSON, and nothing else")
    p.add_argument("--device", help="auto, cpu or cuda (default: the run's; of a folder auto)")
    add_trust(p)
    p.add_argument(
        "--threads", type=threads, metavar="N", help="CPU threads (default: the run's; of a folder OMP_NUM_THREADS)"
    )
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
