"""Which numbers of a row are metrics, with unit and direction: the known ones, and those that a run's task adds.

A task with metrics of its own is written down next to the rows: under `metrics` in the run's config.yaml, or in
metrics.yaml of a read-out's folder. Where nothing is written the known ones are all there are: a number that is in no
table is no metric.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from lawa_exp.seams.task import SHARE, Metric
from lawa_exp.storage.checksums import read_bytes, write_text
from lawa_exp.storage.rows import Row
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import read_yaml

Metrics: TypeAlias = Mapping[str, Metric]

KNOWN: Metrics = {
    "loss": Metric("nats per target"),
    "loss_bits": Metric("bits per target"),
    "accuracy": Metric(SHARE, higher_is_better=True),
}
LOSSES = ("loss", "loss_bits")  # one number in two units
KEY = "metrics"  # in config.yaml
FILE = "metrics.yaml"  # in the folder of a read-out
WRITTEN = ("unit", "higher_is_better", "digits")  # fields of `Metric`


def own_metrics(metrics: Metrics) -> dict[str, Metric]:
    """Those that are not known: tables that have only losses get a column for each."""
    return {name: metric for name, metric in metrics.items() if name not in KNOWN}


def shown_metrics(metrics: Metrics) -> dict[str, Metric]:
    """All but the loss: what has a table, a curve or a panel of its own where a row has it."""
    return {name: metric for name, metric in metrics.items() if name not in LOSSES}


def check_metrics(metrics: Metrics, reserved: Collection[str] = ()) -> None:
    """UserError where readers of rows could not tell a task's metrics. reserved: names of other fields of rows."""
    told = f"the task's metrics {', '.join(metrics) or 'are empty'}"
    if next(iter(metrics), None) != "loss":
        raise UserError(f"{told}: expected loss first, by which weights are compared")
    fields = {*Row.__annotations__, *reserved} - KNOWN.keys()
    for name, metric in metrics.items():
        if not name.isidentifier() or name in fields:
            raise UserError(f"{told}: {name} is no name for a metric; expected one like auc, and of no field of a row")
        if name in KNOWN and metric.higher_is_better != KNOWN[name].higher_is_better:
            better = "higher" if KNOWN[name].higher_is_better else "lower"
            raise UserError(f"{told}: of {name} {better} values are better; choose another name")


def written_metrics(metrics: Metrics) -> dict[str, Any]:
    """What config.yaml says of them: nothing where all are known."""
    if not own_metrics(metrics):
        return {}
    return {KEY: {name: {key: getattr(metric, key) for key in WRITTEN} for name, metric in metrics.items()}}


def metrics_in(content: Mapping[str, Any] | None) -> Metrics:
    """The known metrics and those that are written down in `content`, of a config.yaml. Failed: it is damaged."""
    try:
        own = {name: Metric(**fields) for name, fields in ((content or {}).get(KEY) or {}).items()}
    except (AttributeError, TypeError):
        raise Failed(f"{KEY}: expected {{name: {{{', '.join(WRITTEN)}}}}}, got {(content or {})[KEY]}") from None
    return {**KNOWN, **own}


def metrics_of(folder: Path) -> Metrics:
    """Those of the rows in a run directory, or in the folder of a read-out."""
    own = folder / FILE
    if not own.is_file():
        return metrics_in(RunDir(folder).read_config())
    return metrics_in(read_yaml(own, read_bytes(own)))


def write_metrics(folder: Path, metrics: Metrics) -> None:
    """metrics.yaml of a read-out's folder, where there is something to say."""
    if content := written_metrics(metrics):
        write_text(folder / FILE, yaml.safe_dump(content, sort_keys=False))
    else:
        (folder / FILE).unlink(missing_ok=True)


def together(all_metrics: Iterable[Metrics]) -> Metrics:
    """Those of several runs."""
    found: dict[str, Metric] = dict(KNOWN)
    for metrics in all_metrics:
        found |= {name: metric for name, metric in metrics.items() if found.get(name) in (None, KNOWN.get(name))}
    return found
