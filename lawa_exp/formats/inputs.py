"""Which checkpoints an average is made of: those that are listed, or those of a folder."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lawa_exp.formats.choice import Choice
from lawa_exp.formats.folders import checkpoint_in
from lawa_exp.formats.inside import inside
from lawa_exp.formats.names import named, of_entry
from lawa_exp.formats.steps import (
    AGAIN,
    NAMES,
    Candidate,
    Series,
    by_expression,
    contradictions,
    find_checkpoints,
    included,
    mixture,
    read_from,
    two_orders,
    units_of,
    without_averages,
    word_of,
)
from lawa_exp.system.errors import UserError


def listed(texts: Sequence[str], choice: Choice, weights: str | None) -> Series:
    """Those of the command line by 1, 2, ...: in the order of their steps where all have one, else as listed.

    texts: files, folders or patterns. weights: the flag, which belongs to the order of the list. UserError: a pattern
    matches nothing, a listed one is an average, or weights are in another order.
    """
    found: list[Candidate] = []
    left_out: list[tuple[str, str]] = []
    for text in texts:
        if Path(text).exists() or not glob.has_magic(text):
            one = _candidate(Path(text))
            if (average := one.average(choice)) and not choice.include_averages:
                raise UserError(f"{text} is an average already ({average}); leave it out, or {AGAIN}")
            found.append(one)
            continue
        matches = sorted(glob.glob(text), key=natural)  # noqa: PTH207  (patterns may be absolute)
        if not matches:
            raise UserError(f"{text}: no file matches")
        taken, others = without_averages([_candidate(Path(match)) for match in matches], choice)
        if not taken:
            raise UserError(f"{text}: no checkpoint matches: {others[0][0]} is left out ({others[0][1]})")
        found += [taken[i] for i in _order(taken)[0]]
        left_out += others
    labels = {each.path: each.label for each in found}
    if len({each.label for each in found}) < len(found):
        found = [replace(each, label=str(each.path)) for each in found]
    if choice.step_from is None:
        series = _in_order(found)
    else:
        series = by_expression(found, "inputs", choice.step_from)
        series = replace(series, paths=dict(enumerate(series.paths.values(), start=1)))
    order = list(series.paths.values())
    if weights is not None and (
        late := next((c.path for c, p in zip(found, order, strict=False) if c.path != p), None)
    ):
        raise UserError(
            f"--weights={weights}: which weight is whose is not clear, as the inputs are not in the order of the "
            f"steps in their names ({late} is too early); list them in it, or quote the pattern"
        )
    series.labels = labels
    series.left_out += left_out
    series.notes += included(found, choice)
    return series


def _candidate(path: Path) -> Candidate:
    """Of a path as it is listed. Its folder's name says the step where its own does not, or a labelled one above it.

    As in `global_step_100/actor/huggingface`. A folder is the checkpoint that it holds, where it is none itself, and
    what the folder's name says comes before what the name in it says.
    """
    listed, path = path, (path.is_dir() and checkpoint_in(path)) or path
    first = listed.name or listed.absolute().name
    name = named(first) if path == listed else of_entry(first, path.name)
    above = [named(folder.name) for folder in path.absolute().parents[:3]]
    of_folder = next((each for each in above if each.counts), name)
    if not name.counts and (of_folder is above[0] or of_folder.is_labelled):
        name = replace(of_folder, is_average=name.is_average, is_copy=name.is_copy)
    if "averages" in [folder.name for folder in path.absolute().parents[:3]]:  # of a run of ours
        name = replace(name, is_average=True)
    label = first if path == listed else f"{first}/{path.relative_to(listed)}"
    return Candidate(path, label, name, inside(path))


def _in_order(found: list[Candidate]) -> Series:
    order, steps, unit, how = _order(found)
    paths = {i: found[at].path for i, at in enumerate(order, start=1)}
    notes = []
    if steps is None:
        numbers = {tuple(re.findall(r"\d+", each.path.name)) for each in found}
        if len(numbers) > 1 or all(each.counts for each in found):
            notes.append(
                f"warning: {how}, so the inputs are taken as listed, {found[-1].label} as the latest; list them oldest "
                "first, or --step-from REGEX says their steps"
            )
        return Series(paths, None, how="the list", notes=notes)
    notes += contradictions(found, unit)
    return Series(paths, steps, word_of(unit), how, notes=notes)


def _order(found: Sequence[Candidate]) -> tuple[list[int], list[int] | None, str, str]:
    """Places oldest first, their steps, unit, and where these stand; without steps why there are none."""
    unknown = [each.label for each in found if not each.counts]
    units = [] if unknown else units_of(found)
    options = [([each.counts[unit] for each in found], unit, read_from(found, unit)) for unit in units]
    glued = [each.name.glued for each in found if each.name.glued is not None]
    if len(unknown) == len(found) == len(glued):
        options.append((glued, "number", NAMES))
    two = ""
    for steps, unit, how in options:
        if len(set(steps)) == len(steps):
            if two := two_orders(found, steps, unit):
                break
            places = sorted(range(len(steps)), key=steps.__getitem__)
            return places, [steps[i] for i in places], unit, how
    if two:
        why = f"which is the order is not clear ({two})"
    elif unknown:
        why = f"no step is known of {unknown[0]}"
    else:
        why = f"two inputs are of {word_of(units[0])} {_double(options[0][0]):,}" if units else mixture(list(found))
    return list(range(len(found))), None, "", why


def _double(steps: list[int]) -> int:
    return next(step for i, step in enumerate(steps) if step in steps[:i])


def natural(text: str) -> list[int | str]:
    """A key that sorts step_900 before step_1000."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def trajectory(folder: Path, choice: Choice) -> Series:
    """The snapshots of one of our runs, or the checkpoints of another folder, by their steps."""
    if (folder / "trajectory").is_dir():
        folder = folder / "trajectory"
    series = find_checkpoints(folder, "--trajectory", choice)
    first = series.paths.pop(0, None)
    if not series.paths:
        raise UserError(f"--trajectory={folder}: only the initial weights (step 0) are there, which are never observed")
    series.steps = list(series.paths)
    if first:
        series.notes.append(
            f"note: {first.name} is of {series.unit} 0, taken for the initial weights, which no average takes in; "
            f"where the first {series.unit} is counted as 0 (timm, torchvision, Lightning), list the files instead"
        )
    return series
