"""`python -m lawa_exp.readout RUN`: averages and their evaluations from a saved trajectory, without training."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lawa_exp.averaging import AVERAGERS
from lawa_exp.averaging.flags import KINDS, add_flags
from lawa_exp.config.names import BN_POLICIES
from lawa_exp.evaluation.views import VIEWS
from lawa_exp.formats.flags import add_flags as add_input_flags
from lawa_exp.formats.flags import choice_of
from lawa_exp.readout.evaluators import EVALUATORS
from lawa_exp.readout.evaluators.settings import add_flags as add_evaluator_flags
from lawa_exp.readout.evaluators.settings import flags_of
from lawa_exp.system import signals
from lawa_exp.system.cli import Parser, add_trust, exit_code, threads
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.readout.request import Request

FOREIGN = """
RUN may be any folder of checkpoints: files or folders that say their step inside, or in their names (ckpt_1000.pt,
step_1000/, checkpoint-500/model.safetensors); or a single one, of which there is no average. Then say what evaluates
them:
  --data DATA                                                their own model, which is recognised, on a file or folder
  --model gpt2_small --dataset openwebtext [KEY=VALUE ...]   choices and settings as for python -m lawa_exp
  --evaluate package.module:function                         function(tensors by name) -> loss, or {"loss": ...,
                                                             "losses": one for each sample or batch, for the noise}
  --evaluate zeroshot --tasks lambada_openai,arc_easy        tasks of lm-evaluation-harness, weights in memory
  --evaluate perplexity --text FILE                          of any text, by token and by word
  --evaluate calibration                                     of the probabilities: calibration error, temperature
The last three also take a run of ours. RUN may be hf:OWNER/NAME, a model on the Hugging Face hub whose revisions are
named by steps: each is fetched when a window needs it and removed when none does. A folder of them, or a hub's model,
with --revisions goes on where it was stopped; without --model its config.json says what it is (GPT-NeoX).
Nothing is written there. Exit code 2 if none of these averages can be had.
"""


OVERRIDES = "with --model and --dataset: further settings; of a run: dataset.path, where its data are now"


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_intermixed_args(arguments)
    request = request_of(args)
    signals.listen("evaluation")

    def command() -> int:
        from pathlib import Path

        if not (args.run.startswith("hf:") or Path(args.run).exists()):
            raise UserError(f"RUN={args.run}: no such file or folder; expected a run, checkpoints, or hf:OWNER/NAME")
        from lawa_exp.readout.command import read

        return read(request)

    return exit_code(command)


def request_of(args: argparse.Namespace) -> Request:
    """The flags in types."""
    from lawa_exp.readout.request import Averages, Evaluation, Request, Target

    settings = {name: text for name in KINDS if (text := getattr(args, name)) is not None}
    return Request(
        target=Target(
            run=args.run,
            trust=args.trust,
            device=args.device,
            threads=args.threads,
            bn=args.bn,
            views=views_in(args.view),
            choice=choice_of(args),
            verbose=args.verbose,
            key=args.key,
        ),
        averages=Averages(tuple(args.avg.split(",")), settings),
        evaluation=Evaluation(
            how=args.evaluate,
            model=args.model,
            dataset=args.dataset,
            overrides=tuple(args.overrides),
            data=args.data,
            samples=args.samples,
            flags={name: text for name in flags_of(EVALUATORS) if (text := getattr(args, name)) is not None},
        ),
        revisions=args.revisions,
        name=args.name,
        out=args.out,
        gpu_hours=args.gpu_hours,
        steps_per_epoch=args.steps_per_epoch,
    )


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.readout",
        description="Averages of a finished or stopped run, recomputed from its snapshots and evaluated where its\n"
        "live weights were; the same bytes as if they had been attached while it trained. Lists combine as a product.",
        epilog=FOREIGN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", help="a run directory, a folder of checkpoints, or hf:OWNER/NAME")
    p.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=OVERRIDES)
    p.add_argument("--avg", default="lawa", help=f"comma-separated: {', '.join(AVERAGERS)} (default: lawa)")
    add_flags(p, "comma-separated", {"every": "the spacing of the snapshots; of power_ema, of those that were tracked"})
    p.add_argument(
        "--name",
        help="the results go to RUN/readouts/NAME, of a folder of checkpoints to readouts/NAME "
        "here (default: the averages' ids, with zeroshot and perplexity also the tasks or the text)",
    )
    p.add_argument("--out", metavar="DIR", help="another folder for the results")
    p.add_argument(
        "--bn",
        choices=BN_POLICIES,
        help="BatchNorm's statistics of all weights, as evaluate.bn (default: the run's)",
    )
    p.add_argument(
        "--view",
        metavar="NAME",
        default="",
        help=f"comma-separated: {', '.join(VIEWS)}; all weights are evaluated through each of them, too: rows have "
        "view, and the choice is made without",
    )
    p.add_argument("--device", help="auto, cpu or cuda (default: the run's)")
    add_trust(p)
    p.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="CPU threads (default: the run's; of checkpoints OMP_NUM_THREADS, else the cores); losses depend on them "
        "in their last bits",
    )
    p.add_argument(
        "--gpu-hours",
        type=amount,
        metavar="H",
        help="what the training cost up to the last step there is, for savings",
    )
    p.add_argument("--steps-per-epoch", type=amount, metavar="N", help="for savings in epochs (default: the run's)")
    p.add_argument(
        "--data",
        metavar="DATA",
        help="of checkpoints that are no run of ours, or a single one: evaluates their own model, which is recognised, "
        "on a file or folder (see suggest --help)",
    )
    p.add_argument("--samples", metavar="N", help="with --data: how many blocks, texts or images; or all")
    p.add_argument(
        "--model", help="of checkpoints that are no run of ours; with --data MODULE:FUNCTION, which builds it"
    )
    p.add_argument("--dataset", help="that they are evaluated on")
    p.add_argument("--key", metavar="NAME", help="of the state dict in their files (generator, state.model)")
    p.add_argument(
        "--evaluate", metavar="HOW", help=f"evaluates them instead: {', '.join(EVALUATORS)} or MODULE:FUNCTION"
    )
    p.add_argument(
        "--revisions",
        metavar="STEPS",
        help="step1000..step143000, or single ones with commas (default: all); with --every N only multiples of N are "
        "evaluated",
    )
    add_input_flags(p)
    add_evaluator_flags(p, EVALUATORS)
    return p


def views_in(text: str) -> tuple[str, ...]:
    """`bfloat16,int8`, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text else ()


def amount(text: str) -> float:
    """argparse's error for what is no number above 0."""
    try:
        if 0 < (number := float(text)) < float("inf"):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
