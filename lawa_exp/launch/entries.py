"""What was composed, as checked settings of a training."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lawa_exp.averaging import AVERAGERS
from lawa_exp.axes.dataset.places import whole
from lawa_exp.config.names import BUDGET_UNITS, STABLE
from lawa_exp.config.rules import build, setting_names
from lawa_exp.launch.conf import attached
from lawa_exp.launch.data import settled
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lawa_exp.axes.configuration import Unresolved
    from lawa_exp.config.shared import Options

NEEDED = {"run_dir", "runs_root", "sweep", "plan", "rerun", "k", "spacing", "averagers", "dataset"} | {
    *("layers", "update", "watch", "logger", "loggers")
}


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values, interpolations resolved; UserError names a value that is missing."""
    from omegaconf import OmegaConf

    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(f"{sorted(missing)[0]} is missing: give it on the command line")
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))  # a mapping gives a dict


def read(values: dict[str, Any], overrides: list[str]) -> tuple[Unresolved, Options]:
    """The checked settings of one training."""
    from lawa_exp.config.shared import Multirun, Options
    from lawa_exp.runs.builders import builders
    from lawa_exp.runs.choices import unresolved_from
    from lawa_exp.storage import custom

    values = dict(values)
    if missing := sorted(NEEDED - values.keys()):
        raise UserError(f"{missing[0]} is missing: it cannot be left out")
    named = {o.split("=")[0].lstrip("+") for o in overrides}
    if named & set(BUDGET_UNITS):  # one on the command line replaces the recipe's
        values |= {unit: None for unit in BUDGET_UNITS if unit not in named}
    if isinstance(values["sweep"], Mapping):
        values["sweep"] = build(Multirun, values["sweep"], "sweep")
    options = build(Options, {f: values.pop(f) for f in setting_names(Options)}, "")
    if isinstance(values["averagers"], Mapping) and (kinds := attached(overrides)) is not None:
        values["averagers"] = {k: v for k, v in values["averagers"].items() if k in kinds}  # not what others would set
    check_attached(values["averagers"])
    values["averagers"] = list(expand(values["averagers"]))
    for group in ("layers", "update", "watch", "loggers"):
        values[group] = [{"name": name, **settings} for name, settings in values[group].items()]
    settled(values, named, whole_path)
    init = values.get("init")
    if isinstance(init, dict) and init.get("from") not in (None, STABLE):
        init["from"] = whole_path(init["from"])
    teacher = values.get("teacher")
    if isinstance(teacher, dict) and teacher.get("from") is not None:
        teacher["from"] = whole_path(teacher["from"])
    for key in ("k", "spacing"):  # read by the averagers through interpolation
        values.pop(key)
    unresolved = unresolved_from(values)
    custom.allow(builders(unresolved).values())  # these are the user's own words
    return unresolved, options


def without_effect(values: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """Lines on settings of averagers, of an experiment, that avg=... on the command line does not attach."""
    kinds, averagers = attached(overrides), values["averagers"]
    if kinds is None or not isinstance(averagers, Mapping):
        return []
    others = {kind: settings for kind, settings in averagers.items() if kind not in kinds and settings}
    return [f"averagers.{kind} of the experiment has no effect: avg=... does not attach {kind}" for kind in others]


def check_attached(averagers: object) -> None:
    """UserError: some settings of an averager are there, and no choice of `avg` that has them all."""
    for kind, settings in averagers.items() if isinstance(averagers, Mapping) else ():
        if (
            kind in AVERAGERS
            and isinstance(settings, Mapping)
            and set(setting_names(AVERAGERS[kind])) - settings.keys()
        ):
            name = next(iter(settings), "")
            raise UserError(f"averagers.{kind}.{name}: {kind} is not attached; add it to avg=[...]")


def whole_path(value: object) -> object:
    """A path from the root; `2024` is one, too. What is none is refused by the setting's rule."""
    if value == "" or isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    path = Path(str(value))
    with contextlib.suppress(RuntimeError):  # ~NAME of nobody
        path = path.expanduser()
    return str(whole(path))


def expand(averagers: object) -> Iterator[dict[str, Any]]:
    """One entry for each averager; settings that are lists combine as a product."""
    if not isinstance(averagers, Mapping):
        raise UserError(f"averagers={averagers}: expected a mapping; choose with avg=[...]")
    for kind, settings in averagers.items():
        if not isinstance(settings, Mapping):
            raise UserError(f"averagers.{kind}={settings}: expected a mapping; choose with avg=[...]")
        empty = [name for name, value in settings.items() if value == []]
        if empty:
            raise UserError(f"averagers.{kind}.{empty[0]}=[]: expected a value or a list of them")
        options = [v if isinstance(v, list) else [v] for v in settings.values()]
        for values in itertools.product(*options):
            yield {"kind": kind, **dict(zip(settings, values, strict=True))}
