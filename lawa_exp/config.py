"""The shared settings: typed dataclasses, checked once at the edge.

A field says what it accepts through a `Rule`; `build` turns a plain mapping into the dataclass or raises `UserError`
with one line that names the key, the value and what was expected. Defaults live in conf/, not here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

FORMAT_VERSION = 1
LARGEST = 10**15  # of integers: what floats and indices hold with room to spare
STABLE = "stable"  # init.from: the constant-rate run of the same settings, which a sweep trains first
BN_POLICIES = ("recalibrate", "average", "latest")
MODES = ("online", "offline", "off")  # of W&B; YAML reads a bare off as false
BUDGET_UNITS = ("steps", "epochs", "tokens", "samples")

T = TypeVar("T")


class UserError(ValueError):
    """A mistake of the user's: one readable line, exit code 2, no traceback."""


class InUse(UserError):
    """A folder that another process holds."""


class Failed(Exception):
    """A failure that is nobody's programming error: one readable line, exit code 1, no traceback."""


@dataclass(frozen=True)
class Rule:
    """What a setting accepts: `parse` returns the value in its own type or raises ValueError."""

    expected: str
    parse: Callable[[Any], Any]


def _reject() -> Any:
    raise ValueError


def integer(low: int) -> Rule:
    def parse(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= LARGEST:
            _reject()
        return value

    return Rule(f"an integer of at least {low}", parse)


def number(low: float | None = None, high: float | None = None, above: float | None = None) -> Rule:
    """A finite number, low <= value <= high, or above < value."""
    bounds = [f"at least {low:g}" if low is not None else "", f"above {above:g}" if above is not None else ""]
    bounds += [f"at most {high:g}" if high is not None else ""]
    text = " and ".join(b for b in bounds if b)

    def parse(value: Any) -> float:
        if isinstance(value, str):  # YAML reads 3e-4 (without a dot) as text
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            _reject()
        if (low is not None and value < low) or (high is not None and value > high):
            _reject()
        if above is not None and value <= above:
            _reject()
        return float(value)

    return Rule("a number" + (f", {text}" if text else ""), parse)


def boolean() -> Rule:
    return Rule("true or false", lambda v: v if isinstance(v, bool) else _reject())


def text() -> Rule:
    return Rule("text", lambda v: str(v) if isinstance(v, str | int | float) and not isinstance(v, bool) else _reject())


def one_of(*choices: str) -> Rule:
    return Rule("one of " + ", ".join(choices), lambda v: v if v in choices else _reject())


def optional(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda v: None if v is None else rule.parse(v))


def either(*rules: Rule) -> Rule:
    def parse(value: Any) -> Any:
        for rule in rules:
            try:
                return rule.parse(value)
            except (ValueError, TypeError):
                continue
        _reject()

    return Rule(" or ".join(r.expected for r in rules), parse)


def mapping() -> Rule:
    return Rule("a mapping", lambda v: dict(v) if isinstance(v, Mapping) else _reject())


_STEPS = re.compile(r"(?P<number>\d+(\.\d+)?(e\d+)?)\s*(?P<unit>%|epochs?|steps?|samples?|tokens?)")


def steps(low: int = 0) -> Rule:
    """A number of steps: an integer, or `1epoch`, `1e6tokens`, `75%` (of the horizon): see `resolve_steps`."""

    def parse(value: Any) -> int | str:
        if isinstance(value, str):
            match = _STEPS.fullmatch(value.strip())
            if not match:
                return integer(low).parse(int(value))
            if match["unit"].startswith("step"):
                return integer(low).parse(float(match["number"]))
            return value.strip()
        return integer(low).parse(value)

    return Rule(
        f"a number of steps of at least {low} (an integer, '1epoch', '1e6tokens' or '75%' of the horizon)", parse
    )


def resolve_steps(
    value: int | str, steps_for: Callable[[float, str], int], horizon: int, key: str, low: int = 0
) -> int:
    """`1epoch`, `1e6tokens` and `75%` as a number of steps, rounded up to whole steps; integers as they are.

    steps_for: the first step after which an amount of epochs, samples or tokens was seen.
    """
    if isinstance(value, int):
        return value
    match = _STEPS.fullmatch(value)
    assert match, value
    amount = float(match["number"])
    if match["unit"] == "%":
        resolved = math.ceil(round(amount / 100 * horizon, 6))
    else:
        resolved = steps_for(amount, match["unit"].removesuffix("s") + "s")
    if resolved < low:
        raise UserError(f"{key}={value} is {resolved} steps: expected at least {low}")
    return resolved


def setting(rule: Rule) -> Any:
    """A dataclass field that accepts what `rule` does."""
    return dataclasses.field(metadata={"rule": rule})


def key_of(field: dataclasses.Field) -> str:
    """A setting's key; `from_` is the key `from`."""
    return field.name.rstrip("_")


def setting_names(cls: type) -> list[str]:
    """The names of a dataclass's settings, in their order."""
    return [key_of(f) for f in dataclasses.fields(cls)]


def near(name: str, choices: Iterable[str]) -> str:
    """`did you mean ...` for a misspelt name, followed by all the choices."""
    import difflib  # takes milliseconds

    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}choices: {', '.join(choices)}"


def build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """The dataclass `cls` from a plain mapping; `path` is where it stands in the configuration (for messages)."""
    fields = {key_of(f): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise UserError(f"{path}={values}: expected settings, {path}.KEY=VALUE; {near('', fields)}")
    for name in values:
        if name not in fields:
            raise UserError(f"{_join(path, name)} is not a setting here; {near(name, fields)}")
    parsed = {}
    for name, field in fields.items():
        if name not in values:
            raise UserError(f"{_join(path, name)} is missing")
        rule: Rule = field.metadata["rule"]
        try:
            parsed[field.name] = rule.parse(values[name])
        except (ValueError, TypeError):
            raise UserError(f"{_join(path, name)}={values[name]}: expected {rule.expected}") from None
    try:
        return cls(**parsed)
    except UserError as error:  # a check across fields, in __post_init__
        raise UserError(f"{path}: {error}" if path else str(error)) from None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@dataclass(frozen=True)
class Init:
    """What a training goes on from, see `origin.py`; null: from the seed."""

    from_: str | None = setting(optional(text()))
    step: int | None = setting(optional(integer(1)))
    optimizer: str | None = setting(optional(one_of("keep", "reset")))


@dataclass(frozen=True)
class Trainer:
    """Where and how the arithmetic is done. workers: processes of a rank that decode images from files; 0: none."""

    device: str = setting(text())
    dtype: str = setting(one_of("auto", "float32", "bfloat16"))
    compile: bool = setting(boolean())
    threads: int | None = setting(optional(integer(1)))
    deterministic: bool = setting(boolean())
    micro_batch: int | None = setting(optional(integer(1)))
    parallel: str = setting(one_of("auto", "ddp", "fsdp"))
    checkpoint_activations: bool = setting(boolean())
    workers: int | None = setting(optional(integer(0)))


@dataclass(frozen=True)
class Logger:
    """What is written while training; `every` is the steps between two training rows.

    noise_scale: these rows have the two estimates of the gradient noise scale (`noise_scale.estimates`).
    """

    every: int = setting(integer(1))
    noise_scale: bool = setting(boolean())


@dataclass(frozen=True)
class WandbLogger(Logger):
    """The same, and its rows are sent to W&B beside training (`wandb_log/`).

    mode: online; offline, a file in RUN/wandb/; off. finish_timeout: seconds that a run waits for W&B at its end.
    """

    mode: str = setting(Rule("one of online, offline, off", lambda v: one_of(*MODES).parse("off" if v is False else v)))
    project: str = setting(text())
    entity: str | None = setting(optional(text()))
    finish_timeout: float = setting(number(low=0))


LOGGERS: dict[str, type] = {"jsonl": Logger, "wandb": WandbLogger}


@dataclass(frozen=True)
class Evaluate:
    """When and on how much the weights are evaluated; `batch_size` is samples in one forward pass.

    bn: with which BatchNorm statistics they are (`batchnorm.py`), recalibrated on `bn_samples`.
    """

    every: int | str = setting(steps(1))
    samples: int | str = setting(either(integer(1), one_of("all")))
    batch_size: int = setting(integer(1))
    bn: str = setting(one_of(*BN_POLICIES))
    bn_samples: int | str = setting(either(integer(1), one_of("all")))


@dataclass(frozen=True)
class Save:
    """When the complete state is saved, and the steps whose state is kept in states/."""

    every: int | str | None = setting(optional(steps(1)))
    keep: Any = setting(Rule("a list of steps", lambda v: tuple(steps(1).parse(s) for s in v)))


@dataclass(frozen=True)
class Trajectory:
    """Which snapshots are written, how many of the latest are kept, and where those of an attached window are read.

    shard_size: bytes of a file of tensors; what is larger becomes several, with an index, as Hugging Face's.
    """

    every: int | str | None = setting(optional(steps(1)))
    keep: int | str = setting(either(one_of("all", "none"), integer(1)))
    window: str = setting(one_of("memory", "disk"))
    shard_size: int = setting(integer(1))


@dataclass(frozen=True)
class Config:
    """Everything that one training was asked for. Settings of the parts are their own dataclasses."""

    model: Any
    dataset: Any
    optimizer: Any
    lr: Any
    batch: Any
    scaling: Any
    init: Init
    averagers: tuple[Any, ...]
    feedback: Any
    fault: Any
    trainer: Trainer
    logger: Logger
    evaluate: Evaluate
    save: Save
    trajectory: Trajectory
    budget: tuple[str, float]  # (unit, amount); resolved: ("steps", n)
    seed: int
    recipe: str

    @property
    def steps(self) -> int:
        """The budget in steps; only once it is resolved."""
        unit, amount = self.budget
        assert unit == "steps", "the budget is not resolved yet"
        return int(amount)


@dataclass(frozen=True)
class Options:
    """What one call of the command asks for besides the training itself."""

    run_dir: str | None = setting(optional(text()))
    runs_root: str = setting(text())
    sweep: str | None = setting(optional(text()))
    plan: bool = setting(boolean())
    rerun: bool = setting(boolean())
