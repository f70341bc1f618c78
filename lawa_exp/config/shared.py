"""The settings that are no choice on an axis."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.config.names import BN_POLICIES
from lawa_exp.config.rules import (
    LARGEST_BATCH,
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
from lawa_exp.system.files import MOST_THREADS

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Init:
    """What a training goes on from, see `storage/origin.py`; null: from the seed."""

    from_: str | None = setting(optional(text()))
    step: int | None = setting(optional(integer(1)))
    optimizer: str | None = setting(optional(one_of("keep", "reset")))


@dataclass(frozen=True)
class Teacher:
    """The weights that an objective learns from, see `storage/teacher.py`; null: none.

    from: a run's folder, or weights. weights: of a run its live ones, or an averager's id. step: of a run.
    """

    from_: str | None = setting(optional(text()), default=None)
    weights: str = setting(text(), default="live")
    step: int | None = setting(optional(integer(0)), default=None)


@dataclass(frozen=True)
class Trainer:
    """Where and how the arithmetic is done. workers: processes of a rank that decode images from files; 0: none."""

    device: str = setting(text())
    dtype: str = setting(one_of("auto", "float32", "bfloat16"))
    compile: bool = setting(boolean())
    threads: int = setting(defaulted(integer(1, MOST_THREADS)))
    deterministic: bool = setting(boolean())
    micro_batch: int | None = setting(optional(integer(1)))
    parallel: str = setting(one_of("auto", "ddp", "fsdp"))
    checkpoint_activations: bool = setting(boolean())
    workers: int = setting(defaulted(integer(0, MOST_THREADS)))


@dataclass(frozen=True)
class Logger:
    """What is written while training; `every` is the steps between two training rows."""

    every: int = setting(integer(1))


@dataclass(frozen=True)
class Evaluate:
    """When and on how much the weights are evaluated; `batch_size` is samples in one forward pass.

    bn: with which BatchNorm statistics they are (`evaluation/batchnorm.py`), recalibrated on `bn_samples`.
    """

    every: int = setting(steps(1))
    samples: int | str = setting(either(integer(1), one_of("all")))
    batch_size: int = setting(integer(1, LARGEST_BATCH))
    bn: str = setting(one_of(*BN_POLICIES))
    bn_samples: int | str = setting(either(integer(1), one_of("all")))


@dataclass(frozen=True)
class Save:
    """When the complete state is saved, and the steps whose state is kept in states/."""

    every: int = setting(defaulted(steps(1)))
    keep: tuple[int, ...] = setting(list_of(steps(1), "a list of steps"))


@dataclass(frozen=True)
class Trajectory:
    """Which snapshots are written, how many of the latest are kept, and where those of an attached window are read.

    shard_size: bytes of a file of tensors; what is larger becomes several, with an index, as Hugging Face's.
    """

    every: int = setting(defaulted(steps(1)))
    keep: int | str = setting(either(one_of("all", "none"), integer(1)))
    window: str = setting(one_of("memory", "disk"))
    shard_size: int = setting(integer(1))


@dataclass(frozen=True)
class Options:
    """What one call of the command asks for besides the training itself."""

    run_dir: str | None = setting(optional(text()))
    runs_root: str = setting(text())
    sweep: str | None = setting(optional(plain_name()))
    plan: bool = setting(boolean())
    rerun: bool = setting(boolean())
