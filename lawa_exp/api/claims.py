"""Papers' claims in Python: what they say, how runs judge them, and the numbers behind that."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.api.runs import Run, Runs, data_frame
from lawa_exp.config.rules import near
from lawa_exp.reproduce import book, costs, judged, pages, plots, rules, trained
from lawa_exp.reproduce.arms import LOSS, Measured, Missing, measure
from lawa_exp.reproduce.arms import Arm as Asked
from lawa_exp.reproduce.material import Material, rates
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    import pandas

MAIN = "embedded"  # the data that come with the project


def claims(
    paper: str,
    runs: str | os.PathLike[str] = "runs",
    *,
    scale: str = "cpu",
    folder: str | os.PathLike[str] | None = None,
) -> Claims:
    """The claims of a paper ("lawa", "ewa", ...), judged as `lawa reproduce PAPER --read` does. Nothing is trained.

    runs: the folder of the trainings. scale: cpu, gpu or paper. folder: claims of your own, in files like ours.
    UserError: no such paper, scale or folder.
    """
    whole = book.load(Path(folder) if folder else book.FOLDER)
    known = [p.name for p in whole.papers]
    if paper not in known:
        raise UserError(f"{paper}: {near(paper, known)}")
    if scale not in book.SCALES:
        raise UserError(f"scale={scale}: {near(scale, book.SCALES)}")
    if not Path(runs).is_dir():
        raise UserError(f"runs={os.fspath(runs)}: no such folder; `lawa reproduce {paper}` trains what is judged")
    return Claims(whole, whole.paper(paper), str(runs), scale)


class Markdown(str):
    """Text that a notebook shows as a table."""

    def _repr_markdown_(self) -> str:
        return str(self)

    __repr__ = str.__str__


@dataclass(frozen=True)
class Difference:
    """Of two arms, by seed. mean: nan where one has no value; half: of the 95% interval over seeds (Student's t), nan
    of one seed; n: seeds that both have."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return pages.with_half(rules.Check("", "", self.mean, self.half, self.n, on_side=False))


class Arm:
    """Runs that differ in the seed alone, and their live weights or one average. `a - b` is a `Difference`.

    weights: live, or an average's id. label: with what was chosen on val. values: {seed: loss in nats, or the share
    that is wrong}; on test at the end of the budget, else on val (split). curves: {seed: {step: val}}.
    """

    def __init__(self, measured: Measured) -> None:
        self.weights, self.label, self.split = measured.weights, measured.label(), measured.split
        self.at = measured.arm.at  # as a share of the budget
        self.values, self.curves = dict(measured.values), measured.curves
        self.mean, self.sd = judged.spread(measured.values)
        self.runs = Runs([Run(run.folder) for run in measured.runs])
        self._first = measured.runs[0]

    def __sub__(self, other: Arm) -> Difference:
        return Difference(*rules.interval(rules.combined(operator.sub, self.values, other.values)))

    def __repr__(self) -> str:
        return f"Arm({self.label}: {pages.number(self.mean)} on {self.split}, n={len(self.values)})"

    @cached_property
    def curve(self) -> dict[int, float]:
        """{step: val, mean over the seeds}, at the steps that all seeds have."""
        curves = list(self.curves.values())
        return {s: math.fsum(c[s] for c in curves) / len(curves) for s in sorted(set.intersection(*map(set, curves)))}

    @cached_property
    def rates(self) -> dict[int, float]:
        """{step: learning rate of the update that completed it}, of the first run."""
        return rates(self._first)

    def plot(self, axes: Any, after: float = 0.0, **look: Any) -> None:
        """Draws `curve` into matplotlib's axes, from a share of the budget on. look: color, label, ..."""
        points = {s: v for s, v in self.curve.items() if s >= after * max(self.curve)}
        axes.plot(list(points), list(points.values()), **look)


class Outcome:
    """A claim in one form. form: as published, or fair; verdict: holds, holds in part, does not hold, not run or not
    comparable; reason: what it rests on, or what is missing; arms: by name, none where a run is missing."""

    def __init__(self, o: judged.Outcome, arms: dict[str, Arm]) -> None:
        self.form, self.verdict, self.reason, self.arms = pages.title(o.form), o.verdict, o.reason, arms
        self._text = "\n".join(pages.outcome_in_full(o))

    def __repr__(self) -> str:
        return self._text

    _repr_markdown_ = __repr__


class Claim:
    """id, says; where in the paper; setting: the paper's; rules: by which it is judged, see `lawa reproduce`."""

    def __init__(self, claim: book.Claim, paper: Claims) -> None:
        self.id, self.says, self.where, self.setting = claim.id, claim.says, claim.where, claim.setting
        self.rules = list(claim.rules)
        self._claim, self._paper = claim, paper

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """One for each form that says anything of it."""
        return [
            Outcome(o, {name: Arm(m) for name, m in (o.arms or {}).items()}) for o in self._paper._outcomes[self.id]
        ]

    def __repr__(self) -> str:
        return "\n".join([*pages.claim_in_full(self._claim), *(f"- rule: `{rule}`" for rule in self.rules)])

    _repr_markdown_ = __repr__


class Claims:
    """A paper's claims: `for claim in paper`, `paper["lawa-mlm-final"]`. Shown, they are a table.

    name, title: of the paper. names: what rules call sets of trainings, peaks and averages, as published.
    """

    def __init__(self, whole: book.Book, paper: book.Paper, runs_root: str, scale: str) -> None:
        self.name, self.title = paper.name, paper.title
        self._book, self._own, self._root, self._scale = whole, paper, runs_root, scale
        self._claims = {claim.id: Claim(claim, self) for claim in paper.claims}
        of = [f for f in whole.forms if f.data == MAIN and f.recipe == "as_published"]
        self.names = dict(of[0].names.get(scale, {})) if of else {}

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        return iter(self._claims.values())

    def __getitem__(self, id: str | int) -> Claim:
        """By its id, or its place."""
        if isinstance(id, int):
            return list(self._claims.values())[id]
        if id not in self._claims:
            raise UserError(f"{id}: {self.name} has no such claim; {near(id, self._claims)}")
        return self._claims[id]

    def __repr__(self) -> str:
        return pages.said(self._own)

    _repr_markdown_ = __repr__

    @cached_property
    def _plans(self) -> dict[str, trained.Planned]:
        names = judged.needed(self._book, [self._own], self._scale)
        return {name: trained.plan_set(self._book.sets[name], self._scale, self._root) for name in names}

    @cached_property
    def _finished(self) -> Any:
        return trained.read_all(self._plans)

    @cached_property
    def _outcomes(self) -> dict[str, list[judged.Outcome]]:
        return judged.outcomes(self._book, self._own, self._scale, self._finished)

    @cached_property
    def runs(self) -> dict[str, Runs]:
        """The finished runs of each set of trainings that the claims are about."""
        sets = [name for name, plan in self._plans.items() if not plan.problem]
        return {name: Runs([Run(run.folder) for run in self._finished(name)]) for name in sets}

    @property
    def costs(self) -> Markdown:
        """The sets of trainings: what is done, and the work in steps, in steps of gpt_tiny and in hours."""
        return Markdown(costs.cost_table(list(self._plans.values()), trained.unit()))

    @property
    def verdicts(self) -> Markdown:
        """How many claims hold, each claim's verdict in each form, and where the forms disagree."""
        return Markdown("\n".join(pages.verdicts(self._own, self._outcomes)))

    @property
    def published(self) -> pandas.DataFrame:
        """A line for each published figure: value in `unit`, as certain as `certainty` says, from `source`."""
        return self._frame("-published", pages.records(self._own, {}))

    @property
    def checks(self) -> pandas.DataFrame:
        """A line for each rule and form: mean and half_interval of its left side less its right one, over n seeds."""
        return self._frame("", pages.records(self._own, self._outcomes))

    @property
    def arms(self) -> pandas.DataFrame:
        """A line for each arm, form and seed: `value` in nats, or the share that is wrong."""
        return self._frame("-arms", pages.records(self._own, self._outcomes))

    def _frame(self, key: str, records: Mapping[str, list[list[object]]]) -> pandas.DataFrame:
        return data_frame([dict(zip(pages.HEADS[key], line, strict=True)) for line in records[key]])

    def arm(
        self,
        trainings: str,
        weights: str = "live",
        at: float = 1.0,
        where: Mapping[str, object] | None = None,
        metric: str = LOSS,
    ) -> Arm:
        """Runs of a set (a key of `runs`), and their weights: live, an average's id, or a pattern such as "lawa-*".

        at: the step, as a share of the budget. where: settings of the runs, {"lr.peak": 0.004}. What these leave open
        is chosen by the mean val loss at that step. UserError: no finished run has such weights.
        """
        try:
            return self._measured(trainings, weights, at, where or {}, metric)
        except Missing as missing:
            raise UserError(str(missing)) from None

    def gain(
        self, trainings: str, weights: str, at: float = 1.0, where: Mapping[str, object] | None = None
    ) -> Difference:
        """The live weights' loss less the average's, see `arm`; its mean is nan where there is no such average yet.

        UserError: there is none at the end of the budget either.
        """
        try:
            average = self._measured(trainings, weights, at, where or {})
            return self._measured(trainings, "live", at, where or {}) - average
        except Missing:
            self.arm(trainings, weights, where=where)
            return Difference(math.nan, math.nan, 0)

    def _measured(
        self, trainings: str, weights: str, at: float, where: Mapping[str, object], metric: str = LOSS
    ) -> Arm:
        if trainings not in self.runs:
            raise UserError(f"{trainings}: {near(trainings, self.runs)}")
        if not 0 < at <= 1:
            raise UserError(f"at={at}: expected a share of the budget, above 0 and at most 1")
        return Arm(measure(Asked((trainings,), where, weights, at, metric), {trainings: self._finished(trainings)}))

    def plot(self, name: str) -> Any:
        """matplotlib's figure of a plot of `lawa reproduce`, such as "gain_against_rate". UserError: its runs are
        missing, or this paper has no such plot."""
        own = [n for n, p in plots.PLOTS.items() if {self.names.get(s) for s in p.sets} & set(self._plans)]
        if name not in own:
            raise UserError(f"{name}: {near(name, own)}" if own else f"{name}: the claims of {self.name} have no plots")
        material = Material.of(self._book, self._scale, self._finished, Path(self._root) / "reproduce" / "plots")
        sheet = plots.PLOTS[name].draw(material)
        if sheet is None:
            raise UserError(f"{name}: its runs are not in {self._root}; lawa reproduce {self.name} trains them")
        return sheet.figure
