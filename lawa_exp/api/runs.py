"""Runs as Python objects: their rows as a table, their settings, their weights, a plot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.config.rules import flat, near
from lawa_exp.results.statistics import curve, steps_saved
from lawa_exp.results.tables import at_end
from lawa_exp.runs.value import value_of, weights_of
from lawa_exp.status.runs import list_runs
from lawa_exp.storage.commit import Damaged, steps_in, verify
from lawa_exp.storage.metrics import metrics_of
from lawa_exp.storage.rows import averager_ids, read_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

ABOUT = {"format_version", "trajectory_id", "identity", "metrics"}  # in config.yaml, but no setting


def load(*paths: str | os.PathLike[str]) -> Run | Runs:
    """A run; of a sweep, a folder of runs or several paths the `Runs` of all of them.

    A run directory can be anywhere: nothing in it depends on where it was trained. UserError: there is no run.
    """
    if not paths:
        raise UserError("load(): expected a run, a sweep or a folder of runs")
    runs = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such folder")
        runs += [Run(listed.path) for listed in list_runs(path, "PATH") if listed.path.exists()]
    if not runs:
        raise UserError(f"{', '.join(map(str, paths))}: none of these runs has begun")
    alone = len(paths) == 1 and len(runs) == 1 and runs[0].path.samefile(paths[0])
    return runs[0] if alone else Runs(runs)


def data_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise UserError("the package pandas is missing; pip install 'lawa_exp[notebooks]'") from None
    return pandas.DataFrame(rows)


class Run:
    """One run directory. Files are read when they are needed, and once.

    path: its folder. name: the folder's name. state: done, failed, diverged, stopped, or unfinished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self._files = RunDir(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.state})"

    @property
    def state(self) -> str:
        marker = self._files.marker()
        return marker[0].lower() if marker else "unfinished"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every setting by its key on the command line ("lr.peak"), resolved. UserError: config.yaml cannot be read."""
        content = self._files.read_config()
        if content is None:
            raise UserError(f"{self.path}: no config.yaml yet")
        return flat({key: value for key, value in content.items() if key not in ABOUT})

    @cached_property
    def rows(self) -> pandas.DataFrame:
        """A line for each step, split, weights and view, with the settings as further columns.

        Losses are nats per target; metrics.jsonl's other columns are as they are there. Rows of RUN/readouts/NAME have
        NAME in the column `readout`, which is empty for those of the training.
        """
        rows = [{**row, "readout": ""} for row in read_rows(self._files.metrics)]
        for folder in sorted(self._files.readouts.glob("*/metrics.jsonl")):
            rows += [{**row, "readout": folder.parent.name} for row in read_rows(folder)]
        frame = data_frame(rows)
        frame.insert(0, "run", self.name)
        if "view" not in frame:
            frame["view"] = None
        return with_columns(frame, self.config)

    @property
    def averages(self) -> list[str]:
        """The ids of the averages that were evaluated, in order of appearance."""
        return averager_ids(read_rows(self._files.metrics))

    def table(self, metric: str = "loss") -> pandas.DataFrame:
        """A line for each of the weights after the last step: what the end of the training says, as numbers.

        value: of the metric on val; to_live: less that of the live weights; saving: the longest, in steps, with whether
        the live weights got there (reached) and at which step of the average; best: whether no others are better.
        UserError: no row has the metric.
        """
        known = metrics_of(self.path)
        if metric not in known:
            raise UserError(f"metric={metric}: {near(metric, known)}")
        _, found = at_end(read_rows(self._files.metrics), metric, known[metric])
        lines = [
            {
                "weights": line.weights,
                "value": line.value,
                "to_live": line.to_live,
                "saving": line.saving and line.saving.steps,
                "reached": line.saving and line.saving.reached,
                "at_step": line.saving and line.saving.at,
                "best": line.best,
            }
            for line in found
        ]
        return data_frame(lines).set_index("weights")

    def value(self, weights: str | None = None) -> float:
        """The val loss after the last step of live, or of an average by its id or kind; what a sweeper minimises.

        None: of the average that was attached, where there is one alone, else of live. inf where the run diverged.
        UserError: there are no such weights. Failed: they were not evaluated there.
        """
        known = dict.fromkeys([*self.averages, *(path.name for path in self._files.readouts.glob("*-*"))])
        named = weights_of(self.averages if weights is None else list(known), weights)
        return value_of(self._files, named, self.config["steps"])

    def saved(self, weights: str) -> pandas.DataFrame:
        """At each evaluation of an average: how many steps later the live weights reach its val loss (`steps`), or
        that they do not within the steps left (reached=False). UserError: it was not evaluated."""
        rows = read_rows(self._files.metrics)
        live, average = curve(rows, "live"), curve(rows, weights)
        if weights == "live" or not average:
            raise UserError(f"{self.path} has no evaluations of {weights}; {near(weights, self.averages)}")
        found = [(step, value, *steps_saved(live, step, value)) for step, value in average]
        names = ("step", "loss", "steps", "reached")
        return data_frame([dict(zip(names, line, strict=True)) for line in found]).set_index("step")

    def steps(self, weights: str = "live") -> list[int]:
        """The steps whose weights are in the run directory."""
        return sorted(steps_in(self._root(weights)))

    def weights(self, name: str = "live", step: int | None = None) -> dict[str, Tensor]:
        """The tensors by name: of the live weights, or of an average by its id. step: the last that there is.

        Their checksums are verified. UserError: there are none of this name or step. Failed: a file is damaged.
        """
        from lawa_exp.storage.safetensors import read_tensors, stored

        there = steps_in(self._root(name))
        if not there:
            known = ["live", *self._files.average_ids]
            raise UserError(f"{self.path} has no weights {name}; {near(name, known)}")
        step = max(there) if step is None else step
        if step not in there:
            raise UserError(f"{self.path} has {name} of the steps {', '.join(map(str, sorted(there)))}, not of {step}")
        try:
            verify(there[step])
        except Damaged as error:
            raise Failed(f"{there[step]}: {error}") from None
        return {key: value for file in stored(there[step]) for key, value in read_tensors(file).items()}

    def _root(self, weights: str) -> Path:
        if Path(weights).name != weights:
            raise UserError(f"weights={weights}: expected live, or the id of an average")
        return self._files.trajectory if weights == "live" else self._files.averages / weights

    def plot(self, *weights: str, metric: str = "loss", split: str = "val", axes: Any = None) -> Any:
        """The metric against the step, of the live weights and each average; matplotlib's axes.

        weights: only these. axes: draws there.
        """
        return Runs([self]).plot(*weights, metric=metric, split=split, axes=axes)

    def _repr_html_(self) -> str:
        return str(Runs([self])._repr_html_())


class Runs:
    """Several runs, in order: `runs[0]`, `runs["NAME"]`, `for run in runs`."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __getitem__(self, which: int | str) -> Run:
        if isinstance(which, int):
            return self._runs[which]
        names = {run.name: run for run in self._runs}
        if which not in names:
            raise UserError(f"{which}: no run of this name; {near(which, names)}")
        return names[which]

    def __repr__(self) -> str:
        return f"Runs({len(self)}: {', '.join(run.name for run in self._runs[:3])}{', ...' if len(self) > 3 else ''})"

    @cached_property
    def config(self) -> pandas.DataFrame:
        """A line for each run, with the settings in which they differ as columns."""
        frame = data_frame([{"run": run.name, "state": run.state, **self.differences(run)} for run in self])
        return frame.set_index("run")

    def differences(self, run: Run) -> dict[str, Any]:
        """A run's settings that are not the same in all runs."""
        return {key: run.config.get(key) for key in self._differing}

    @cached_property
    def _differing(self) -> list[str]:
        keys = dict.fromkeys(key for run in self for key in run.config)
        return [key for key in keys if len({repr(run.config.get(key)) for run in self}) > 1]

    @cached_property
    def rows(self) -> pandas.DataFrame:
        """The rows of all runs, see `Run.rows`."""
        import pandas

        return pandas.concat([run.rows for run in self], ignore_index=True)

    def plot(self, *weights: str, metric: str = "loss", split: str = "val", axes: Any = None) -> Any:
        """The metric against the step, of every run in one plot; matplotlib's axes. weights: only these."""
        from lawa_exp.api.plot import draw

        return draw(list(self), {run.name: label(self.differences(run)) for run in self}, weights, metric, split, axes)

    def _repr_html_(self) -> str:
        last = self.rows[(self.rows["split"] == "val") & (self.rows["readout"] == "") & self.rows["view"].isna()]
        ends = last[last["step"] == last.groupby("run")["step"].transform("max")]
        losses = ends.pivot_table(index="run", columns="weights", values="loss", sort=False)
        return str(self.config.join(losses.add_prefix("val loss, ")).to_html(float_format="{:.4f}".format))


def label(differences: Mapping[str, Any]) -> str:
    """Settings as on the command line."""
    return " ".join(f"{key}={value}" for key, value in differences.items() if not isinstance(value, list | dict))


def with_columns(frame: pandas.DataFrame, config: Mapping[str, Any]) -> pandas.DataFrame:
    """With a column for each setting; one that has a row's own name (`steps` is none) is called `config.NAME`."""
    import pandas

    values = {(f"config.{key}" if key in frame else key): value for key, value in config.items()}
    plain = {k: v if isinstance(v, str | int | float | bool) or v is None else str(v) for k, v in values.items()}
    return pandas.concat([frame, pandas.DataFrame(plain, index=frame.index)], axis=1)
