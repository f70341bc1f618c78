"""Typed settings, checked once at the edge.

A field says what it accepts through a `Rule`; `build` turns a plain mapping into the dataclass or raises `UserError`
with one line that names the key, the value and what was expected. Defaults live in conf/, not here; but those of the
averagers, which are classes for other people's loops as well, live in their settings, and conf/ reads them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, Protocol, TypeVar, cast

from lawa_exp.system.errors import UserError
from lawa_exp.system.limits import PLAIN_NAME, is_plain_name

ARGUMENTS = "keyword arguments of the builder, as {name: value}"
LARGEST = 10**15  # of integers: what floats and indices hold with room to spare
MOST_LAYERS = 10_000  # thirty times as many as any model has, and counted in a minute
LARGEST_BATCH = 10**8  # samples: more are no data set's, and their numbers alone take gigabytes
T = TypeVar("T")
U = TypeVar("U")
Value = TypeVar("Value", covariant=True)


class Amount(NamedTuple):
    """`1epoch`, `1e6tokens`, `75%`: what data make a number of steps of. unit: epochs, samples, tokens or %."""

    number: float
    unit: str
    text: str

    def __str__(self) -> str:
        return self.text


class StepCounter(Protocol):
    """What makes numbers of steps of amounts, rounded up to whole steps."""

    def steps(self, amount: Amount) -> int:
        """The first step after which so much was seen."""

    def last_steps(self, amount: Amount) -> int:
        """How many of the last steps up to the horizon see so much."""


class Waits(Exception):
    """A value cannot be resolved yet."""


class Written(Generic[Value]):
    """How a setting may be written before the data are open.

    expected: what `read` accepts, for messages. read: checks it, as `Rule.parse` does. resolve: makes a Value of what
    was read, or a ValueError that says why not.
    """

    def __init__(self, expected: str, read: Callable[[Any], Any], resolve: Callable[[Any, StepCounter], Value]) -> None:
        self.expected, self.read, self.resolve = expected, read, resolve


class Rule(Generic[Value]):
    """What a setting accepts: `parse` returns the value in its own type or raises ValueError.

    written: of a setting that may have another form first, such as a number of steps. names: words that it accepts.
    """

    def __init__(
        self,
        expected: str,
        parse: Callable[[Any], Value],
        written: Written[Value] | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.expected, self.parse, self.written, self.names = expected, parse, written, names

    def read(self, value: Any) -> Any:
        """The checked value, in the setting's own type or as `resolve` takes it."""
        return self.written.read(value) if self.written else self.parse(value)

    def resolve(self, value: Any, counter: StepCounter) -> Value:
        """The value in the setting's own type, of what `read` returned."""
        return self.written.resolve(value, counter) if self.written else value


def _reject() -> NoReturn:
    raise ValueError


def integer(low: int, high: int = LARGEST) -> Rule[int]:
    def parse(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            _reject()
        return value

    return Rule(f"an integer of at least {low}" + (f" and at most {high:,}" if high < LARGEST else ""), parse)


def number(low: float | None = None, high: float | None = None, above: float | None = None) -> Rule[float]:
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


def boolean() -> Rule[bool]:
    return Rule("true or false", lambda v: v if isinstance(v, bool) else _reject(), names=("true", "false"))


def text() -> Rule[str]:
    """Not empty: that is what an unset variable of the shell gives."""

    def parse(value: Any) -> str:
        if value == "" or isinstance(value, bool) or not isinstance(value, str | int | float):
            _reject()
        return str(value)

    return Rule("text", parse)


def plain_name() -> Rule[str]:
    """What a folder can be called: it leads nowhere else."""

    def parse(value: Any) -> str:
        chosen = text().parse(value)
        return chosen if is_plain_name(chosen) else _reject()

    return Rule(PLAIN_NAME, parse)


def one_of(*choices: str) -> Rule[str]:
    return Rule("one of " + ", ".join(choices), lambda v: v if v in choices else _reject(), names=choices)


def mapping() -> Rule[dict[str, Any]]:
    return Rule("a mapping", lambda v: dict(v) if isinstance(v, Mapping) else _reject())


def either(first: Rule[T], second: Rule[U]) -> Rule[T | U]:
    def parse(value: Any) -> T | U:
        try:
            return first.parse(value)
        except (ValueError, TypeError):
            return second.parse(value)

    return Rule(f"{first.expected} or {second.expected}", parse, names=(*first.names, *second.names))


def optional(rule: Rule[T]) -> Rule[T | None]:
    """Null is a value of the setting."""

    def parse(value: Any) -> T | None:
        return None if value is None else rule.parse(value)

    def resolve(value: Any, counter: StepCounter) -> T | None:
        return None if value is None else rule.resolve(value, counter)

    written = None
    if rule.written:
        or_null = f"{rule.written.expected}, or null"
        written = Written(or_null, lambda v: None if v is None else rule.read(v), resolve)
    return Rule(f"{rule.expected}, or null", parse, written, rule.names)


def defaulted(rule: Rule[T]) -> Rule[T]:
    """Null may be written, and stands for what only resolving knows: see `Part.filled`."""

    def resolve(value: Any, counter: StepCounter) -> T:
        if value is None:
            raise Waits
        return rule.resolve(value, counter)

    or_null = f"{rule.written.expected if rule.written else rule.expected}, or null"
    written = Written(or_null, lambda v: None if v is None else rule.read(v), resolve)
    return Rule(rule.expected, rule.parse, written, rule.names)


def list_of(rule: Rule[T], expected: str = "") -> Rule[tuple[T, ...]]:
    """expected: the list in fewer words."""

    def parse(value: Any) -> tuple[T, ...]:
        return tuple(rule.parse(x) for x in list(value))

    def resolve(value: Any, counter: StepCounter) -> tuple[T, ...]:
        return tuple(rule.resolve(x, counter) for x in value)

    written = None
    if rule.written:
        each = expected or f"a list, each {rule.written.expected}"
        written = Written(each, lambda v: tuple(rule.read(x) for x in list(v)), resolve)
    return Rule(expected or f"a list, each {rule.expected}", parse, written)


_AMOUNT = re.compile(r"(?P<number>\d+(\.\d+)?(e\d+)?)\s*(?P<unit>%|epochs?|steps?|samples?|tokens?)")


def steps(low: int = 0, at_end: bool = False) -> Rule[int]:
    """A number of steps: an integer, or before it is resolved an amount.

    at_end: an amount is one of the last steps before the horizon, and not of the first ones.
    """

    def read(value: Any) -> int | Amount:
        if not isinstance(value, str):
            return integer(low).parse(value)
        match = _AMOUNT.fullmatch(value.strip())
        if not match:
            return integer(low).parse(int(value))
        number, unit = float(match["number"]), match["unit"].removesuffix("s")
        if number > LARGEST:
            _reject()
        if unit == "step":
            return integer(low).parse(number)
        return Amount(number, unit if unit == "%" else f"{unit}s", value.strip())

    def parse(value: Any) -> int:
        resolved = read(value)
        return resolved if isinstance(resolved, int) else _reject()

    def resolve(value: int | Amount, counter: StepCounter) -> int:
        if isinstance(value, int):
            return value
        resolved = counter.last_steps(value) if at_end else counter.steps(value)
        if resolved < low:
            raise ValueError(f"{value} is {resolved} steps: expected at least {low}")
        return resolved

    amounts = f"a number of steps of at least {low} (an integer, '1epoch', '1e6tokens' or '75%' of the horizon)"
    return Rule(integer(low).expected, parse, Written(amounts, read, resolve))


class _Nothing:
    """No setting is equal to it."""


_NOTHING = _Nothing()


def setting(rule: Rule[T], help: str, default: T | _Nothing = _NOTHING, before: T | _Nothing = _NOTHING) -> T:
    """A dataclass field that accepts what `rule` does. help: its meaning, with the unit, for `lawa help`.

    default: where it stands here and not in conf/. before: what every training did before this setting came; equal to
    it, the setting is left out of a trajectory's id.
    """
    value = dataclasses.MISSING if default is _NOTHING else default
    return cast(T, dataclasses.field(default=value, metadata={"rule": rule, "help": help, "before": before}))


def arguments() -> Any:
    """The field `args` of a choice from outside: what its builder is called with, by name; null, or left out: nothing.

    A mapping cannot be hashed: it counts in equality alone.
    """
    return dataclasses.field(hash=False, metadata={"rule": optional(mapping()), "help": ARGUMENTS, "before": None})


def rule_of(field: dataclasses.Field[Any]) -> Rule[Any]:
    """What a dataclass field made by `setting` accepts."""
    rule: Rule[Any] = field.metadata["rule"]
    return rule


def help_of(field: dataclasses.Field[Any]) -> str:
    """The meaning of a dataclass field made by `setting`."""
    text: str = field.metadata["help"]
    return text


def as_before(settings: Any) -> set[str]:
    """The keys of a dataclass's settings that are equal to what every training did before they came."""
    fields = dataclasses.fields(settings)
    return {key_of(f) for f in fields if getattr(settings, f.name) == f.metadata["before"]}


class Settings:
    """The base of the settings of an axis, each a frozen dataclass whose fields `setting` declares."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @classmethod
    def together(cls, values: Mapping[str, Any]) -> None:
        """UserError where values that need no data do not go together. values: by field name, as rules read them."""


def key_of(field: dataclasses.Field) -> str:
    """A setting's key; `from_` is the key `from`."""
    return field.name.rstrip("_")


def setting_names(cls: type) -> list[str]:
    """The names of a dataclass's settings, in their order."""
    return [key_of(f) for f in dataclasses.fields(cls)]


def default_of(cls: type, name: str) -> Any:
    """The default of a setting; KeyError where the class has no such setting."""
    return {key_of(f): f.default for f in dataclasses.fields(cls)}[name]


def near(name: str, choices: Iterable[str]) -> str:
    """`did you mean ...` for a misspelt name, followed by all the choices."""
    import difflib  # takes milliseconds

    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}choices: {', '.join(choices)}"


def build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """The dataclass `cls` from a plain mapping, all of it resolved; `path` is where it stands (for messages)."""
    return construct(cls, checked(cls, values, path), path)


def checked(cls: type, values: Mapping[str, Any], path: str, as_written: bool = False) -> dict[str, Any]:
    """The values by field name, each as its rule parses it, or `as_written` as its rule reads it."""
    fields = {key_of(f): f for f in dataclasses.fields(cls)}
    if not isinstance(values, Mapping):
        raise UserError(f"{path}={values}: expected settings, {path}.KEY=VALUE; {near('', fields)}")
    for name in values:
        if name not in fields:
            raise UserError(f"{_join(path, name)} is not a setting here; {near(name, fields)}")
    parsed = {}
    later = {name: field.metadata["before"] for name, field in fields.items()}  # what held before there was a setting
    values = {name: value for name, value in later.items() if value is not _NOTHING} | {**values}
    for name, field in fields.items():
        if name not in values:
            raise UserError(f"{_join(path, name)} is missing")
        rule = rule_of(field)
        try:
            parsed[field.name] = rule.read(values[name]) if as_written else rule.parse(values[name])
        except (ValueError, TypeError):
            expected = rule.written.expected if as_written and rule.written else rule.expected
            raise UserError(f"{_join(path, name)}={values[name]}: expected {expected}") from None
    return parsed


def construct(cls: type[T], parsed: Mapping[str, Any], path: str) -> T:
    """The dataclass of values that are right one by one; UserError names what does not go together."""
    try:
        return cls(**parsed)
    except UserError as error:  # a check across fields, in __post_init__
        raise UserError(f"{path}: {error}" if path else str(error)) from None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lr": {"peak": 1}} as {"lr.peak": 1}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
