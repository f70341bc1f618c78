"""Settings before the data are open: checked, and not yet of their dataclass, whose step counts are integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lawa_exp.config.rules import Amount, Settings, StepCounter, Waits, checked, construct, rule_of
from lawa_exp.system.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """The settings of a `cls`. values: by field name, as `Rule.read` returns them; path: where they stand."""

    cls: type[T]
    values: Mapping[str, Any]
    path: str

    def changed(self, **values: Any) -> Part[T]:
        """With these values, as rules read them, in place of its own."""
        return dataclasses.replace(self, values={**self.values, **values})

    def filled(self, **values: Any) -> Part[T]:
        """With these values for settings that are null."""
        return self.changed(**{name: value for name, value in values.items() if self.values[name] is None})

    def value(self, name: str, counter: StepCounter) -> Any:
        """One setting, resolved."""
        field = next(f for f in dataclasses.fields(self.cls) if f.name == name)  # type: ignore[arg-type]
        try:
            return rule_of(field).resolve(self.values[name], counter)
        except ValueError as error:
            raise UserError(f"{self.path}.{name}={error}") from None

    def resolved(self, counter: StepCounter) -> T:
        """The dataclass. UserError names what is wrong now that amounts are numbers."""
        return construct(self.cls, {name: self.value(name, counter) for name in self.values}, self.path)


class NoAmounts:
    """The counter where the data are not open."""

    def steps(self, amount: Amount) -> int:
        raise Waits

    def last_steps(self, amount: Amount) -> int:
        raise Waits


def read_part(cls: type[T], values: Mapping[str, Any], path: str) -> Part[T]:
    """The settings from a plain mapping. UserError names the first value that is wrong, or two that do not fit."""
    part = Part(cls, checked(cls, values, path, as_written=True), path)
    if issubclass(cls, Settings):
        try:
            cls.together(part.values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    with suppress(Waits):
        part.resolved(NoAmounts())
    return part
