"""One run of a claim, trained again: are its losses the recorded ones to the last digit?"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lawa_exp.config.rules import near
from lawa_exp.reproduce.arms import Missing, Run, measure
from lawa_exp.reproduce.book import Book, Claim, Paper
from lawa_exp.reproduce.judged import resolve
from lawa_exp.reproduce.recorded import recorded
from lawa_exp.results.summary import read_run
from lawa_exp.storage.rows import Row, averager_ids, name_of
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system import signals
from lawa_exp.system.errors import UserError

SAME, OTHER = 0, EXIT["failed"]


def train_again(args: argparse.Namespace, book: Book, papers: Sequence[Paper]) -> int:
    """Trains the run of `--claim` with `--seed` and compares every loss on val and test with the table's."""
    claims = {claim.id: claim for paper in papers for claim in paper.claims}
    if args.claim not in claims:
        raise UserError(f"--claim={args.claim}: {near(args.claim, claims)}")
    set_name, run = recorded_run(book, claims[args.claim], args.scale, args.recompute, args.seed)
    words = words_of(book.sets[set_name].words[args.scale], run)
    folder = Path(args.runs_root) / run.folder.name
    print(f"{args.claim}: {run.folder.name}, of {set_name}\n  python -m lawa_exp -m {shlex.join(words)}", flush=True)
    sweep = [f"runs_root={args.runs_root}", f"sweep=once-more-{run.folder.name}"]
    if RunDir(folder).marker():
        print(
            f"{folder} was trained here before, and is compared as it is; --runs-root DIR trains it elsewhere",
            flush=True,
        )
    process = subprocess.Popen([sys.executable, "-m", "lawa_exp", "-m", *words, *sweep, *args.words])
    try:
        code = process.wait()
    finally:
        process.terminate()
    if signals.stop_requested() or code:
        return code or EXIT["stopped"]
    if not folder.is_dir():
        raise UserError(
            f"--claim={args.claim}: this command trains a run of another id than the recorded {run.folder.name}: the "
            "code, the data or the words have changed"
        )
    rows, test = read_run(folder, [*averager_ids(run.rows)], run.steps)
    return compare(run, rows, test)


def recorded_run(book: Book, claim: Claim, scale: str, table: Path, seed: int) -> tuple[str, Run]:
    """The set and the recorded run of the first arm that has this seed, as published before fair."""
    runs, _ = recorded(table)
    seeds: set[int] = set()
    for form in book.forms:
        for arm in claim.arms.values():
            try:
                resolved = resolve(arm, form.names.get(scale, {}))
                found = measure(resolved, {name: runs(name) for name in resolved.sets}).runs
            except Missing:
                continue
            seeds |= {run.seed for run in found}
            for run in found:
                if run.seed == seed:
                    return resolved.sets[0], run
    if seeds:
        raise UserError(f"--seed={seed}: the recorded runs of {claim.id} have {', '.join(map(str, sorted(seeds)))}")
    raise UserError(f"--claim={claim.id}: {table.name} has no run of it")


def words_of(words: str, run: Run) -> list[str]:
    """A multirun's words with one value where it had several: that of the run. UserError: none is the run's."""
    found = []
    for word in shlex.split(words):
        key, _, value = word.partition("=")
        choices = value.split(",") if not value.startswith("[") else [value]
        if len(choices) > 1:
            own = {"steps": run.steps, "seed": run.seed}.get(key, run.config.get(key))
            fitting = [choice for choice in choices if choice == str(own) or is_number(choice, own)]
            if not fitting:
                raise UserError(f"{word}: none of the values is that of {run.folder.name}, {own}")
            word = f"{key}={fitting[0]}"
        found.append(word)
    return found


def is_number(text: str, number: object) -> bool:
    try:
        return isinstance(number, int | float) and float(text) == number
    except ValueError:
        return False


def compare(run: Run, rows: Sequence[Row], test: Sequence[Row]) -> int:
    """Says whether each recorded loss is equal to the new one; the exit code."""
    new = {(r["split"], r["step"], name_of(r)): r.get("loss") for r in (*rows, *test)}
    old = {(r["split"], r["step"], name_of(r)): r.get("loss") for r in (*run.rows, *run.test)}
    differing = [key for key, loss in old.items() if new.get(key) != loss]
    live = "test", run.steps, "live"
    print(f"test loss of the live weights: recorded {old.get(live)!r}, now {new.get(live)!r}")
    if not differing:
        print(f"all {len(old):,} recorded losses, of {len({w for *_, w in old})} weights, are equal to the last digit")
        return SAME
    split, step, weights = differing[0]
    largest = max(abs((new.get(key) or 0.0) - (old[key] or 0.0)) for key in differing)
    print(
        f"{len(differing):,} of {len(old):,} recorded losses differ, by at most {largest:.2g}; the first: {weights} on "
        f"{split} after step {step:,}, recorded {old[differing[0]]!r}, now {new.get(differing[0])!r}"
    )
    return OTHER
