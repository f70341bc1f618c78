"""`python -m lawa_exp.average`: averages of checkpoint files, without their model and without torch.

    python -m lawa_exp.average A B C --out DIR
    python -m lawa_exp.average --trajectory RUN --k 5 --spacing 1000 --out DIR

Floating-point tensors are averaged as float64 sums in step order, divided once and rounded once; integers, BatchNorm's
`running_mean` and `running_var`, and constants with infinite or complex numbers come from the latest input. (Online it
is parameters that are averaged. Files do not tell them from buffers but by these names: a floating-point buffer of
another name is averaged here and taken from the latest online.)
"""

from __future__ import annotations

import argparse
import errno
import gc
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp import __version__
from lawa_exp.averaging import AVERAGERS, AveragerSettings, LawaSettings, observed_steps, observes
from lawa_exp.averaging.flags import FROM_FLAGS, KINDS, PERIODS, add_flags, plain, start_note
from lawa_exp.averaging.settings import WindowSettings, unresolved
from lawa_exp.config.rules import build, default_of, setting_names
from lawa_exp.formats.about import about, trajectory_id
from lawa_exp.formats.flags import add_flags as add_input_flags
from lawa_exp.formats.flags import choice_of
from lawa_exp.formats.stored import Average, Checkpoint, Damaged, Writer
from lawa_exp.storage.commit import step_name
from lawa_exp.system.bar import Bar
from lawa_exp.system.cli import Parser, exit_code, leave
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_output, clear, size_text

if TYPE_CHECKING:
    from lawa_exp.formats.steps import Series

DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
)


ALIASES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
MOST_PROCESSES = 8
SHOWN = 5  # inputs of an average, and averages, that are listed; of more, the first and the last
NO_PATH = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST}  # mistakes in a path


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT too: a shell's background job ignores it
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    return exit_code(lambda: _average(args))


def _average(args: argparse.Namespace) -> int:
    try:
        return average(args)
    except Damaged as error:
        if not args.trajectory:
            raise
        raise UserError(
            f"{error}; to leave it out list the others, or move it out of --trajectory, or end before it (--at STEP)"
        ) from None
    except OSError as error:
        if error.errno in NO_PATH:
            raise UserError(f"{error.filename}: {error.strerror}") from None
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.average",
        description="Averages checkpoints: safetensors, PyTorch files, Hugging Face and DCP folders. The output is of "
        "the last input's kind, and loads where it did; it appears whole or not at all. Integers and BatchNorm "
        "statistics come from the last input, and so does the rest of a PyTorch file, but for the optimizer's state, "
        "which is left empty, and second copies of the weights (an EMA), which are left out; the output counts them.",
    )
    p.add_argument(
        "inputs",
        nargs="*",
        metavar="A",
        help="files, folders or quoted patterns; ordered by the steps in the files or in their names, else as listed "
        "(oldest first)",
    )
    p.add_argument("--trajectory", metavar="DIR", help="instead: a run, or a folder of checkpoints")
    p.add_argument("--out", metavar="DIR", required=True, help="folder for the result")
    p.add_argument(
        "--key",
        metavar="NAME",
        help="of the state dict in the files (generator, state.model; '.': all on the top level)",
    )
    p.add_argument(
        "--each-factor",
        action="store_true",
        help="average factors of one weight (LoRA's A and B, weight_norm's g and v) one by one, else refused: "
        "the product of their means is not the mean of the products",
    )
    p.add_argument(
        "--overwrite", action="store_true", help="replace other results that are there, and remove other weights"
    )
    add_input_flags(p)
    p.add_argument(
        "--dtype",
        type=lambda text: ALIASES.get(text, text),
        choices=DTYPES,
        metavar="DTYPE",
        help=f"of all that is floating-point: {', '.join(DTYPES)} (also {', '.join(ALIASES)}; default: as it is)",
    )
    p.add_argument(
        "--at",
        type=int,
        metavar="STEP",
        help="only the average after this step, of which there must be a checkpoint (default: of a trajectory all, "
        "each in step_.../; of inputs the last); inputs go by the steps in their names, else are 1, 2, ... as listed",
    )
    p.add_argument(
        "--weights", metavar="W,W,...", help="of the inputs, or of the window's snapshots; divided by their sum"
    )
    p.add_argument(
        "--method", default="lawa", choices=FROM_FLAGS, help=f"{', '.join(FROM_FLAGS)} (default: lawa)", metavar="NAME"
    )
    add_flags(
        p,
        "its setting",
        {
            "k": f"all inputs, up to --at; of a trajectory {LawaSettings.k}",
            "spacing": "that of the inputs",
            "every": "that of the inputs",
        },
    )
    return p


@dataclass(frozen=True)
class Fixed(WindowSettings):
    """A window of as many snapshots as there are `weights`, oldest first (--weights)."""

    kind: ClassVar[str] = "fixed"
    weights: tuple[float, ...] = ()

    def coefficients(self, steps: Sequence[int]) -> list[float]:
        return list(self.weights)


def average(args: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads are not used, and take long to start
    out = Path(args.out)
    check_output("--out", out)
    if args.trajectory and out.resolve() == Path(args.trajectory).resolve():
        raise UserError(f"--out={out}: is what --trajectory reads; choose another folder")
    series = checkpoints_of(args)
    paths = series.paths
    planned = plan(args, series, requested_end(args, series))
    from lawa_exp.formats.checkpoint import open_checkpoint
    from lawa_exp.formats.output import Output, file_name, real_path, refuse_inputs
    from lawa_exp.formats.remarks import remarks
    from lawa_exp.formats.steps import summary
    from lawa_exp.formats.stream import Stream

    start = time.perf_counter()
    _raise_file_limit()
    numbers = sorted({i for _, a in planned for i in a.inputs})
    steps = list(paths)
    lasts = {a.inputs[-1]: a for _, a in planned}
    opened: list[Checkpoint] = []
    writers: dict[int, list[Writer]] = {}
    for i in numbers:
        checkpoint = open_checkpoint(paths[steps[i]], args.key, whole=True)
        if i in lasts:
            checkpoint.describe(description(args, series, lasts[i]))
            writers[len(opened)] = checkpoint.writers(args.dtype)
        checkpoint.forget()
        opened.append(checkpoint)
    averages = [_renumbered(a, numbers) for _, a in planned]
    inputs = {real_path(path) for c in opened for path in (c.path, *(source.path for source in c.sources))}
    outputs: list[Output] = []
    stream = None
    try:
        for (step, _), each in zip(planned, averages, strict=True):
            target = out / step_name(step) if len(planned) > 1 else out
            last = opened[each.inputs[-1]]
            name = file_name(last)
            refuse_inputs(target, name, last, inputs)
            outputs.append(Output(target, last, writers.pop(each.inputs[-1]), args.dtype, name))
        for folder in {folder for o in outputs for folder in (o.partial.parent, o.target.parent)}:
            clear(folder)  # of what a kill left
        files = [o.files for o in outputs]
        stream = Stream(opened, averages, files, processes(), args.dtype is not None, args.each_factor)
        with Bar(stream.total) as show:
            stream.run(show, 0.1)
        for output in outputs:
            output.finish()
        new = [output.publish(args.overwrite, inputs) for output in outputs]
    finally:
        if stream:
            stream.close()
        for output in outputs[::-1]:
            output.discard()
    seconds = time.perf_counter() - start
    were = "" if any(new) else ", the same as was there already"
    what = f"{len(outputs)} averages" if len(outputs) > 1 else "the average"
    of = f"{len(opened)} checkpoints" if len(opened) > 1 else "1 checkpoint"
    print(f"{out}: {what} of {of} ({size_text(stream.total)} in {seconds:.2f} s){were}")
    names = [str(step) for step in steps] if args.trajectory else labels(list(paths.values()), series.labels)
    print("\n".join(summary(series, [paths[steps[i]] for i in numbers], args.verbose)))
    order = "in step order: " if series.steps is not None else "as listed: "
    unit = series.unit
    lines = [
        (f"after {unit} {step}: {unit}s " if args.trajectory else order) + made_of(each, names)
        for step, each in planned
    ]
    print("\n".join(lines if len(lines) <= SHOWN else [lines[0], f"... {len(lines) - 2} more", lines[-1]]))
    if removed := [str(path) for output in outputs for path in output.removed]:
        print(f"removed, as it would be loaded for the average, or with it: {', '.join(removed)}")
    left_out = [key for output in outputs for key in output.left_out]
    unread = [name for output in outputs for name in output.like.unread]
    is_mean = any(len(each.inputs) > 1 for each in averages)
    for line in remarks(stream.copied, left_out, unread, [file.writer for file in itertools.chain(*files)], is_mean):
        print(line)
    for note in start_note(args.start, {args.method} if args.trajectory else ()):
        print(note)
    return 0


def labels(paths: list[Path], known: Mapping[Path, str]) -> list[str]:
    """The inputs' names, or where two have the same their paths. known: names that are other than the paths' own."""
    names = [known.get(path, path.name) for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def made_of(average: Average, names: list[str]) -> str:
    """The inputs of an average, oldest first, and the share of each."""
    inputs = [names[i] for i in average.inputs]
    shares = [weight / math.fsum(average.weights) for weight in average.weights]
    equal = len(set(shares)) == 1
    parts = inputs if equal else [f"{name} ({share:.4g})" for name, share in zip(inputs, shares, strict=True)]
    if len(parts) > SHOWN:
        parts = [parts[0], "...", parts[-1], f"{len(inputs)} inputs"]
    return ", ".join([*parts, f"each {shares[0]:.4g}"] if equal and len(inputs) > 1 else parts)


def checkpoints_of(args: argparse.Namespace) -> Series:
    """The checkpoints by step, ascending: 1, 2, ... for those that are listed, oldest first."""
    from lawa_exp.formats.inputs import listed, trajectory  # with numpy

    if bool(args.inputs) == bool(args.trajectory):
        raise UserError("expected checkpoints, or --trajectory DIR, and not both")
    if args.trajectory:
        return trajectory(Path(args.trajectory), choice_of(args))
    return listed(args.inputs, choice_of(args), args.weights)


def requested_end(args: argparse.Namespace, series: Series) -> int | None:
    """Which of the checkpoints --at means, as `checkpoints_of` numbers them."""
    if args.at is None:
        return None
    numbers = dict(zip(series.steps or series.paths, series.paths, strict=True))
    if args.at not in numbers:
        shown = [f"{step:,}" for step in numbers]
        shown = [*shown[:SHOWN], "...", shown[-1]] if len(shown) > 2 * SHOWN else shown
        raise UserError(f"--at={args.at}: no checkpoint of that step, but of {', '.join(shown)}")
    return numbers[args.at]


def description(args: argparse.Namespace, series: Series, average: Average) -> str:
    """What an average's metadata says."""
    steps = None if series.steps is None else [series.steps[i] for i in average.inputs]
    settings = settings_of(args, list(series.paths), len(average.inputs))
    values = {name: getattr(settings, name) for name in setting_names(type(settings))}
    more = {"lawa_exp": __version__}
    if args.trajectory and (id := trajectory_id(Path(args.trajectory))):
        more["trajectory_id"] = id
    return about("weighted" if args.weights else args.method, values, steps, len(average.inputs), **more)


def settings_of(args: argparse.Namespace, steps: list[int], inputs: int) -> AveragerSettings:
    """The averager that the flags ask for. inputs: the k of files that are listed."""
    gap = reduce(math.gcd, steps) if args.trajectory else 1
    flags = {name: plain(v) for name in sorted(KINDS) if (v := getattr(args, name)) is not None}
    if args.weights is not None:
        for name in flags:
            if name != "spacing":
                many = ", of which there are as many as the window has" if name == "k" else ""
                raise UserError(f"--{name} does not go with --weights{many}: drop --{name}")
        if args.method != "lawa":
            raise UserError("--method does not go with --weights: drop --method")
        window = build(LawaSettings, {"k": 1, "start": 0, "spacing": flags.get("spacing", gap)}, "")
        weights = weights_of(args, steps)
        return Fixed(len(weights), window.spacing, window.start, weights)
    cls = AVERAGERS[args.method]
    values: dict[str, Any] = {}
    for name in setting_names(cls):
        default = gap if name in PERIODS else default_of(cls, name)
        if name == "k" and not args.trajectory:
            default = inputs
        values[name] = flags.pop(name, default)
    if flags:
        raise UserError(f"--{next(iter(flags))} is not a setting of {args.method}: {', '.join(setting_names(cls))}")
    if text := unresolved(cls, values):
        raise UserError(f"--{text}: expected a number of steps (a horizon is not known here)")
    try:
        return build(cls, values, "")
    except UserError as error:
        raise UserError(f"--{error}") from None


def weights_of(args: argparse.Namespace, steps: list[int]) -> tuple[float, ...]:
    try:
        weights = tuple(float(w) for w in args.weights.split(","))
        total = math.fsum(weights)
    except (ValueError, OverflowError):
        weights, total = (), 0
    if not all(map(math.isfinite, weights)) or total == 0:
        raise UserError(f"--weights={args.weights}: expected finite numbers, like 0.2,0.3,0.5, whose sum is not 0")
    if not args.trajectory and len(weights) != len(steps):
        raise UserError(f"--weights={args.weights}: {len(weights)} weights for {len(steps)} inputs")
    return weights


def plan(args: argparse.Namespace, series: Series, end: int | None) -> list[tuple[int, Average]]:
    """What to average, by end step. Inputs are numbered in the order of the checkpoints.

    end: the only step or input whose average is wanted.
    """
    steps = list(series.paths)
    number = {step: i for i, step in enumerate(steps)}
    settings = settings_of(args, steps, len(steps) if end is None else number[end] + 1)
    what = series.unit if args.trajectory else "input"
    if end is not None:
        ends = [end]
    elif args.trajectory:
        ends = [step for step in steps if observes(settings, step)]
    else:
        ends = steps[-1:]
    planned, why = [], f"none of the {what}s {steps[0]} to {steps[-1]} is observed"
    for end in ends:
        needed = settings.needed(end)
        missing = next((s for s in needed if s not in number), None)
        if len(needed) < settings.observations:
            count = f"there {'is' if len(needed) == 1 else 'are'} {len(needed)}"
            why = f"the average after {what} {end} takes {settings.observations} checkpoints, and {count}"
        elif missing is not None:
            why = f"the average after {what} {end} needs {what} {missing}, which is not there"
            flag = "spacing" if settings.windowed else "every"
            if args.trajectory and getattr(args, flag) is None:
                why += (
                    f" (a {flag} of {settings.period} is what all steps there are multiples of; --{flag} says another)"
                )
        else:
            weights = tuple(settings.coefficients(observed_steps(settings, end)))
            planned.append((end, Average(tuple(number[s] for s in needed[-len(weights) :]), weights)))
    if not planned:
        raise UserError("; ".join([why, *(note.removeprefix("note: ") for note in series.notes)]))
    return planned


def _renumbered(average: Average, numbers: list[int]) -> Average:
    return Average(tuple(numbers.index(i) for i in average.inputs), average.weights)


def processes() -> int:
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def _raise_file_limit() -> None:
    """Every input and output is open at once."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    gc.disable()  # the imports and the plan make much, and no garbage
    leave(main(sys.argv[1:]))
