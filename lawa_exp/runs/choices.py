"""From plain mappings to typed settings and back: the one place that knows every part's table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from lawa_exp.averaging import AVERAGERS
from lawa_exp.axes.batch import BATCHES
from lawa_exp.axes.configuration import Config, Unresolved
from lawa_exp.axes.dataset import DATASETS
from lawa_exp.axes.fault import FAULTS
from lawa_exp.axes.feedback import FEEDBACK
from lawa_exp.axes.layers import LAYERS
from lawa_exp.axes.logger import LOGGERS
from lawa_exp.axes.lr import SCHEDULES
from lawa_exp.axes.model import MODELS
from lawa_exp.axes.objective import OBJECTIVES
from lawa_exp.axes.optimizer import OPTIMIZERS
from lawa_exp.axes.sampling import SAMPLERS
from lawa_exp.axes.scaling import SCALINGS
from lawa_exp.axes.update import UPDATES
from lawa_exp.axes.watch import WATCHES
from lawa_exp.config.names import BUDGET_UNITS
from lawa_exp.config.parts import read_part
from lawa_exp.config.rules import Rule, build, integer, key_of, near, number, one_of
from lawa_exp.config.shared import FORMAT_VERSION, Evaluate, Init, Logger, Save, Teacher, Trainer, Trajectory
from lawa_exp.config.tables import Table
from lawa_exp.system.errors import UserError

T = TypeVar("T")
TABLES: dict[str, Table[object]] = {
    "model": MODELS,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "lr": SCHEDULES,
    "batch": BATCHES,
    "scaling": SCALINGS,
    "sampling": SAMPLERS,
    "objective": OBJECTIVES,
    "feedback": FEEDBACK,
    "fault": FAULTS,
}
USUAL = {"sampling": {"kind": "epochs"}, "objective": {"kind": "task"}}  # not in config.yaml, as empty lists
NO_TEACHER = {"from": None, "weights": "live", "step": None}
# Several, by name.
LISTS: dict[str, Table[object]] = {"layers": LAYERS, "update": UPDATES, "watch": WATCHES, "loggers": LOGGERS}
SHARED: dict[str, type] = {
    "init": Init,
    "teacher": Teacher,
    "trainer": Trainer,
    "evaluate": Evaluate,
    "save": Save,
    "logger": Logger,
    "trajectory": Trajectory,
}


KNOWN = {*TABLES, *LISTS, *SHARED, *BUDGET_UNITS, "averagers", "seed", "recipe"} | {
    "format_version",
    "trajectory_id",
    "identity",
    "metrics",  # of a run's task, for readers of its rows
}
AT_ONCE = frozenset({"model", "dataset", "batch", "init", "teacher"})  # the others need them, or they count no steps


def unresolved_from(values: Mapping[str, Any]) -> Unresolved:
    """The configuration from a plain mapping, unresolved. UserError names the first thing that is wrong."""
    parts = parts_of(values, frozenset({*TABLES, *LISTS, *SHARED, "averagers"} - AT_ONCE))
    return Unresolved(**parts, budget=_budget(values), **_seed_and_recipe(values))


def config_from(values: Mapping[str, Any]) -> Config:
    """The configuration of a run, from its config.yaml. UserError names the first thing that is wrong or unresolved."""
    parts = parts_of(values, frozenset())
    unit, steps = _budget(values)
    if unit != "steps":
        raise UserError(f"{unit}={steps}: expected steps, in the configuration of a run")
    return Config(**parts, steps=int(steps), **_seed_and_recipe(values))


def parts_of(values: Mapping[str, Any], waiting: Collection[str]) -> dict[str, Any]:
    """The checked parts by name: a `Part` of those that are `waiting`, the dataclass of the others."""
    for name in values:
        if name not in KNOWN:
            raise UserError(f"{name} is not a setting; {near(name, KNOWN)}")
    if values.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise UserError(f"format_version={values['format_version']}: this version reads {FORMAT_VERSION}")
    values = {**USUAL, "teacher": NO_TEACHER, **dict.fromkeys(LISTS, ()), **of_today(values)}
    for name in (*TABLES, *SHARED, "averagers", "seed", "recipe"):
        if name not in values:
            raise UserError(f"{name} is missing")
    check_inputs(values["model"], values["dataset"])

    def make(name: str) -> Callable[[type, Mapping[str, Any], str], Any]:
        return read_part if name in waiting else build

    parts = {name: choose(table, values[name], name, make(name)) for name, table in TABLES.items()}
    for group, table in LISTS.items():
        parts[group] = tuple(choose_named(table, group, entry, make(group)) for entry in values[group])
    kinds = [str(entry.get("kind")) for entry in values["loggers"]]
    for kind in kinds:
        if kinds.count(kind) > 1:  # each has one folder in a run's
            raise UserError(f"loggers: two of the kind {kind}; expected one of each")
    parts |= {name: make(name)(cls, values[name], name) for name, cls in SHARED.items()}
    parts["averagers"] = tuple(
        choose(AVERAGERS, entry, f"averagers.{entry.get('kind')}", make("averagers")) for entry in values["averagers"]
    )
    return parts


def of_today(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a run that was made when there was one logger, and the noise scale was a setting of it."""
    logger = values.get("logger")
    if not isinstance(logger, Mapping) or "kind" not in logger or "trajectory_id" not in values:
        return values
    changed: dict[str, Any] = {"logger": {"every": logger.get("every")}}
    if logger.get("noise_scale"):
        changed["watch"] = [{"name": "noise_scale", "kind": "noise_scale"}]
    if (kind := str(logger["kind"])) != "jsonl":
        own = {key: value for key, value in logger.items() if key not in ("every", "noise_scale")}
        changed["loggers"] = [{"name": kind, "artifacts": False, **own}]
    return {**values, **changed}


def config_to(config: Config) -> dict[str, Any]:
    """The plain mapping that `config_from` takes."""
    content: dict[str, Any] = {"format_version": FORMAT_VERSION}
    for name, table in TABLES.items():
        part = getattr(config, name)
        settings = {"kind": table.kind_of(part), **_plain(part)}
        if settings != USUAL.get(name):
            content[name] = settings
    for group, table in LISTS.items():
        named = getattr(config, group)
        if named:
            content[group] = [{"name": name, "kind": table.kind_of(part), **_plain(part)} for name, part in named]
    content["averagers"] = [{"kind": a.kind, **dataclasses.asdict(a)} for a in config.averagers]
    for name in SHARED:
        settings = _plain(getattr(config, name))
        if (name, settings) != ("teacher", NO_TEACHER):
            content[name] = settings
    return content | {"steps": config.steps, "seed": config.seed, "recipe": config.recipe}


def _plain(part: Any) -> dict[str, Any]:
    plain = {key_of(f): getattr(part, f.name) for f in dataclasses.fields(part)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def choose(
    table: Mapping[str, type],
    values: Mapping[str, Any],
    path: str,
    make: Callable[[type, Mapping[str, Any], str], Any] = build,
) -> Any:
    """The settings of the choice named by `kind`. make: `build`, or `read_part` of what is not resolved yet."""
    if not isinstance(values, Mapping):
        raise UserError(f"{path}={values}: expected a choice, {', '.join(table)}, or {path}.KEY=VALUE")
    kind = str(values.get("kind"))
    if kind not in table:
        raise UserError(f"{path}.kind={kind}: {near(kind, table)}")
    return make(table[kind], {k: v for k, v in values.items() if k != "kind"}, path)


def choose_named(
    table: Mapping[str, type],
    group: str,
    values: Mapping[str, Any],
    make: Callable[[type, Mapping[str, Any], str], Any],
) -> tuple[str, Any]:
    """The name and the settings of one choice of a list."""
    name = str(values.get("name", values.get("kind")))
    return name, choose(table, {k: v for k, v in values.items() if k != "name"}, f"{group}.{name}", make)


def check_inputs(model: Any, dataset: Any) -> None:
    """UserError where the model does not take what the data set holds. What is wrong otherwise, `choose` tells."""
    if not (isinstance(model, Mapping) and isinstance(dataset, Mapping)):
        return
    of_model, of_dataset = str(model.get("kind")), str(dataset.get("kind"))
    if of_model not in MODELS or of_dataset not in DATASETS:
        return
    takes, holds = MODELS[of_model].inputs, dataset.get("inputs", DATASETS[of_dataset].inputs)
    if "any" in (takes, holds) or takes == holds:
        return
    fitting = [name for name, cls in DATASETS.items() if cls.inputs == takes]
    raise UserError(
        f"model={model.get('name')} takes {takes}, dataset={dataset.get('name')} holds {holds}: "
        f"choose another model, or a data set of the kind {' or '.join(fitting)}"
    )


def _budget(values: Mapping[str, Any]) -> tuple[str, float]:
    """(unit, amount)."""
    budgets = {unit: values[unit] for unit in BUDGET_UNITS if values.get(unit) is not None}
    if len(budgets) != 1:
        got = ", ".join(f"{k}={v}" for k, v in budgets.items()) or "none"
        raise UserError(f"budget: expected exactly one of {', '.join(BUDGET_UNITS)}, got {got}")
    unit, amount = next(iter(budgets.items()))
    rule = number(above=0) if unit == "epochs" else integer(1)
    return unit, _parse(unit, amount, rule)


def _seed_and_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seed": _parse("seed", values["seed"], integer(0)),
        "recipe": _parse("recipe", values["recipe"], one_of("as_published", "fair")),
    }


def _parse(key: str, value: Any, rule: Rule[T]) -> T:
    try:
        return rule.parse(value)
    except (ValueError, TypeError):
        raise UserError(f"{key}={value}: expected {rule.expected}") from None
