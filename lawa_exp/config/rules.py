"""Typed settings, checked once at the edge.

A field says what it accepts through a `Rule`; `build` turns a plain mapping into the dataclass or raises `UserError`
with one line that names the key, the value and what was expected. Defaults live in conf/, not here; but those of the
averagers, which are classes for other people's loops as well, live in their settings, and conf/ reads them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lawa_exp.system.errors import UserError

LARGEST = 10**15  # of integers: what floats and indices hold with room to spare


T = TypeVar("T")


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


def setting(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that accepts what `rule` does. default: where it stands here and not in conf/."""
    return dataclasses.field(default=default, metadata={"rule": rule})


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


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lr": {"peak": 1}} as {"lr.peak": 1}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
