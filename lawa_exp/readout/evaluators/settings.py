"""An evaluator's settings, which are flags of `readout` by their names (`task_data` is --task-data)."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from lawa_exp.averaging.flags import plain
from lawa_exp.config.rules import Rule, Settings, rule_of
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.readout.evaluators.base import Checkpoints, Evaluator
    from lawa_exp.readout.request import Request

T = TypeVar("T")


class EvaluatorSettings(Settings):
    """Of an evaluator, a frozen dataclass whose fields `flag` declares. Imported for --help: without torch.

    on_dataset: it evaluates on a data set, a run's own or the one that --dataset names.
    """

    on_dataset: ClassVar[bool] = False

    def evaluator(self, request: Request, checkpoints: Checkpoints) -> Evaluator:
        """What evaluates the checkpoints. UserError: it cannot evaluate their model, or something lacks."""
        raise NotImplementedError


def flag(rule: Rule[T], metavar: str, help: str, default: T | None = None) -> T:
    """A field of an evaluator's settings. help: as --help has it."""
    metadata = {"rule": rule, "metavar": metavar, "help": help}
    return cast(T, dataclasses.field(default=default, metadata=metadata))


def spelled(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def flags_of(evaluators: Mapping[str, type[EvaluatorSettings]]) -> dict[str, list[str]]:
    """Of each field of any evaluator the names of those that have it."""
    names: dict[str, list[str]] = {}
    for name, cls in evaluators.items():
        for field in dataclasses.fields(cls):
            names.setdefault(field.name, []).append(name)
    return names


def add_flags(parser: argparse.ArgumentParser, evaluators: Mapping[str, type[EvaluatorSettings]]) -> None:
    """The flags of all evaluators; of several with one name the first says what it is."""
    for name, owners in flags_of(evaluators).items():
        of_first = next(f for f in dataclasses.fields(evaluators[owners[0]]) if f.name == name).metadata
        text = f"{', '.join(owners)}: {of_first['help']}"
        parser.add_argument(spelled(name), metavar=of_first["metavar"], help=text.replace("%", "%%"))


def settings_from(
    evaluators: Mapping[str, type[EvaluatorSettings]], how: str | None, texts: Mapping[str, str]
) -> EvaluatorSettings | None:
    """The settings of the evaluator `how` from its flags; None where it is none of the table.

    texts: the flags of the command line by field. UserError: one is another evaluator's, or has a wrong value.
    """
    owners = flags_of(evaluators)
    for name in texts:
        if how not in owners[name]:
            raise UserError(f"{spelled(name)} is for --evaluate {' or '.join(owners[name])}")
    if how is None or how not in evaluators:
        return None
    cls = evaluators[how]
    rules = {f.name: rule_of(f) for f in dataclasses.fields(cls)}
    return cls(**{name: _parsed(rules[name], name, text) for name, text in texts.items()})


def _parsed(rule: Rule[T], name: str, text: str) -> T:
    for value in (text, plain(text)):
        try:
            return rule.parse(value)
        except (ValueError, TypeError):
            continue
    raise UserError(f"{spelled(name)}={text}: expected {rule.expected}")
