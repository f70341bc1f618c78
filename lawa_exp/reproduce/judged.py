"""What came of each claim in each form: its arms measured, its rules checked, its verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lawa_exp.reproduce.arms import Arm, Measured, Missing, Run, measure
from lawa_exp.reproduce.book import Book, Claim, Form, Paper
from lawa_exp.reproduce.rules import NOT_RUN, Check, check, judge, names_in
from lawa_exp.system.errors import UserError

FIELDS = ("weights", "at", "metric", "readout", "split")  # of an arm; every other key is a setting of its runs


@dataclass(frozen=True)
class Outcome:
    """A claim in a form. reason: what the verdict rests on, or what is missing."""

    claim: Claim
    form: Form
    verdict: str
    reason: str
    checks: tuple[Check, ...] = ()
    arms: Mapping[str, Measured] | None = None


def resolve(arm: Mapping[str, object], names: Mapping[str, object]) -> Arm:
    """An arm with its $names replaced. Missing: the form has no such name."""

    def meant(value: object) -> object:
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in names:
                raise Missing(f"no {value[1:]} in this form")
            return names[value[1:]]
        return value

    settings = {key: meant(value) for key, value in arm.items()}
    if "set" not in settings:
        raise UserError(f"arm {dict(arm)}: expected set, of trainings")
    sets = (str(settings.pop("set")),)
    own: dict[str, Any] = {key: settings.pop(key) for key in FIELDS if key in settings}  # as the paper's file has them
    return Arm(sets, settings, **own)


def outcome(claim: Claim, form: Form, scale: str, runs: Callable[[str], Sequence[Run]]) -> Outcome:
    """Judges one claim in one form. runs: the finished ones of a set; it raises Missing where there are none."""
    if claim.verdict:
        return Outcome(claim, form, claim.verdict, claim.because)
    rules = claim.rules
    names = form.names.get(scale)
    try:
        arms: dict[str, Measured] = {}
        for name in dict.fromkeys(n for rule in rules for n in names_in(rule)):
            if name not in claim.arms:
                raise UserError(f"{claim.id}: no arm {name}; arms: {', '.join(claim.arms)}")
            if names is None:
                raise Missing(f"nothing is planned at --scale {scale}")
            arm = resolve(claim.arms[name], names)
            arms[name] = measure(arm, {set: runs(set) for set in arm.sets})
        checks = tuple(check(rule, arms) for rule in rules)
    except Missing as missing:
        return Outcome(claim, form, NOT_RUN, str(missing))
    return Outcome(claim, form, judge(checks), claim.because, checks, arms)


def outcomes(book: Book, paper: Paper, scale: str, runs: Callable[[str], Sequence[Run]]) -> dict[str, list[Outcome]]:
    """Of each claim, by its id, one in each form that says anything of it: at least in those on the embedded data."""
    found: dict[str, list[Outcome]] = {}
    for claim in paper.claims:
        all_forms = [outcome(claim, form, scale, runs) for form in book.forms]
        found[claim.id] = [o for o in all_forms if o.form.data == "embedded" or (o.arms and o.verdict != NOT_RUN)]
    return found


def disagree(of_claim: Sequence[Outcome]) -> bool:
    """Whether the verdicts as published and fair differ on some data, where both were judged."""
    verdicts: dict[str, dict[str, str]] = {}
    for o in of_claim:
        if o.checks:
            verdicts.setdefault(o.form.data, {})[o.form.recipe] = o.verdict
    return any(len(set(v.values())) > 1 for v in verdicts.values())


def spread(values: Mapping[int, float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds."""
    listed = list(values.values())
    return statistics.fmean(listed), statistics.stdev(listed) if len(listed) > 1 else math.nan


def needed(book: Book, papers: Sequence[Paper], scale: str) -> list[str]:
    """The sets that the claims' rules speak of at this scale, in the order of trainings.yaml."""
    found: set[str] = set()
    for paper in papers:
        for claim in paper.claims:
            for form in book.forms:
                for rule in claim.rules:
                    for name in names_in(rule):
                        if name not in claim.arms:
                            raise UserError(f"{claim.id}: no arm {name}; arms: {', '.join(claim.arms)}")
                        try:
                            found.update(resolve(claim.arms[name], form.names.get(scale, {})).sets)
                        except Missing:
                            continue
    return [name for name in book.sets if name in found]
