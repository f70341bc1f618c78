"""One training, or the trainings of a multirun: entries that share a trajectory are one training."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lawa_exp.axes.configuration import Config, Unresolved
from lawa_exp.axes.lr import SCHEDULES
from lawa_exp.axes.lr.schedule import Schedule
from lawa_exp.config.names import STABLE
from lawa_exp.config.shared import Init, Options
from lawa_exp.results.summary import summarise
from lawa_exp.runs.choices import config_to, unresolved_from
from lawa_exp.runs.execute import execute
from lawa_exp.runs.folder import check_folder
from lawa_exp.runs.merge import merge
from lawa_exp.runs.plan import show_plan
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.runs.turns import Ended, Training, in_turn
from lawa_exp.runs.value import compared, weights_of
from lawa_exp.storage import manifest
from lawa_exp.storage.manifest import Entry as Listed
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system import distributed
from lawa_exp.system.cli import command
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.machine import default_threads


def run_one(unresolved: Unresolved, options: Options) -> int:
    """Trains or plans one configuration; returns the exit code."""
    device, ranks = start_device(unresolved.device, options.plan)
    try:
        prepared = ranks.together(lambda: prepare(unresolved, options, device, ranks))
        if options.plan:
            check_folder(RunDir(prepared.run_dir), prepared)
            if ranks.is_main:
                print(f"run_dir={prepared.run_dir}\n{show_plan(prepared, ranks)}")
            return 0
        return execute(prepared, options, device, ranks)
    finally:
        distributed.finish()


DECAYS = ("lr=", "lr.decay_steps=", "lr.shape=", "lr.final_ratio=", "lr.horizon=", "init.")  # not of the stable run
Entry = tuple[Unresolved, Options]  # of a multirun
Stable = tuple[Prepared, list[str], list[int]]  # a stable run, its overrides, the numbers of its cool-downs


def stable_runs(
    entries: list[Entry], overrides: list[list[str]], device: Any, ranks: distributed.Ranks
) -> list[Stable]:
    """The constant-rate runs that cool-downs (`lr=wsd init.from=stable`) share, up to the last of their branch points.

    A stable run has all averagers of its cool-downs, and keeps the states that they go on from.
    """
    groups: dict[str, list[tuple[int, Prepared]]] = {}
    for i, (unresolved, options) in enumerate(entries):
        if unresolved.init.optimizer == "reset":
            raise UserError("init.optimizer=reset: a cool-down of the stable run keeps its optimizer")
        alone = prepare(replace(unresolved, init=Init(None, None, None)), options, device, ranks).config
        stable = alone.lr.stable_part()
        if stable is None:
            raise UserError("init.from=stable: expected lr=wsd, whose stable part is the constant-rate run")
        last = alone.lr.stable_steps
        step = unresolved.init.step or last
        if step == 0:
            raise UserError(
                f"lr.decay_steps={unresolved.lr.values['decay_steps']}: leaves no stable step for init.from=stable"
            )
        if step > last:
            raise UserError(f"init.step={step}: the decay begins after step {last} already")
        p = prepare(cut_back(alone, stable, step), options, device, ranks)
        groups.setdefault(p.trajectory, []).append((i, p))
    runs = []
    for members in groups.values():
        longest = max(p.config.steps for _, p in members)
        same = [replace(p, config=replace(p.config, steps=longest)) for _, p in members]
        shared = set.intersection(*(set(overrides[i]) for i, _ in members))
        ours = [o for o in overrides[members[0][0]] if o in shared and not o.startswith(DECAYS)]
        merged = merge(same)
        runs.append((merged, [f"lr={SCHEDULES.kind_of(merged.config.lr)}", *ours], [i for i, _ in members]))
    return runs


def cut_back(config: Config, stable: Schedule, step: int) -> Unresolved:
    """The run of a (resolved) configuration up to `step`, with its stable part as the schedule; it keeps the state."""
    content = config_to(replace(config, lr=stable))
    changed = {"lr": {**content["lr"], "horizon": None}, "save": {**content["save"], "keep": [step]}, "steps": step}
    return unresolved_from({**content, **changed})


def savings(stable: list[Stable], entries: list[Prepared], of: dict[int, Prepared]) -> list[str]:
    """What the cool-downs of each stable run cost, and what they would cost apart."""
    found: list[tuple[int, int, int, int]] = []
    for run, _, _ in stable:
        branches = {entries[i].run_dir: entries[i] for i, s in of.items() if s is run}.values()
        cooling = [p.config.steps - p.origin.step for p in branches if p.origin]
        apart = sum(p.config.steps for p in branches)
        found.append((run.config.steps, len(cooling), sum(cooling), apart))
    lines = [
        (f"{times} times a " if times > 1 else "")
        + f"stable run of {steps:,} steps, its {branches} cool-downs {cooling:,}: {steps + cooling:,} steps in all; "
        f"trained apart: {apart:,}"
        for (steps, branches, cooling, apart), times in Counter(found).items()
    ]
    if len(found) > 1:
        together, alone = sum(s + c for s, _, c, _ in found), sum(apart for _, _, _, apart in found)
        lines.append(f"together {together:,} steps; trained apart: {alone:,}")
    return lines


@dataclass(frozen=True)
class Sweep:
    """The trainings of a multirun in an order in which they can run, each with the numbers of its entries.

    overrides: of each entry. stable: the folders of the runs that cool-downs wait for.
    """

    folder: Path
    trainings: list[tuple[Prepared, list[int]]]
    overrides: list[list[str]]
    stable: set[Path]
    manifest: dict[str, Any]
    summary: list[str]

    @property
    def entries(self) -> list[Listed]:
        """The entries of the command line, without the stable runs."""
        entries = [cast(Listed, {**entry, "run_dir": Path(entry["run_dir"])}) for entry in self.manifest["entries"]]
        return [entry for entry in entries if entry["run_dir"] not in self.stable]

    def write_manifest(self) -> None:
        """Says so where another sweep of that name had other runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError, UserError, Failed):
            mine = {Path(entry["run_dir"]).name for entry in self.manifest["entries"]}
            gone = {entry["run_dir"].name for entry in manifest.read(self.folder)["entries"]} - mine
            if gone:
                print(f"warning: {self.folder} had {len(gone)} other runs; they stay, but are not in this sweep now")
        manifest.write(self.folder, self.manifest)

    def described(self, members: list[int]) -> str:
        return " | ".join(" ".join(self.overrides[i]) for i in members)


def sweep_folder(options: Options) -> Path:
    return Path(options.runs_root) / "sweeps" / str(options.sweep.name)


def gather(entries: list[Entry], overrides: list[list[str]], device: Any, ranks: distributed.Ranks) -> Sweep:
    """What the entries ask for: entries that differ only in averaging are one training with all of its averagers."""
    apart = [i for i, (unresolved, _) in enumerate(entries) if unresolved.init.from_ == STABLE]
    stable = stable_runs([entries[i] for i in apart], [overrides[i] for i in apart], device, ranks)
    prepared = [s for s, _, _ in stable]
    of = {apart[i]: s for s, _, members in stable for i in members}
    prepared += [prepare(unresolved, o, device, ranks, of.get(i)) for i, (unresolved, o) in enumerate(entries)]
    for p in prepared:
        p.check(ranks.world)
    overrides = [mine for _, mine, _ in stable] + overrides
    groups: dict[tuple[Path, int], list[int]] = {}
    for i, p in sorted(enumerate(prepared), key=lambda entry: (entry[0] >= len(stable), entry[1].config.steps)):
        groups.setdefault((p.run_dir, p.config.steps), []).append(i)  # a larger budget continues the smaller one
    trainings = [(merge([prepared[i] for i in members]), members) for members in groups.values()]
    summary = [f"{len(entries)} entries, {len(trainings)} trainings (entries that differ only in averaging share one)"]
    folder = sweep_folder(entries[0][1])
    written = {
        "command": command(),
        "entries": [
            {
                "overrides": mine,
                "run_dir": str(p.run_dir),
                "steps": p.config.steps,
                "averages": [a.id for a in p.config.averagers],
            }
            for p, mine in zip(prepared, overrides, strict=True)
        ],
    }
    return Sweep(
        folder,
        trainings,
        overrides,
        {s.run_dir for s, _, _ in stable},
        written,
        summary + savings(stable, prepared[len(stable) :], of),
    )


def train_all(
    sweep: Sweep, options: Options, device: Any, ranks: distributed.Ranks, say: Callable[[str], None]
) -> dict[int, Ended]:
    """How each training ended, by its number from 1; fewer where a stop signal came."""
    trainings = [
        Training(number, prepared, sweep.described(members))
        for number, (prepared, members) in enumerate(sweep.trainings, 1)
    ]
    if options.sweep.jobs > 1 and len(trainings) > 1:
        from lawa_exp.runs.side_by_side import side_by_side

        return side_by_side(trainings, options, device, say)
    return in_turn(trainings, options, device, ranks, say)


def run_all(entries: list[Entry], overrides: list[list[str]]) -> int:
    """Trains or plans the entries of a multirun; one that fails does not stop the others, a stop signal does."""
    options = entries[0][1]
    device, ranks = start_device(entries[0][0].device, options.plan)
    say: Callable[[str], None] = functools.partial(print, flush=True) if ranks.is_main else lambda _: None
    folder = sweep_folder(options)
    sweep = gather(shared_out(entries, ranks), overrides, device, ranks)
    for entry in sweep.entries if options.sweep.value else ():
        weights_of(entry["averages"], options.sweep.value)
    say(f"sweep_dir={folder}")
    for line in sweep.summary:
        say(line)
    if options.plan:
        for number, (training, members) in enumerate(sweep.trainings, 1):
            say(f"\ntraining {number} of {len(sweep.trainings)}: {sweep.described(members)}")
            say(f"run_dir={training.run_dir}\n{show_plan(training, ranks)}")
        distributed.finish()
        return 0
    if ranks.is_main:
        sweep.write_manifest()
    codes = [ended.code for ended in train_all(sweep, options, device, ranks, say).values()]
    if EXIT["stopped"] in codes:
        return EXIT["stopped"]
    if ranks.is_main and options.sweep.value:
        say("\n".join(["", *compared(sweep.entries, options.sweep.value)[0]]))
    if ranks.is_main and 0 in codes:
        try:
            say(f"\n{summarise(folder, folder)}\nsummary: {folder / 'summary.md'}, plot: {folder / 'curves.png'}")
        except (Failed, UserError, OSError) as error:  # the trainings are done all the same
            print(f"warning: no summary: {error}", file=sys.stderr)
    distributed.finish()
    if any(code not in (0, EXIT["diverged"]) for code in codes):
        return EXIT["failed"]
    return EXIT["diverged"] if EXIT["diverged"] in codes else 0


def shared_out(entries: list[Entry], ranks: distributed.Ranks) -> list[Entry]:
    """With sweep.jobs=N a training has an N-th of the cores, where it is not said how many threads it has."""
    jobs = entries[0][1].sweep.jobs
    if jobs == 1:
        return entries
    if ranks.world > 1:
        raise UserError(f"sweep.jobs={jobs}: not under torchrun, whose ranks train one run at a time")
    threads = min(default_threads(1), default_threads(jobs))
    return [(replace(u, trainer=u.trainer.filled(threads=threads)), options) for u, options in entries]
