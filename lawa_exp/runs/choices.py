"""From plain mappings to typed settings and back: the one place that knows every part's table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lawa_exp.averaging import AVERAGERS
from lawa_exp.axes.batch import BATCHES
from lawa_exp.axes.dataset import DATASETS
from lawa_exp.axes.fault import FAULTS
from lawa_exp.axes.feedback import FEEDBACK
from lawa_exp.axes.logger import LOGGERS
from lawa_exp.axes.lr import SCHEDULES
from lawa_exp.axes.model import MODELS
from lawa_exp.axes.optimizer import OPTIMIZERS
from lawa_exp.axes.scaling import SCALINGS
from lawa_exp.config.rules import build, integer, key_of, near, number, one_of
from lawa_exp.config.shared import BUDGET_UNITS, FORMAT_VERSION, Config, Evaluate, Init, Save, Trainer, Trajectory
from lawa_exp.config.tables import Table
from lawa_exp.system.errors import UserError

TABLES: dict[str, Table[object]] = {
    "model": MODELS,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "lr": SCHEDULES,
    "batch": BATCHES,
    "scaling": SCALINGS,
    "feedback": FEEDBACK,
    "fault": FAULTS,
    "logger": LOGGERS,
}
SHARED: dict[str, type] = {
    "init": Init,
    "trainer": Trainer,
    "evaluate": Evaluate,
    "save": Save,
    "trajectory": Trajectory,
}


KNOWN = {*TABLES, *SHARED, *BUDGET_UNITS, "averagers", "seed", "recipe"} | {
    "format_version",
    "trajectory_id",
    "identity",
}


# Settings that came later, and what was done before they did: configurations written then are read all the same.
LATER: dict[str, dict[str, Any]] = {
    "batch": {"norm_group": None},
    "evaluate": {"bn": "latest", "bn_samples": 10000},
    "lr": {"unit": "steps"},
    "init": {"from": None, "step": None, "optimizer": None},
    "logger": {"noise_scale": False},
    "trajectory": {"window": "memory", "shard_size": 5_000_000_000},
    "trainer": {"parallel": "auto", "checkpoint_activations": False, "workers": None},
    "averagers.ema": {"warmup": False},
    "optimizer.adamw": {"decays": "matrices"},
}


def config_from(values: Mapping[str, Any]) -> Config:
    """The configuration from a plain mapping, as in config.yaml. UserError names the first thing that is wrong."""
    for name in values:
        if name not in KNOWN:
            raise UserError(f"{name} is not a setting; {near(name, KNOWN)}")
    if values.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise UserError(f"format_version={values['format_version']}: this version reads {FORMAT_VERSION}")
    check_inputs(values["model"], values["dataset"])
    values = {"init": {}, "fault": {"kind": "none"}, **values}
    values = {k: {**later(k, v), **v} if isinstance(v, Mapping) else v for k, v in values.items()}
    parts = {name: choose(table, values[name], name) for name, table in TABLES.items()}
    shared: dict[str, Any] = {name: build(cls, values[name], name) for name, cls in SHARED.items()}
    averagers = []
    for entry in values["averagers"]:
        where = f"averagers.{entry.get('kind')}"
        averagers.append(choose(AVERAGERS, {**LATER.get(where, {}), **entry}, where))
    return Config(
        **parts,
        **shared,
        averagers=tuple(averagers),
        budget=_budget(values),
        seed=_parse("seed", values["seed"], integer(0)),
        recipe=_parse("recipe", values["recipe"], one_of("as_published", "fair")),
    )


def later(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What LATER has for a part, and for its kind."""
    return {**LATER.get(part, {}), **LATER.get(f"{part}.{values.get('kind')}", {})}


def config_to(config: Config) -> dict[str, Any]:
    """The plain mapping that `config_from` takes."""
    unit, amount = config.budget
    content: dict[str, Any] = {"format_version": FORMAT_VERSION}
    for name, table in TABLES.items():
        part = getattr(config, name)
        content[name] = {"kind": table.kind_of(part), **_plain(part)}
    content["averagers"] = [{"kind": a.kind, **dataclasses.asdict(a)} for a in config.averagers]
    for name in SHARED:
        content[name] = _plain(getattr(config, name))
    return content | {unit: amount, "seed": config.seed, "recipe": config.recipe}


def _plain(part: Any) -> dict[str, Any]:
    plain = {key_of(f): getattr(part, f.name) for f in dataclasses.fields(part)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def choose(table: Mapping[str, type], values: Mapping[str, Any], path: str) -> Any:
    """The settings of the choice named by `kind`."""
    if not isinstance(values, Mapping):
        raise UserError(f"{path}={values}: expected a choice, {', '.join(table)}, or {path}.KEY=VALUE")
    kind = str(values.get("kind"))
    if kind not in table:
        raise UserError(f"{path}.kind={kind}: {near(kind, table)}")
    return build(table[kind], {k: v for k, v in values.items() if k != "kind"}, path)


def check_inputs(model: Any, dataset: Any) -> None:
    """UserError where the model does not take what the data set holds. What is wrong otherwise, `choose` tells."""
    if not (isinstance(model, Mapping) and isinstance(dataset, Mapping)):
        return
    of_model, of_dataset = str(model.get("kind")), str(dataset.get("kind"))
    if of_model not in MODELS or of_dataset not in DATASETS:
        return
    takes, holds = MODELS[of_model].inputs, DATASETS[of_dataset].inputs
    if takes in ("any", holds):
        return
    fitting = [name for name, cls in DATASETS.items() if cls.inputs == takes]
    raise UserError(
        f"model={model.get('name')} takes {takes}, dataset={dataset.get('name')} holds {holds}: "
        f"choose another model, or a data set of the kind {' or '.join(fitting)}"
    )


def _budget(values: Mapping[str, Any]) -> tuple[str, float]:
    given = {unit: values[unit] for unit in BUDGET_UNITS if values.get(unit) is not None}
    if len(given) != 1:
        asked = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
        raise UserError(f"budget: expected exactly one of {', '.join(BUDGET_UNITS)}, got {asked}")
    unit, amount = next(iter(given.items()))
    return unit, _parse(unit, amount, number(above=0) if unit == "epochs" else integer(1))


def _parse(key: str, value: Any, rule: Any) -> Any:
    try:
        return rule.parse(value)
    except (ValueError, TypeError):
        raise UserError(f"{key}={value}: expected {rule.expected}") from None
