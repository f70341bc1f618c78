"""What a read-out says: a table, summary.md and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lawa_exp.evaluation.read_out import ReadOut
from lawa_exp.evaluation.views import View
from lawa_exp.readout.comparison import Against, Comparison, half_of_samples, plus_minus, verdict
from lawa_exp.readout.heatmap import compared_line, draw_heatmap
from lawa_exp.readout.noise import paired
from lawa_exp.readout.subject import Named
from lawa_exp.results.curves import draw_curves
from lawa_exp.results.savings import Price, longest_saving, table_of
from lawa_exp.results.statistics import curve
from lawa_exp.results.tables import markdown, saved_text
from lawa_exp.seams.task import Task
from lawa_exp.storage.rows import Row, metric_in, name_in_view, name_of
from lawa_exp.system.files import write_text_atomically


def table(f: Comparison, measure: str) -> str:
    """A line for each average: loss after the last step, difference to live and to the best, steps saved half-way.

    The task's own metrics follow, each with the difference to live.
    """
    noise = any(line.saved_range for line in f.lines)
    head = [
        "weights",
        f"{measure}, step {f.step:,}",
        "to live",
        "to the best",
        "steps saved",
        *["range"] * noise,
        "at step",
    ]
    head += [cell for name in f.metrics for cell in (f"{name}, step {f.step:,}", "to live")]
    of_live = [cell for name in f.metrics for cell in (f.text_of_live(name), "")]
    lines = [
        head,
        ["live", f"{f.live:.4f}", "", "the best" if f.best == "live" else "", "", *[""] * noise, "", *of_live],
    ]
    for line in f.lines:
        difference = f"{line.difference:+.4f}" + plus_minus(line.half)
        to_best = "the best" if line.id == f.best else f"{line.to_best[0]:+.4f}" + plus_minus(line.to_best[1])
        saved = [saved_text(*line.saved), *[line.saved_range] * noise, f"{line.at:,}"]
        others = [cell for name, metric in f.metrics.items() for cell in line.others[name].texts(metric)]
        lines.append([line.id, f"{line.loss:.4f}", difference, to_best, *saved, *others])
    return markdown(lines)


def noise_line(f: Comparison) -> str:
    """What the intervals hold and what they do not."""
    sources = [f"the evaluation's samples (paired, {f.batches} batches)"] if f.batches else []
    if not math.isnan(f.scatter):
        sources.append(f"the live curve's scatter from one evaluation to the next (standard deviation {f.scatter:.4f})")
    if not sources:
        return "Noise: not known (no losses of single batches, and too few evaluations for the live curve's scatter)."
    missing = "" if f.batches else "; the evaluation's samples are not in it (no losses of two or more batches)"
    missing += "; the live curve's scatter is not in it (too few evaluations)" if math.isnan(f.scatter) else ""
    return (
        f"Noise: ± is half of a 95% interval from {' and '.join(sources)}{missing}. It is that of this one run: "
        "what another seed would change is not in it. To the best: the samples alone."
    )


SAVED_LINE = (
    "Steps saved: how many steps later the live weights reach what the average has at the step named (half-way, or the "
    "first after it at which the average is defined and has taken in that step's weights); > n: not within the n steps "
    "left. Range: the same for that loss plus and minus its ±."
)


@dataclass(frozen=True)
class Test:
    """The average with the lowest val loss, on the test split after the last step."""

    id: str
    loss: float
    live: float
    half: float  # of the 95% interval of the difference, from the samples and the live curve's scatter, as on val
    samples: int
    others: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # the task's own metrics; of live


def chosen_line(f: Comparison, test: Test | None, why_no_test: str) -> str:
    """What val chooses, and what the lowest average is worth where it was not chosen. test: of that average."""
    best = next(line for line in f.lines if line.id == f.lowest)
    difference = f"{best.difference:+.4f}{plus_minus(best.half)}"
    against = f"against live: {verdict(best.difference, best.half)}"
    chosen = f.best if f.best != "live" else f"live; no average is lower, the lowest is {f.lowest}"
    text = f"Chosen on val (step {f.step:,}, of {len(f.lines)} averages): {chosen}, {difference} {against}."
    if test is None:
        return f"{text} Not tested: {why_no_test}; where it was chosen it looks better than it is."
    gap = test.loss - test.live
    against = f"{gap:+.4f}{plus_minus(test.half)} against live: {verdict(gap, test.half)}"
    told = f"{text} On test ({test.samples:,} samples): {test.loss:.4f}, live {test.live:.4f}, {against}"
    for name, (value, live) in test.others.items():
        told += f"; {name} {f.metrics[name].text(value)}, live {f.metrics[name].text(live)}"
    if (test.loss, test.live) == (best.loss, f.live):
        return f"{told}. The numbers are those of val: the split is the same, so where it was chosen it looks better."
    return f"{told}."


def write_summary(
    out: Path,
    f: Comparison,
    rows: list[Row],
    named: Named,
    chosen: str,
    notes: Sequence[str],
    command: str,
    more: Sequence[str] = (),
) -> str:
    """Writes summary.md and the figures into `out`; returns the text that the terminal shows. more: paragraphs."""
    draw_curves(rows, out / "curves.png", named.title, named.unit)
    drawn = draw_heatmap(f, rows, out / "heatmap.png", named.title, named.measure)
    heat_map = compared_line(f, rows)
    paragraphs = [table(f, named.measure), chosen, noise_line(f), SAVED_LINE, *([heat_map] if heat_map else []), *more]
    listed = "\n".join(f"- {note}" for note in notes)
    figures = [*(["![k against spacing](heatmap.png)"] if drawn else []), "![curves](curves.png)"]
    head = [f"# {named.title}", f"    {command}", f"Loss: {named.unit}. The rows are in metrics.jsonl."]
    parts = [*head, *paragraphs, *([listed] if listed else []), *figures]
    write_text_atomically(out / "summary.md", "\n\n".join(parts) + "\n")
    return "\n\n".join(paragraphs)


def views_paragraph(
    f: Comparison,
    result: ReadOut,
    rows: Sequence[Row],
    views: Mapping[str, View],
    measure: str,
    task: Task | None = None,
) -> str:
    """The weights through each view after the last step: against live in that view, and against themselves as they are.

    rows: val and test rows of the read-out. task: of the sums in `result`; its own metrics follow, to live in the view.
    """
    at_end = {(r["split"], name_of(r)): r for r in rows if r["step"] == f.step and "task" not in r}
    plain = {"live": f.live, **{line.id: line.loss for line in f.lines}}

    def difference(name: str, loss: float, other: str, baseline: float | None) -> str:
        if baseline is None:
            return ""
        both = {name, other} <= result.sums.keys()
        half = paired(result.sums[name], result.sums[other])[1] if both else math.nan
        return f"{loss - baseline:+.4f}{plus_minus(half)}"

    def others(id: str, view: str) -> list[str]:
        name, live = name_in_view(id, view), name_in_view("live", view)
        texts = []
        for metric, known in f.metrics.items():
            value, of_live = (_value(at_end.get(("val", key)), metric) for key in (name, live))
            half = half_of_samples(result, name, live, metric, task)
            texts += Against(value, math.nan if id == "live" else of_live, half).texts(known)
        return texts

    head = ["weights", "view", f"{measure}, step {f.step:,}", "to live in this view", "to no view", "test loss"]
    lines = [head + [cell for name in f.metrics for cell in (f"{name}, step {f.step:,}", "to live in this view")]]
    best = []
    for view in views:
        losses = {id: loss for id in plain if (loss := _loss(at_end.get(("val", name_in_view(id, view))))) is not None}
        live = name_in_view("live", view)
        for id, loss in losses.items():
            name = name_in_view(id, view)
            to_live = "" if id == "live" else difference(name, loss, live, losses.get("live"))
            test = _loss(at_end.get(("test", name)))
            tested = "" if test is None else f"{test:.4f}"
            to_plain = difference(name, loss, id, plain[id])
            lines.append([id, view, f"{loss:.4f}", to_live, to_plain, tested, *others(id, view)])
        if averages := {id: loss for id, loss in losses.items() if id != "live"}:
            best.append(f"{min(averages, key=averages.__getitem__)} in {view}")
    said = " ".join(f"{name}: {view.description}." for name, view in views.items())
    chosen = f" The best average on val is {', '.join(best)}." if best else ""
    return f"{markdown(lines)}\n\nViews: {said} ±: the samples alone.{chosen}"


def _value(row: Row | None, metric: str) -> float:
    value = None if row is None else metric_in(row, metric)
    return math.nan if value is None else value


def _loss(row: Row | None) -> float | None:
    return None if row is None else row.get("loss")


def savings_paragraph(rows: list[Row], f: Comparison, price: Price) -> str:
    """The longest saving of each average, and in what it is priced."""
    live = curve(rows, "live")
    found = {line.id: longest_saving(live, curve(rows, line.id), price) for line in f.lines}
    said = "The longest saving of each average: at the step named it has what the live weights have so many steps later"
    if price.steps_per_epoch is not None:
        said += f"; {price.steps_per_epoch:,.6g} steps an epoch"
    if price.gpu_hours_per_step is not None:
        said += f"; {price.gpu_hours_per_step:.3g} GPU hours a step"
    return f"{markdown(table_of(found))}\n\n{said}."


def measures_paragraph(measures: Sequence[Row], step: int) -> str:
    """What else was measured after the last step: a line for each of the weights, a column for each measure."""
    last = [
        m | {"weights": f"{m['weights']}, published"} if "source" in m else m for m in measures if m["step"] == step
    ]
    columns = list(dict.fromkeys((m["task"], m["metric"]) for m in last))
    lines = [["weights", *(f"{task} {metric}" for task, metric in columns)]]
    for weights in dict.fromkeys(name_of(m) for m in last):
        of = {(m["task"], m["metric"]): m for m in last if name_of(m) == weights}
        lines.append([weights, *(_measure(of.get(column)) for column in columns)])
    errors = "; ± is half of a 95% interval over the task's documents" if any("stderr" in m for m in last) else ""
    return f"{markdown(lines)}\n\nAfter step {step:,}{errors}."


def _measure(measure: Row | None) -> str:
    if measure is None:
        return ""
    return f"{measure['value']:.4f}" + (f" ± {1.96 * measure['stderr']:.4f}" if "stderr" in measure else "")
