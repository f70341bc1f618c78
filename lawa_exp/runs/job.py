"""The jobs that Hydra's launchers and sweepers train: their values, and the sweep that they are the entries of."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

from lawa_exp.averaging.settings import WindowSettings
from lawa_exp.config.names import STABLE
from lawa_exp.results.summary import summarise
from lawa_exp.runs.sweep import Entry, gather, shared_out, train_all
from lawa_exp.runs.value import compared, value_of, weights_of
from lawa_exp.storage import manifest
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system import distributed, signals
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import Failed, UserError


def values_of(entries: list[Entry], overrides: list[list[str]]) -> list[float | Exception]:
    """Trains the entries; the value of each (see `value.py`), or what it failed with.

    They are added to the manifest of their sweep. UserError: what they ask for cannot be trained.
    """
    options = entries[0][1]
    device, ranks = start_device(entries[0][0].device)
    if any(unresolved.init.from_ == STABLE for unresolved, _ in entries):
        raise UserError(
            "init.from=stable: only with hydra/launcher=local or slurm and sweeper basic, which know all cool-downs"
        )
    say: Callable[[str], None] = functools.partial(print, flush=True) if ranks.is_main else lambda _: None
    sweep = gather(shared_out(entries, ranks), overrides, device, ranks)
    listed = sweep.manifest["entries"]
    weights = [weights_of(entry["averages"], options.sweep.value) for entry in listed]
    attached = {average.id: average for training, _ in sweep.trainings for average in training.config.averagers}
    for entry, name in zip(listed, weights, strict=True):
        average, steps = attached.get(name), entry["steps"]
        if average and len(average.needed(steps)) < (average.k if isinstance(average, WindowSettings) else 1):
            raise UserError(f"sweep.value={name}: it has no value yet after {steps:,} steps, the budget")
    if ranks.is_main:
        manifest.add(sweep.folder, sweep.manifest)
    ended = train_all(sweep, options, device, ranks, say)
    found: list[float | Exception] = []
    for i, (entry, name) in enumerate(zip(listed, weights, strict=True)):
        number = next(number for number, (_, members) in enumerate(sweep.trainings, 1) if i in members)
        how = ended.get(number)
        if how is None or how.code == EXIT["stopped"]:
            found.append(Failed(f"{entry['run_dir']}: stopped; the same command goes on"))
        elif how.code not in (EXIT["done"], EXIT["diverged"]):
            found.append(Failed(how.reason))
        else:
            run = RunDir(Path(entry["run_dir"]))
            found.append(ranks.from_main(value_of(run, name, entry["steps"]) if ranks.is_main else math.nan))
    distributed.finish()
    return found


def said_values(folder: Path, choice: str | None, search: bool) -> int:
    """Prints the value of each entry of a sweep that was trained by jobs, the best and the summary; an exit code.

    choice: `sweep.value`. search: a sweeper chose the entries by their values, and a divergence is an answer.
    """
    try:
        entries = manifest.read(folder)["entries"]
    except UserError:  # nothing was trained
        return EXIT["failed"]
    said, values = compared(entries, choice)
    print("\n".join(["", *said]))
    if any(map(math.isfinite, values)):
        try:
            print(f"\n{summarise(folder, folder)}\nsummary: {folder / 'summary.md'}, plot: {folder / 'curves.png'}")
        except (Failed, UserError, OSError) as error:  # the trainings are done all the same
            print(f"warning: no summary: {error}", file=sys.stderr)
    sys.stdout.flush()
    if signals.stop_requested():
        return EXIT["stopped"]
    return EXIT["diverged"] if not search and math.inf in values else EXIT["done"]
