"""The settings that are no choice on an axis."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.config.names import BN_POLICIES
from lawa_exp.config.rules import (
    LARGEST_BATCH,
    Rule,
    boolean,
    defaulted,
    either,
    integer,
    list_of,
    one_of,
    optional,
    plain_name,
    setting,
    steps,
    text,
)
from lawa_exp.system.limits import MOST_THREADS

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Init:
    """What a training goes on from, see `storage/origin.py`; null: from the seed."""

    from_: str | None = setting(
        optional(text()),
        "a run, a snapshot, an average or a folder of weights to start from; null: random weights; stable (under -m): "
        "the run of the sweep at a constant rate",
    )
    step: int | None = setting(optional(integer(1)), "step of that run to start from; null: its last complete state")
    optimizer: str | None = setting(
        optional(one_of("keep", "reset")),
        "keep: go on with the run's complete state; reset: its weights alone, from step 0",
    )


@dataclass(frozen=True)
class Teacher:
    """The weights that an objective learns from, see `storage/teacher.py`; null: none.

    from: a run's folder, or weights. weights: of a run its live ones, or an averager's id. step: of a run.
    """

    from_: str | None = setting(
        optional(text()), "the run or weights that an objective learns from; null: none", default=None
    )
    weights: str = setting(text(), "live, or the id of an average of that run", default="live")
    step: int | None = setting(optional(integer(0)), "step of that run; null: its last", default=None)


@dataclass(frozen=True)
class Trainer:
    """Where and how the arithmetic is done. workers: processes of a rank that decode images from files; 0: none."""

    device: str = setting(text(), "cpu, cuda, or auto: cuda where there is one")
    dtype: str = setting(
        one_of("auto", "float32", "bfloat16"),
        "precision of the forward and backward passes; auto: bfloat16 on a GPU, float32 on a CPU",
    )
    compile: bool = setting(boolean(), "compile the model with torch.compile")
    threads: int = setting(
        defaulted(integer(1, MOST_THREADS)), "CPU threads of a rank; null: OMP_NUM_THREADS, else its share of the cores"
    )
    deterministic: bool = setting(boolean(), "deterministic algorithms only, so that a resumed run has the same bytes")
    micro_batch: int | None = setting(
        optional(integer(1)), "samples in one forward pass of a rank; null: as many as are planned"
    )
    parallel: str = setting(
        one_of("auto", "ddp", "fsdp"), "how ranks share the model: ddp (a copy each), fsdp (a part each), auto"
    )
    checkpoint_activations: bool = setting(boolean(), "compute activations again in the backward pass, to save memory")
    workers: int = setting(
        defaulted(integer(0, MOST_THREADS)),
        "processes of a rank that decode image files; null: chosen by the number of cores",
    )


@dataclass(frozen=True)
class Logger:
    """What is written while training, for every logger; `every` is the steps between two training rows."""

    every: int = setting(integer(1), "steps between two training rows")


@dataclass(frozen=True)
class Evaluate:
    """When and on how much the weights are evaluated; `batch_size` is samples in one forward pass.

    bn: with which BatchNorm statistics they are (`evaluation/batchnorm.py`), recalibrated on `bn_samples`.
    """

    every: int = setting(steps(1), "steps between two evaluations")
    samples: int | str = setting(
        either(integer(1), one_of("all")),
        "samples of val that an evaluation takes, evenly spaced and always the same; or all",
    )
    batch_size: int = setting(integer(1, LARGEST_BATCH), "samples in one forward pass of an evaluation")
    bn: str = setting(
        one_of(*BN_POLICIES), "BatchNorm statistics of live weights and averages: recalibrate, average, latest"
    )
    bn_samples: int | str = setting(either(integer(1), one_of("all")), "training samples for bn=recalibrate; or all")


@dataclass(frozen=True)
class Save:
    """When the complete state is saved, and the steps whose state is kept in states/."""

    every: int = setting(defaulted(steps(1)), "steps between two complete states; null: evaluate.every")
    keep: tuple[int, ...] = setting(
        list_of(steps(1), "a list of steps"), "steps whose complete state is kept in states/, to branch from"
    )


@dataclass(frozen=True)
class Trajectory:
    """Which snapshots are written, how many of the latest are kept, and where those of an attached window are read.

    shard_size: bytes of a file of tensors; what is larger becomes several, with an index, as Hugging Face's.
    """

    every: int = setting(
        defaulted(steps(1)),
        "steps between two snapshots; null: the greatest common divisor of the spacings, else evaluate.every",
    )
    keep: int | str = setting(
        either(one_of("all", "none"), integer(1)), "snapshots that are kept: all, none, or how many of the latest"
    )
    window: str = setting(
        one_of("memory", "disk"), "where an attached window keeps its snapshots: memory, or disk (it reads them back)"
    )
    shard_size: int = setting(integer(1), "bytes of one file of weights; larger snapshots become several with an index")


@dataclass(frozen=True)
class Multirun:
    """How the entries of a multirun are trained. `sweep=NAME` on the command line is `sweep.name=NAME`."""

    name: str | None = setting(
        optional(plain_name()), "name of a multirun, sweep=NAME for short; null: a hash of its overrides", default=None
    )
    value: str | None = setting(
        optional(text()),
        "the weights whose last val loss is a job's value, for a sweeper such as Optuna: live, or the id or kind of an "
        "attached average; null: the average, where one is attached, else live",
        default=None,
    )
    jobs: int = setting(
        integer(1, MOST_THREADS), "trainings at a time on this machine, each in a process of its own", default=1
    )


def _multirun(value: object) -> Multirun:
    return value if isinstance(value, Multirun) else Multirun(plain_name().parse(value))


@dataclass(frozen=True)
class Options:
    """What one call of the command asks for besides the training itself."""

    run_dir: str | None = setting(optional(text()), "the run's folder; null: a name in runs_root")
    runs_root: str = setting(text(), "the folder of all runs")
    plan: bool = setting(boolean(), "print the plan of the run and stop (a dry run)")
    rerun: bool = setting(
        boolean(), "train a finished run again, check that the bytes are the same, and save what was missing"
    )
    sweep: Multirun = setting(
        Rule("a name, or settings, sweep.KEY=VALUE", _multirun),
        "how a multirun is trained; sweep=NAME names it",
        default=Multirun(),
    )
