"""Markdown, LaTeX and CSV of what came of the claims: what was published next to our result."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lawa_exp.reproduce.book import Claim, Form, Paper
from lawa_exp.reproduce.judged import Outcome, disagree, spread
from lawa_exp.reproduce.rules import FAILS, HOLDS, IN_PART, MET, NOT_COMPARABLE, NOT_RUN, Check
from lawa_exp.results.tables import markdown
from lawa_exp.system.files import write_text_atomically

Outcomes = Mapping[str, Sequence[Outcome]]  # by the claim's id
VERDICTS = (HOLDS, IN_PART, FAILS, NOT_RUN, NOT_COMPARABLE)
HOW_TO_READ = """A verdict follows from the claim's rules, which were written before the runs. A rule compares losses
(nats; on test at the end of the budget, else on val) or shares of the budget: the mean over seeds of its left side
minus its right side, paired by seed, with the 95% interval (Student's t). It is met when the interval is on its side,
contradicted when it is on the other, else undecided. A claim holds if all its rules are met, and in part if some are
or if an undecided one's mean is on its side. *As published*: the schedule, the averages and the baseline of the paper;
*fair*: the baseline annealed to the same budget, averages the best of their grids, averages and peaks chosen on val."""


def number(value: float) -> str:
    """Four significant digits, no exponent for what a table holds."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"


def with_half(check: Check) -> str:
    half = "" if math.isnan(check.half) or check.n == 0 else f" ± {number(check.half)}"
    return f"{check.mean:+.4f}{half}"


def counts(outcomes: Outcomes, forms: Sequence[Form]) -> str:
    """How many claims have which verdict, by form."""
    lines = [["", *VERDICTS]]
    for form in forms:
        found = [o.verdict for claim in outcomes.values() for o in claim if o.form == form]
        if found:
            lines.append([title(form), *(str(found.count(v)) for v in VERDICTS)])
    return markdown(lines)


def title(form: Form) -> str:
    return form.recipe.replace("_", " ") + ("" if form.data == "embedded" else f", {form.data}")


def said(paper: Paper) -> str:
    """What the paper claims, with its published figures."""
    lines = [[c.id, c.says, published(c)] for c in paper.claims]
    return markdown([["claim", "says", "published"], *lines])


def published(claim: Claim) -> str:
    return "; ".join(f.text() for f in claim.published)


def page(paper: Paper, outcomes: Outcomes, command: str, facts: Sequence[str], pictures: Sequence[str] = ()) -> str:
    """The paper's page: a table of verdicts, where the forms disagree, plots, and each claim in full."""
    parts = [f"# {paper.title}", "", f"    {command}", "", *(f"- {fact}" for fact in facts), "", HOW_TO_READ, ""]
    parts += [*verdicts(paper, outcomes, on_page=True), ""]
    parts += ["## Plots", "", *pictures] if pictures else []
    for claim in paper.claims:
        parts += [f"## {claim.id}", "", *claim_in_full(claim), ""]
        for o in outcomes[claim.id]:
            parts += [*outcome_in_full(o), ""]
    return "\n".join(parts).rstrip() + "\n"


def verdicts(paper: Paper, outcomes: Outcomes, on_page: bool = False) -> list[str]:
    """Lines: how many claims have which verdict, the verdict of each, and where as published and fair disagree.

    on_page: with the published figures, and links to each claim in full.
    """
    name = "[{0}](#{0})" if on_page else "{}"
    forms = list(dict.fromkeys(o.form for claim in outcomes.values() for o in claim))
    lines = [["claim", *(["published"] if on_page else []), *map(title, forms)]]
    for claim in paper.claims:
        by_form = {o.form: o for o in outcomes[claim.id]}
        figures = [published(claim)] if on_page else []
        lines.append([name.format(claim.id), *figures, *(cell(by_form.get(f)) for f in forms)])
    apart = [
        f"- {name.format(c.id)}: {c.says} {'; '.join(verdict_line(o) for o in outcomes[c.id])}"
        for c in paper.claims
        if disagree(outcomes[c.id])
    ]
    parts = [counts(outcomes, forms), "", markdown(lines), ""]
    return [*parts, "## Where as published and fair disagree", "", *(apart or ["Nowhere."])]


def claim_in_full(claim: Claim) -> list[str]:
    lines = [f"**{claim.says}**", "", f"- where: {claim.where}", f"- setting: {claim.setting}"]
    lines += [f"- published: {f.text()}; source: {f.source}" for f in claim.published]
    return [*lines, f"- judged by: {claim.because}"]


def outcome_in_full(o: Outcome) -> list[str]:
    lines = [f"{title(o.form).capitalize()}: **{o.verdict}**" + (f" ({o.reason})" if not o.checks else ""), ""]
    lines += [f"- `{c.rule}`: {with_half(c)}, n={c.n}: {c.state}" for c in o.checks if c.n]
    lines += [f"- `{c.rule}`: {c.state}" for c in o.checks if not c.n]
    return [*lines, "", arms_table(o)] if o.arms else lines


def cell(o: Outcome | None) -> str:
    """The verdict, and the first rule's difference."""
    if o is None:
        return ""
    first = next((c for c in o.checks if c.n), None)
    met = f"{sum(c.state == MET for c in o.checks)} of {len(o.checks)} rules met"
    return o.verdict + (f" ({met}; {with_half(first)}, n={first.n})" if first else "")


def verdict_line(o: Outcome) -> str:
    return f"{title(o.form)}: {o.verdict}"


def arms_table(o: Outcome) -> str:
    lines = [["arm", "weights and runs", "at", "split", "mean", "sd", "n"]]
    for name, m in (o.arms or {}).items():
        mean, deviation = spread(m.values)
        lines.append([name, m.label(), f"{m.arm.at:.0%}", m.split, number(mean), number(deviation), str(len(m.values))])
    return markdown(lines)


def latex(paper: Paper, outcomes: Outcomes) -> str:
    """A longtable (package booktabs, longtable) of the claims, published and ours."""
    forms = list(dict.fromkeys(o.form for claim in outcomes.values() for o in claim))
    columns = "p{5.2cm}p{4.2cm}" + "p{3cm}" * len(forms)
    heads = " & ".join(["claim", "published", *(title(f) for f in forms)])
    lines = [f"% {paper.title}", f"\\begin{{longtable}}{{{columns}}}", "\\toprule", f"{heads} \\\\", "\\midrule"]
    for claim in paper.claims:
        by_form = {o.form: o for o in outcomes[claim.id]}
        row = [claim.says, published(claim), *(cell(by_form.get(f)) for f in forms)]
        lines.append(" & ".join(map(escaped, row)) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{longtable}", ""])


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "±": "$\\pm$",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",  # which without this are inverted marks in the default encoding
    ">": "$>$",
}


def escaped(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)


HEADS = {
    "": ("claim", "form", "verdict", "rule", "mean", "half_interval", "n", "state"),
    "-arms": ("claim", "form", "arm", "weights", "runs", "at", "split", "seed", "value"),
    "-published": ("claim", "what", "value", "unit", "certainty", "source"),
}


def records(paper: Paper, outcomes: Outcomes) -> dict[str, list[list[object]]]:
    """By the keys of HEADS: a line for each rule; for each arm's losses; for each published figure."""
    checks: list[list[object]] = []
    arms: list[list[object]] = []
    figures: list[list[object]] = []
    for claim in paper.claims:
        for f in claim.published:
            figures.append([claim.id, f.what, f.value, f.unit, f.certainty, f.source])
        for o in outcomes.get(claim.id, ()):
            for c in o.checks:
                checks.append([claim.id, o.form.name, o.verdict, c.rule, c.mean, c.half, c.n, c.state])
            if not o.checks:
                checks.append([claim.id, o.form.name, o.verdict, "", "", "", "", o.reason])
            for name, m in (o.arms or {}).items():
                for seed, value in m.values.items():
                    arms.append([claim.id, o.form.name, name, m.weights, m.group, m.arm.at, m.split, seed, value])
    return dict(zip(HEADS, (checks, arms, figures), strict=True))


def write_csv(folder: Path, paper: Paper, outcomes: Outcomes) -> None:
    """NAME.csv, NAME-arms.csv and NAME-published.csv, see `records`."""
    for key, lines in records(paper, outcomes).items():
        with (folder / f"{paper.name}{key}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADS[key], *lines])


def write_pages(
    folder: Path,
    paper: Paper,
    outcomes: Outcomes,
    command: str,
    facts: Sequence[str],
    pictures: Sequence[str] = (),
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / f"{paper.name}.md", page(paper, outcomes, command, facts, pictures))
    write_text_atomically(folder / f"{paper.name}.tex", latex(paper, outcomes))
    write_csv(folder, paper, outcomes)
