"""Which step each of several checkpoints is of, and which of them are left out.

A step is what the file says inside, else what its name says (names.py); where both count the same and differ, the file
is right, and a note says so. All are counted in one unit: epochs and updates are never mixed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lawa_exp.formats.choice import DEFAULT, Choice
from lawa_exp.formats.folders import checkpoint_in, not_read, why_none
from lawa_exp.formats.inside import Inside, inside
from lawa_exp.formats.names import EPOCHS, NUMBER, UNITS, UPDATES, Named, named, of_entry
from lawa_exp.formats.stored import SUFFIXES, Damaged
from lawa_exp.storage.commit import steps_in
from lawa_exp.system.errors import UserError

SHOWN = 3  # files that a message names; of more it gives the number
NAMES = "the names"
AGAIN = "--include-averages averages them again"


@dataclass(frozen=True)
class Candidate:
    """A file or folder that may be a checkpoint. label: its name in messages, which --step-from reads."""

    path: Path
    label: str
    name: Named
    inside: Inside

    @property
    def counts(self) -> dict[str, int]:
        return {**self.name.counts, **self.inside.counts}

    def average(self, choice: Choice) -> str:
        """Why what is chosen of it is taken for an average; empty where it is none."""
        if self.inside.average and (not self.inside.live or choice.key != self.inside.live):
            return self.inside.average
        return "an average by its name" if self.name.is_average else ""


@dataclass
class Series:
    """Checkpoints in order. paths: by step, or listed ones by 1, 2, ..., whose steps are in `steps`, where known.

    unit: what a step counts, for messages; how: where it was read. left_out, unreadable: names, and why. labels: the
    names in messages, where they are other than the paths' own.
    """

    paths: dict[int, Path]
    steps: list[int] | None
    unit: str = "step"
    how: str = ""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels: dict[Path, str] = field(default_factory=dict)


def find_checkpoints(folder: Path, key: str, choice: Choice = DEFAULT, only_readable: bool = False) -> Series:
    """The checkpoints in `folder` by their step, ascending.

    Snapshots of one of our runs are those that were committed. A folder that holds a single file is that file.
    key: names the folder in messages. only_readable: others are left out, with a note. UserError: there is none, two
    are of one step, they count in different units, or all are averages.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    where = f"{key}={folder}"
    ours = {} if choice.step_from else steps_in(folder)
    if ours:
        if "averages" in (folder.absolute().parent.name, folder.resolve().parent.name) and not choice.include_averages:
            raise UserError(f"{where}: these are averages already; {AGAIN}")
        return Series(ours, list(ours), how="the names of our snapshots")
    candidates, left_out, damaged = candidates_in(folder)
    if not only_readable:
        left_out, damaged = [*left_out, *damaged], []
    taken, not_taken = without_averages(candidates, choice)
    left_out += not_taken
    if not taken and not_taken and all(c.average(choice) for c in candidates):
        raise UserError(f"{where}: all {len(candidates)} are averages already ({_and_why(left_out[-1])}); {AGAIN}")
    if not taken:
        raise UserError(
            f"{where}: no checkpoints there{_why(left_out + damaged)}: files ({', '.join(SUFFIXES)}) or folders of "
            "them with the step in their names (ckpt_1000.pt, epoch=3-val_loss=0.12.ckpt, step_00001000/)"
            f"{_below(folder)}"
        )
    readable, unread = without_unreadable(taken, choice) if only_readable else (taken, [])
    unread += damaged
    if not readable:
        raise UserError(f"{where}: no checkpoint there can be read{_why(unread)}")
    series = ordered(readable, where, choice)
    series.labels = {each.path: each.label for each in readable}
    series.left_out += left_out
    series.unreadable += unread
    series.notes += [*included(readable, choice), *(f"left out, as it cannot be read: {_and_why(e)}" for e in unread)]
    return series


def without_unreadable(
    candidates: Sequence[Candidate], choice: Choice
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Those whose headers can be read, and why others cannot: half-written ones, most of all."""
    from lawa_exp.formats.checkpoint import unreadable  # with numpy

    problems = [(each, unreadable(each.path, choice.key)) for each in candidates]
    return [e for e, problem in problems if not problem], [(e.label, problem) for e, problem in problems if problem]


def _below(folder: Path) -> str:
    """Which of its folders hold several files or folders that may be checkpoints."""

    def is_run(inner: Path) -> bool:
        if not inner.is_dir() or inner.name.startswith("."):
            return False
        entries = (p for p in inner.iterdir() if named(p.name).counts)
        return sum(checkpoint_in(p) is not None if p.is_dir() else p.name.endswith(SUFFIXES) for p in entries) > 1

    runs = [inner.name for inner in sorted(folder.iterdir()) if is_run(inner)]
    return f"; of its folders {_names(runs)} {'hold' if len(runs) > 1 else 'holds'} checkpoints" if runs else ""


def included(candidates: Sequence[Candidate], choice: Choice) -> list[str]:
    """A note on the averages among them."""
    averages = [each.label for each in candidates if each.average(choice)]
    return [f"note: averages that --include-averages takes in: {_names(averages)}"] if averages else []


def candidates_in(folder: Path) -> tuple[list[Candidate], list[tuple[str, str]], list[tuple[str, str]]]:
    """Whatever may be a checkpoint in `folder`, the folders that look as if and hold none, and damaged ones."""
    candidates: list[Candidate] = []
    left_out: list[tuple[str, str]] = []
    unread: list[tuple[str, str]] = []
    for entry in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if entry.is_file() and named(entry.name).counts and (whose := not_read(entry)):
            left_out.append((entry.name, f"{whose}, which is not read"))
            continue
        try:
            path = checkpoint_in(entry) if entry.is_dir() else entry if entry.name.endswith(SUFFIXES) else None
        except Damaged as error:  # the list of its parts
            unread.append((entry.name, str(error)))
            continue
        if path is not None and entry.is_dir() and not re.search(r"\d", entry.name):
            left_out.append((entry.name, "a folder without a number in its name"))
        elif path is not None:
            inner = "" if path == entry else str(path.relative_to(entry))
            name = of_entry(entry.name, path.name) if inner else named(entry.name)
            candidates.append(Candidate(path, f"{entry.name}/{inner}" if inner else entry.name, name, inside(path)))
        elif entry.is_dir() and named(entry.name).counts:
            why = why_none(entry) or "a folder without a checkpoint"
            left_out.append((entry.name, why))
    return candidates, left_out, unread


def without_averages(candidates: Sequence[Candidate], choice: Choice) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Those that are checkpoints of weights while they were trained, and why others are not taken."""
    taken: list[Candidate] = []
    left_out: list[tuple[str, str]] = []
    for each in candidates:
        if each.inside.no_weights:
            left_out.append((each.label, each.inside.no_weights))
        elif (average := each.average(choice)) and not choice.include_averages:
            left_out.append((each.label, average))
        elif each.name.is_shard and each.path.is_file():
            left_out.append((each.label, "one shard of several; a folder with their index is a checkpoint"))
        else:
            taken.append(each)
    return taken, left_out


def ordered(candidates: list[Candidate], where: str, choice: Choice) -> Series:
    """The checkpoints of a folder by step. where: begins messages. UserError as `find_checkpoints`."""
    if choice.step_from is not None:
        return by_expression(candidates, where, choice.step_from)
    left_out: list[tuple[str, str]] = []
    is_numbered = any(each.name.counts for each in candidates)
    for each in candidates:
        if is_numbered and not each.name.counts:
            more = f"; {_said(each.inside)} inside" if each.inside.counts else ""
            left_out.append((each.label, f"no step in its name, unlike others{more}"))
        elif not each.counts:
            left_out.append((each.label, "no step inside or in its name"))
    known = [each for each in candidates if (each.name.counts if is_numbered else each.counts)]
    if not known:
        raise UserError(
            f"{where}: no step is known of {_names([c.label for c in candidates])}; --step-from REGEX says it"
        )
    options = units_of(known)
    copies = [each for each in known if each.name.is_copy]
    if not options and (others := [each for each in known if not each.name.is_copy]):
        options, known = units_of(others), others
        left_out += [(each.label, "by its name a copy of another (best, last, recovery, ...)") for each in copies]
    if not options:
        raise UserError(f"{where}: {mixture(known)}")
    tried = [_without_copies(known, [each.counts[unit] for each in known]) for unit in options]
    best = next((i for i, (taken, steps, _) in enumerate(tried) if len(set(steps)) == len(taken)), 0)
    unit, (taken, steps, dropped) = options[best], tried[best]
    how = read_from(taken, unit)
    series = _series(taken, steps, where, word_of(unit), how, [*left_out, *dropped])
    if two := two_orders(taken, steps, unit):
        raise UserError(
            f"{where}: which is the order is not clear: {two}; --step-from REGEX says it, or a list of files"
        )
    series.notes += contradictions(taken, unit)
    return series


def by_expression(candidates: list[Candidate], where: str, expression: str) -> Series:
    """The checkpoints by what --step-from finds in their names."""
    steps = {each.label: step_from(expression, each.label) for each in candidates}
    left_out = [(label, f"no match of --step-from={expression}") for label, step in steps.items() if step is None]
    if len(left_out) == len(steps):
        raise UserError(f"--step-from={expression} matches none of {_names(list(steps))}")
    taken = [each for each in candidates if steps[each.label] is not None]
    matched = [step for step in steps.values() if step is not None]
    return _series(taken, matched, where, "step", f"--step-from={expression}", left_out)


def read_from(candidates: Sequence[Candidate], unit: str) -> str:
    """Where the steps stand, for messages."""
    fields = {each.inside.fields.get(unit, "") for each in candidates}
    return NAMES if "" in fields else f"{' or '.join(sorted(fields))} in the files"


def _series(
    candidates: list[Candidate], steps: list[int], where: str, unit: str, how: str, left_out: list[tuple[str, str]]
) -> Series:
    paths: dict[int, Candidate] = {}
    for step, each in zip(steps, candidates, strict=True):
        if step in paths:
            raise UserError(
                f"{where}: {paths[step].label} and {each.label} are both of {unit} {step:,}; leave one of them in the "
                "folder, or --step-from REGEX takes one kind of names"
            )
        paths[step] = each
    by_step = {step: paths[step].path for step in sorted(paths)}
    return Series(by_step, list(by_step), unit, how, left_out)


def step_from(expression: str, label: str) -> int | None:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UserError(f"--step-from={expression}: no regular expression ({error})") from None
    if pattern.groups != 1:
        raise UserError(rf"--step-from={expression}: expected one group, which is the step, as in 'step=(\d+)'")
    match = pattern.search(label)
    if match is None or match[1] is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", match[1]):
        raise UserError(f"--step-from={expression}: the group is {match[1]!r} in {label}; expected a whole number")
    return int(match[1])


def units_of(candidates: Sequence[Candidate]) -> list[str]:
    """The units that all are counted in, finest first; numbers without one have to stand behind the same words."""
    is_one_kind = len({each.name.kind for each in candidates}) == 1
    return [u for u in UNITS if all(u in each.counts for each in candidates) and (u != NUMBER or is_one_kind)]


def mixture(candidates: list[Candidate]) -> str:
    """That they count different things, which are which, and what takes one kind."""
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for each in candidates:
        unit = next(u for u in UNITS if u in each.counts)
        groups.setdefault((unit, each.name.kind if unit == NUMBER else ""), []).append(each)
    said = [f"{_names([c.label for c in group])} by {unit}" for (unit, _), group in groups.items()]
    ways = dict.fromkeys(group[0].name.pattern for group in groups.values())
    flags = " or ".join(f"--step-from '{way}'" for way in ways if way)
    return f"not counted alike: {'; '.join(said)}; {flags or '--step-from REGEX'} takes one kind"


def _without_copies(
    candidates: list[Candidate], steps: list[int]
) -> tuple[list[Candidate], list[int], list[tuple[str, str]]]:
    """Without the best, the last, or a link, where another file is of the same step."""
    groups: dict[int, list[Candidate]] = {}
    for step, each in zip(steps, candidates, strict=True):
        groups.setdefault(step, []).append(each)
    dropped: dict[str, str] = {}
    for step, group in groups.items():
        own = next((each for each in group if not each.name.is_copy), group[0])
        for each in group:
            if each is not own and ((each.name.is_copy and not own.name.is_copy) or each.path.samefile(own.path)):
                dropped[each.label] = f"of step {step:,}, as {own.label}"
    pairs = [(each, step) for each, step in zip(candidates, steps, strict=True) if each.label not in dropped]
    return [each for each, _ in pairs], [step for _, step in pairs], list(dropped.items())


def two_orders(candidates: Sequence[Candidate], steps: Sequence[int], unit: str) -> str:
    """Which two a name or a file orders otherwise than `steps`, which count `unit`; empty where none does.

    Batches may begin anew with each epoch. Of other numbers in a name those before the last have to ascend, too.
    """
    latest: dict[tuple[str, ...], tuple[tuple[int, ...], str]] = {}
    for _, each in sorted(zip(steps, candidates, strict=True), key=lambda pair: pair[0]):
        name = each.name
        rulers: dict[tuple[str, ...], tuple[int, ...]] = {
            (u, where): (count,)
            for where, counts in (("inside", each.inside.counts), ("in the names", name.counts))
            for u, count in counts.items()
            if u not in ("batches", NUMBER)
        }
        if NUMBER in name.counts:
            rulers[NUMBER, "in the names", name.kind] = (name.counts[NUMBER],)
        if len(name.numbers) > 1 and unit not in each.inside.counts:
            rulers["other numbers", "in the names", f"{len(name.numbers)}"] = name.numbers[:-1]
        for ruler, value in rulers.items():
            if ruler in latest and value < latest[ruler][0]:
                first, (what, where, *_) = latest[ruler][1], ruler
                return f"{first} is before {each.label} by {unit} and after it by the {what} {where}"
            latest[ruler] = value, each.label
    return ""


def contradictions(candidates: list[Candidate], unit: str) -> list[str]:
    """A note on names that say another step than the files, which are right. Epochs may begin at 0 or at 1."""

    def differs(each: Candidate) -> bool:
        own, held = each.name.counts, each.inside.counts
        if unit not in held or (unit not in own and len(each.name.numbers) != 1):
            return False
        said = own[unit] if unit in own else each.name.numbers[0]
        may_be = {unit: held[unit]} if unit in own else held
        return not any(abs(said - value) <= (u == EPOCHS) for u, value in may_be.items())

    different = [each for each in candidates if differs(each)]
    if not different:
        return []
    first = different[0]
    more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
    is_of = f"{word_of(unit)} {first.inside.counts[unit]:,}, by {first.inside.fields[unit]} in it"
    return [f"note: {first.label}{more} is of {is_of}; its name says another, which does not count"]


def word_of(unit: str) -> str:
    return {UPDATES: "step", EPOCHS: "epoch", NUMBER: "step", "batches": "batch"}.get(unit, unit.removesuffix("s"))


def _said(content: Inside) -> str:
    return ", ".join(f"{content.fields[unit]}={count:,}" for unit, count in content.counts.items())


def _names(labels: Sequence[str]) -> str:
    return ", ".join(labels[:SHOWN]) + (f", ... ({len(labels)} files)" if len(labels) > SHOWN else "")


def _and_why(entry: tuple[str, str]) -> str:
    return f"{entry[0]}: {entry[1]}"


def _why(left_out: list[tuple[str, str]]) -> str:
    return f" ({'; '.join(_and_why(entry) for entry in left_out[:SHOWN])})" if left_out else ""


def summary(series: Series, used: Sequence[Path], verbose: bool) -> list[str]:
    """Which checkpoints were read, the first and the last, and which were left out, in lines. used: in order."""
    keys = {path: key for key, path in series.paths.items()}
    steps = dict(zip(series.paths, series.steps, strict=True)) if series.steps is not None else {}

    def one(path: Path) -> str:
        step = steps.get(keys[path])
        label = series.labels.get(path, path.name)
        name = label if re.search(r"\d", label) else f"{path.parent.name}/{path.name}"
        return name if step is None else f"{series.unit} {step:,} ({name})"

    number = f"{len(used)}" if len(used) == len(series.paths) else f"{len(used)} of {len(series.paths)}"
    ends = [one(path) for path in dict.fromkeys((used[0], used[-1]))]
    how = f", by {series.how}" if series.how else ""
    lines = [f"read {number} checkpoint{'s' * (len(series.paths) > 1)}: {' to '.join(ends)}{how}", *series.notes]
    if series.left_out:
        few = series.left_out if verbose else series.left_out[:SHOWN]
        more = len(series.left_out) - len(few)
        said = "; ".join(f"{name} ({why})" for name, why in few)
        lines.append(f"left out: {said}" + (f"; ... {more} more (--verbose lists them)" if more else ""))
    return lines
