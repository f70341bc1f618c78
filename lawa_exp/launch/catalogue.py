"""Every choice and every setting of conf/: its meaning, what it accepts, and its default with each choice.

The meanings are those of the settings' classes (`setting(rule, help)`) and the first comment of a choice's file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lawa_exp.averaging import AVERAGERS
from lawa_exp.config.names import BUDGET_UNITS
from lawa_exp.config.rules import help_of, integer, key_of, number, one_of, rule_of
from lawa_exp.config.shared import Multirun, Options, Trainer
from lawa_exp.launch.conf import CONF, groups, launchers
from lawa_exp.launch.defaults import read_defaults
from lawa_exp.launch.slurm.settings import Slurm
from lawa_exp.runs.choices import LISTS, SHARED, TABLES

NOTHING = object()  # a setting without a default
PARTS = {name: cls for name, cls in SHARED.items() if name != "trainer"} | {"sweep": Multirun}  # that no choice brings
BUDGET = "how long to train; exactly one of " + ", ".join(BUDGET_UNITS)
TOP: dict[str, tuple[str, str]] = {  # settings of no group: meaning, expected
    "k": ("snapshots in the window of lawa and wma; a list attaches one averager for each", "an integer of at least 1"),
    "spacing": (
        "steps between two snapshots of that window; a list attaches one averager for each",
        "a number of steps of at least 1 (an integer, '1epoch' or '5%')",
    ),
    "seed": ("seed of the initial weights, the order of the samples and all other randomness", integer(0).expected),
    "recipe": (
        "as_published: a paper's own set-up; fair: against a baseline that is annealed at the budget",
        one_of("as_published", "fair").expected,
    ),
    **dict.fromkeys(BUDGET_UNITS, (BUDGET, number(above=0).expected)),
}
EXPERIMENT = "experiment"  # a group whose choices are whole configurations


@dataclasses.dataclass(frozen=True)
class Described:
    """A setting under one choice. key: as on the command line; choice: the file in conf/, "" where there is none.

    default: as conf/ writes it; `NOTHING` where the user has to give it.
    """

    key: str
    choice: str
    meaning: str
    expected: str
    default: object
    values: tuple[str, ...] = ()


@cache
def content(path: Path) -> dict[str, Any]:
    """A file of conf/ as it stands, without what it inherits."""
    import yaml

    read_defaults()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    return yaml.load(path.read_text(), loader) or {}


def head(group: str, choice: str) -> str:
    """The comment that a choice's file begins with: its meaning."""
    lines = file_of(group, choice).read_text().splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


def file_of(group: str, choice: str) -> Path:
    return CONF / group / f"{choice}.yaml"


def settings_of(group: str, choice: str) -> dict[str, Any]:
    """The settings of the group's own part that a choice brings, with those of the choices that it builds on."""
    own = content(file_of(group, choice))
    values: dict[str, Any] = {}
    for entry in own.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":  # `cosine`, or `/model/gpt2_small`
            values |= settings_of(group, entry.removeprefix(f"/{group}/"))
    own = {key: value for key, value in own.items() if key != "defaults"}
    package = re.search(r"^# @package (\S+)", file_of(group, choice).read_text(), re.MULTILINE)
    return values | (own.get(group, {}) if package and package[1] == "_global_" else own)


def prefix_of(group: str, choice: str) -> str:
    """Where the settings of a choice stand: `lr`, `averagers.ema`, `watch.noise_scale`."""
    if group == "hydra/launcher":
        return "hydra.launcher"
    package = re.search(r"^# @package (\S+)", file_of(group, choice).read_text(), re.MULTILINE)
    return group if package is None or package[1] == "_global_" else package[1]


def class_of(group: str, choice: str) -> type | None:
    """The class of a choice's settings; None where it has none."""
    if group == "hydra/launcher":
        return Slurm if choice == "slurm" else None
    if group == "trainer":
        return Trainer
    if group == "avg":
        kind = prefix_of(group, choice).removeprefix("averagers.")
        return AVERAGERS.get(kind)
    table = {**TABLES, **LISTS, "logger": LISTS["loggers"]}.get(group)
    of_choice = settings_of(group, choice).get("kind")
    return table[of_choice] if table and of_choice else None


def choices() -> Iterator[tuple[str, str]]:
    """(group, choice) of every file; those of `experiment` are whole configurations."""
    for group, names in groups().items():
        yield from ((group, name) for name in names)
    yield from (("hydra/launcher", name) for name in launchers())


def described(group: str, choice: str) -> list[Described]:
    """The settings of a choice, in the order of its class."""
    cls = class_of(group, choice) if group != EXPERIMENT else None
    if cls is None:
        return []
    return list(_fields(cls, prefix_of(group, choice), choice, settings_of(group, choice)))


def _fields(cls: type, prefix: str, choice: str, values: dict[str, Any]) -> Iterator[Described]:
    for field in dataclasses.fields(cls):
        if "rule" in field.metadata:
            rule, key = rule_of(field), key_of(field)
            expected = rule.written.expected if rule.written else rule.expected
            default = values.get(key, NOTHING)
            full = f"{prefix}.{key}" if prefix else key
            yield Described(
                full, choice, help_of(field), expected, NOTHING if default == "???" else default, rule.names
            )


def shared(part: str) -> list[Described]:
    """The settings of a part that no choice brings, such as `evaluate`; of "" those at the top."""
    own = content(CONF / "config.yaml")
    if part:
        return list(_fields(PARTS[part], part, "", own[part]))
    top = [Described(key, "", meaning, expected, own[key]) for key, (meaning, expected) in TOP.items()]
    return top + [entry for entry in _fields(Options, "", "", own) if entry.key not in PARTS]


@cache
def settings() -> dict[str, list[Described]]:
    """Every setting by its key, once for each choice that has it."""
    known: dict[str, list[Described]] = {}
    for part in ("", *PARTS):
        for entry in shared(part):
            known.setdefault(entry.key, []).append(entry)
    for group, choice in choices():
        for entry in described(group, choice):
            known.setdefault(entry.key, []).append(entry)
    return known


def names_of(group: str) -> list[str]:
    """The choices of a group."""
    return launchers() if group == "hydra/launcher" else groups().get(group, [])


def prefix_group(key: str) -> str:
    """The group that is chosen for a setting: `lr` of lr.peak, `avg` of averagers.ema.decay."""
    first = key.partition(".")[0]
    return {"averagers": "avg", "loggers": "logger", "hydra": "hydra/launcher"}.get(first, first)
