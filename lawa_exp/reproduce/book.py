"""The claims, what is trained for them, and the forms in which they are judged: the YAML files in this folder.

A paper's file lists claims: what was said and measured, where, the published figures with how sure they are, and the
rules by which it is judged (`rules.py`), written before the runs. trainings.yaml has the sets of trainings for each
scale, and the forms: what a rule's $names mean, as published and fair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar

from lawa_exp.config.rules import near
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_yaml

T = TypeVar("T")
FOLDER = Path(__file__).parent / "papers"
PAPERS = ("lawa", "ewa", "ajroldi", "anytime")
TRAININGS = "trainings"
SCALES = ("cpu", "gpu", "paper")
CERTAINTY = ("printed", "digitised", "second-hand", "inferred", "computed")


@dataclass(frozen=True)
class Figure:
    """One published figure in the paper's own units; `value` may be text (`> 16`)."""

    what: str
    value: int | float | str
    unit: str
    source: str
    certainty: str

    def text(self) -> str:
        shown = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value}"
        return f"{self.what}: {shown} {self.unit}".rstrip() + f" ({self.certainty})"


@dataclass(frozen=True)
class Claim:
    """arms: what the rules' names mean (`arms.Arm`), by name. rules: see `rules.py`; none: `because` says why not.

    because: what the verdict rests on.
    """

    id: str
    says: str
    where: str
    setting: str
    published: tuple[Figure, ...]
    arms: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    because: str = ""
    verdict: str = ""  # of a claim without rules: not run, not comparable


@dataclass(frozen=True)
class Paper:
    name: str
    title: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class TrainingSet:
    """words: a multirun's, for each scale. after: the set whose stable runs it goes on from.

    optional: its data need not be there. readouts: further read-outs of each of its runs, words of `readout` by name.
    """

    name: str
    what: str
    words: Mapping[str, str]
    after: str | None = None
    optional: bool = False
    readouts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A way to judge: recipe as_published or fair on some data; names: what $NAME in an arm stands for, by scale."""

    name: str
    recipe: str
    data: str
    names: Mapping[str, Mapping[str, object]] = field(hash=False)


@dataclass(frozen=True)
class Book:
    papers: tuple[Paper, ...]
    sets: Mapping[str, TrainingSet]
    forms: tuple[Form, ...]

    def paper(self, name: str) -> Paper:
        return next(p for p in self.papers if p.name == name)


class ClaimEntry(TypedDict, total=False):
    """A claim in a paper's file, of which this looks at these; the others are fields of `Claim` as they stand."""

    id: str
    published: list[dict[str, object]]
    rules: list[str]


def load(folder: Path = FOLDER) -> Book:
    """All papers, sets and forms. UserError names the file and the entry of what is wrong there."""
    if not (folder / f"{TRAININGS}.yaml").exists():
        raise UserError(f"--claims {folder}: expected a folder with {TRAININGS}.yaml and claims (see {FOLDER})")
    try:
        return _load(folder)
    except (TypeError, KeyError, AttributeError) as error:  # of another shape than ours
        raise UserError(f"--claims {folder}: not claims like ours ({type(error).__name__}: {error})") from None


def _load(folder: Path) -> Book:
    content = read_yaml(folder / f"{TRAININGS}.yaml")
    sets = {
        name: made(TrainingSet, {"name": name, **s}, f"trainings.yaml: {name}") for name, s in content["sets"].items()
    }
    forms = tuple(made(Form, {"name": n, **f}, f"trainings.yaml: {n}") for n, f in content["forms"].items())
    papers = []
    others = sorted(p.stem for p in folder.glob("*.yaml") if p.stem not in (*PAPERS, TRAININGS))
    for name in [*(p for p in PAPERS if (folder / f"{p}.yaml").exists()), *others]:
        page = read_yaml(folder / f"{name}.yaml")
        papers.append(Paper(name, page["title"], tuple(read_claim(c, f"{name}.yaml") for c in page["claims"])))
    return Book(tuple(papers), sets, forms)


def unknown_names(book: Book) -> list[str]:
    """What claims call by a $name that no form has, which makes them "not run" everywhere: a line each."""
    names = {name for form in book.forms for of_scale in form.names.values() for name in of_scale}
    lines = []
    for claim in (claim for paper in book.papers for claim in paper.claims):
        used = {v for arm in claim.arms.values() for v in arm.values() if isinstance(v, str) and v.startswith("$")}
        lines += [
            f"{claim.id}: {v} is a name of no form; {near(v[1:], names)}" for v in sorted(used) if v[1:] not in names
        ]
    return lines


def read_claim(content: ClaimEntry, file: str) -> Claim:
    place = f"{file}: {content.get('id', '?')}"
    figures = tuple(made(Figure, f, place) for f in content.get("published", ()))
    for figure in figures:
        if figure.certainty not in CERTAINTY:
            raise UserError(f"{place}: certainty={figure.certainty}: {near(figure.certainty, CERTAINTY)}")
    claim = made(
        Claim,
        {**content, "published": figures, "rules": tuple(content.get("rules", ()))},
        place,
    )
    if bool(claim.rules) == bool(claim.verdict):
        raise UserError(f"{place}: expected rules, or a verdict with its reason")
    return claim


def made(cls: type[T], values: Mapping[str, object], place: str) -> T:
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]  # they are dataclasses
    for name in values:
        if name not in names:
            raise UserError(f"{place}: {name} is not a field; {near(name, names)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{place}: {error}") from None
