"""What the runs of a multirun say together, over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lawa_exp.results.curves import settled
from lawa_exp.results.figures import save_figure
from lawa_exp.results.grids import Cell, Windows, draw_windows
from lawa_exp.results.sheets import STEP, Sheet, later, looks_of
from lawa_exp.results.statistics import Indexed, curve, mean_and_deviation, paired_difference
from lawa_exp.results.tables import markdown
from lawa_exp.seams.task import Metric
from lawa_exp.storage import manifest
from lawa_exp.storage.metrics import KNOWN, Metrics, metrics_of, own_metrics, together
from lawa_exp.storage.rows import Row, averager_ids, left_out, name_of, policy_of, read_rows, read_starts, with_newer
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import in_turn, write_text_atomically

SHOWN = 3  # runs that an error names
PANELS = 12  # of curves.png, one for each setting
COLUMNS = 4  # of them
SCREEN = 3  # settings whose tables fit on one
LINES = 30  # of the table of all settings


class Group:
    """Entries that differ only in the seed: their rows, one list for each seed.

    Curves are computed once: there may be many seeds, and many averages of each.
    """

    def __init__(
        self, name: str, runs: Sequence[list[Row]], tests: Sequence[list[Row]], metrics: Metrics = KNOWN
    ) -> None:
        """runs, tests: of each seed its val rows, and its test rows. UserError: one was not evaluated."""
        self.name, self.metrics = name, metrics
        self.runs, self.tests = ([Indexed.of(rows) for rows in of] for of in (runs, tests))
        if not all(curve(rows, "live") for rows in self.runs):
            raise UserError(f"{name}: its live weights have no evaluation that is finite")
        self.step = min(curve(rows, "live")[-1][0] for rows in self.runs)  # the last that all evaluated
        self._curves: dict[tuple[str, str, str], list[dict[int, float]]] = {}
        self._ids: list[str] | None = None

    def curves(self, weights: str, split: str, metric: str) -> list[dict[int, float]]:
        """Of each seed, values by step."""
        key = weights, split, metric
        if key not in self._curves:
            of_seeds = self.runs if split == "val" else self.tests
            self._curves[key] = [dict(curve(rows, weights, split, metric)) for rows in of_seeds]
        return self._curves[key]

    def final(self, weights: str, split: str = "val", metric: str = "loss") -> list[float] | None:
        """The loss (or other metric) of `weights` after `step` for each seed; None where a seed has none."""
        values = self.curves(weights, split, metric)
        return [points[self.step] for points in values] if all(self.step in points for points in values) else None

    def mean_curve(self, weights: str, metric: str = "loss") -> list[tuple[int, float]]:
        """(step, mean loss or other metric over seeds), at the steps that all seeds evaluated."""
        curves = self.curves(weights, "val", metric)
        steps = sorted(s for s in set.intersection(*(set(c) for c in curves)) if s > 0)
        return [(s, sum(c[s] for c in curves) / len(curves)) for s in steps]

    def ids(self) -> list[str]:
        """The averagers that every seed has."""
        if self._ids is None:
            others = [set(averager_ids(rows)) for rows in self.runs[1:]]
            self._ids = [id for id in averager_ids(self.runs[0]) if all(id in of for of in others)]
        return self._ids

    def best(self) -> list[str]:
        """Of each kind of averager the one with the lowest mean val loss at the end."""
        losses = {id: sum(values) for id in self.ids() if (values := self.final(id)) is not None}
        kinds = dict.fromkeys(id.split("-")[0] for id in losses)
        return [min((id for id in losses if id.split("-")[0] == kind), key=losses.__getitem__) for kind in kinds]


def summarise(sweep: Path, out: Path) -> str:
    """Writes `out`/summary.md and its figures; returns what fits on a screen: the tables, or of many one for all."""
    content = manifest.read(sweep)
    groups, unfinished = read_groups(content["entries"])
    if not groups:
        raise UserError(f"SWEEP={sweep}: none of its runs is finished" + named(unfinished))
    parts: list[str] = []
    for group in groups:
        parts += [f"## {group.name} ({len(group.runs)} seed(s))", "", table(group), "", chosen(group), ""]
        parts += [line for said in dict.fromkeys(map(left_out, group.runs)) if said for line in (said, "")]
        for name, metric in own_metrics(group.metrics).items():
            parts += [table(group, name, metric), ""]
    whole = [overview(groups), ""] if len(groups) > 1 else []
    if unfinished:
        whole += [f"Not finished, and left out: {', '.join(unfinished)}", ""]
    shown = sorted(sorted(groups, key=lowest)[:PANELS], key=groups.index)
    if len(shown) < len(groups):
        whole += [f"Figures: the {len(shown)} of {len(groups)} with the lowest loss of any weights at the end", ""]
    head = [
        f"# {sweep.name}",
        "",
        f"    {content['command']}",
        "",
        made_with([entry["run_dir"] for entry in content["entries"]]),
        "",
        "Losses in nats. Curves: means over the n seeds, bands ± 1 standard deviation.",
        "",
    ]
    with in_turn(out):
        draw(shown, out / "curves.png")
        grids = {group.name: windows for group in shown if (windows := windows_of(group))}
        mapped = draw_windows(grids, out / "heatmap.png", "LAWA: val loss less that of the live weights, at the end")
        figures = ["![k against spacing](heatmap.png)", ""] if mapped else []
        write_text_atomically(
            out / "summary.md", "\n".join([*head, "![curves](curves.png)", "", *figures, *whole, *parts])
        )
    if len(groups) > SCREEN:
        return "\n".join([*whole, f"{len(groups)} tables, one for each setting: {out / 'summary.md'}", ""])
    return "\n".join([*whole, *parts])


def overview(groups: list[Group]) -> str:
    """A line for each setting, of many those with the lowest loss: live, and the best average on val."""
    shown = sorted(sorted(groups, key=lowest)[:LINES], key=groups.index)
    lines = [["setting", "n", "live", "lowest average", "its val loss", "to live"]]
    for group in shown:
        live, best = group.final("live"), min(group.best(), key=lambda id: sum(group.final(id) or ()), default=None)
        line = [group.name, str(len(group.runs)), with_deviation(live) if live else "-"]
        values = group.final(best) if best else None
        if not values or not live:
            lines.append([*line, "-", "-", "-"])
            continue
        mean, half = paired_difference(values, live)
        unclear = " inconclusive" if abs(mean) <= half else ""
        lines.append([*line, str(best), with_deviation(values), with_spread("{:+.4f}", mean, half) + unclear])
    left = f"\n\nThe {len(shown)} of {len(groups)} settings with the lowest loss." if len(shown) < len(groups) else ""
    return f"{markdown(lines)}\n\nVal loss at the end: mean (sd) over n seeds; ±: half of the 95% interval.{left}"


def lowest(group: Group) -> float:
    """The lowest mean val loss at the end, of any of its weights."""
    finals = [group.final(weights) for weights in ("live", *group.best())]
    return min(sum(values) / len(values) for values in finals if values)


def named(runs: list[str]) -> str:
    """`: A, B, C and 5 more`."""
    more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
    return f": {', '.join(runs[:SHOWN])}{more}" if runs else ""


def made_with(runs: Sequence[Path]) -> str:
    """One line on the machine, versions and data of the runs, from where each began."""
    found = set()
    for run in dict.fromkeys(runs):
        try:
            found |= {
                f"Python {s['versions']['python']}, torch {s['versions']['torch']}, {s['device']} "
                f"({s['hardware']['cpu']}), {s['ranks']} rank(s) of {s['threads']} thread(s); "
                f"data fingerprint {s['data_fingerprint'][:12]}"
                for s in read_starts(run)[:1]
            }
        except (KeyError, TypeError) as error:
            raise Failed(f"{run / 'provenance.jsonl'}: line 1 is damaged ({error})") from None
    return "; ".join(sorted(found))


def read_groups(entries: list[manifest.Entry]) -> tuple[list[Group], list[str]]:
    """The finished entries by everything but the seed and the averaging, and the folders of the others."""
    overrides: list[set[str]] = [set(e["overrides"]) for e in entries]
    shared = overrides[0].intersection(*overrides[1:]) if overrides else set()
    varying = {o.split("=")[0] for own in overrides for o in own - shared}
    averaging = {"seed", "k", "spacing", "avg"} | {name for name in varying if name.startswith("averagers.")}
    found: dict[str, dict[Path, dict[str, Any]]] = {}  # by name, then run: the union of the run's entries
    unfinished = []
    for entry in entries:
        run = entry["run_dir"]
        if why := manifest.not_finished(run):
            unfinished.append(run.name + ("" if why == "not finished" else f" ({why})"))
            continue
        name = " ".join(o for o in entry["overrides"] if o.split("=")[0] in varying - averaging) or "all entries"
        union = found.setdefault(name, {}).setdefault(run, {"averages": [], "steps": 0})
        union["averages"] += [id for id in entry["averages"] if id not in union["averages"]]
        union["steps"] = max(union["steps"], entry["steps"])
    groups = []
    for name, runs in found.items():
        both = [read_run(run, union["averages"], union["steps"]) for run, union in runs.items()]
        metrics = together(metrics_of(run) for run in runs)
        policies = [policy_of(rows) for rows, _ in both]
        for policy in dict.fromkeys(policies):  # seeds that were evaluated otherwise are not comparable
            mine = [one for one, own in zip(both, policies, strict=True) if own == policy]
            of = name if len(set(policies)) == 1 else f"{name} (evaluate.bn={policy})"
            groups.append(Group(of, [rows for rows, _ in mine], [test for _, test in mine], metrics))
    return groups, list(dict.fromkeys(unfinished))


def read_run(run: Path, averages: list[str], steps: int) -> tuple[list[Row], list[Row]]:
    """Val and test rows of the live weights and of these averages, attached or read out, up to `steps`."""
    rows = read_rows(run / "metrics.jsonl", trained=False)
    if not rows:
        raise Failed(f"{run / 'metrics.jsonl'} has no evaluations")
    online = set(averager_ids(rows))
    newer: dict[tuple[int, str, str], Row] = {}
    for id in averages:
        found = read_rows(run / "readouts" / id / "metrics.jsonl")
        newer |= {(r["step"], r["split"], name_of(r)): r for r in found if r["weights"] not in online}
    rows = with_newer(rows, list(newer.values()))  # live: with other statistics
    mine = {"live", *averages}
    test = [r for r in read_rows(run / "readouts" / "test" / "metrics.jsonl") if name_of(r) in mine]
    return [r for r in rows if name_of(r) in mine and r["step"] <= steps], test


def table(group: Group, metric: str = "loss", properties: Metric = KNOWN["loss"]) -> str:
    """A line for each weights: val and test loss (or other metric) at the end, and the difference to live paired by
    seed."""
    digits = properties.digits
    lines = [["weights", f"val {metric}", "val - live", f"test {metric}", "test - live"]]
    for weights in ["live", *group.ids()]:
        line = [weights]
        for split in ("val", "test"):
            values, live = group.final(weights, split, metric), group.final("live", split, metric)
            if values is None or live is None:
                line += ["-", "-"]
                continue
            line.append(with_deviation(values, digits))
            difference = with_spread(f"{{:+.{digits}f}}", *paired_difference(values, live), digits)
            line.append("" if weights == "live" else difference)
        lines.append(line)
    higher = " (higher is better)" if properties.higher_is_better else ""
    return (
        f"{markdown(lines)}\n\n{metric}{higher}: mean (sd: standard deviation) over seeds; "
        "difference: mean ± half of its 95% interval, paired by seed"
    )


def with_deviation(values: Sequence[float], digits: int = 4) -> str:
    """`mean (sd DEVIATION)`, or the value alone where one seed gives none; ± is an interval everywhere."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" (sd {deviation:.{digits}f})")


def with_spread(form: str, value: float, spread: float, digits: int = 4) -> str:
    """`value ± spread`, or the value alone where one seed gives no spread."""
    return form.format(value) + ("" if math.isnan(spread) else f" ± {spread:.{digits}f}")


def chosen(group: Group) -> str:
    """The best average of each kind on val, and what it gives on test."""
    live = group.final("live", "test")
    said = []
    for id in group.best():
        test = group.final(id, "test")
        if test is not None and live is not None:
            mean, half = paired_difference(test, live)
            verdict = ", one seed: no interval" if math.isnan(half) else "" if abs(mean) > half else ", inconclusive"
            difference = with_spread("{:+.4f}", mean, half)
            said.append(f"- {id.split('-')[0]}, chosen on val: {id}; on test {difference} against live{verdict}")
    return "\n".join(said)


def draw(groups: list[Group], path: Path) -> None:
    """Val loss against step: live and the best average of each kind (at the end), a panel a group."""
    titles = [f"{group.name} (n={len(group.runs)})" for group in groups]
    columns = min(len(groups), COLUMNS)
    sheet = Sheet.of(titles, columns)
    drawn = []
    for number, group in enumerate(groups):
        looks = looks_of({id: id.split("-")[0] for id in group.best()})
        for weights, look in looks.items():
            steps = [s for s, _ in group.mean_curve(weights)]  # none where the seeds share no step at which it is
            of_seeds = group.curves(weights, "val", "loss")
            sheet.line(number, weights, {s: [c[s] for c in of_seeds] for s in steps}, look)
            drawn += [group.mean_curve(weights)] if steps else []
    for panel in sheet.panels[: len(groups)] if drawn else ():
        later(panel, settled(drawn))
    sheet.labels(STEP, "validation loss (nats)", columns)
    save_figure(sheet.legend().figure, path)


def windows_of(group: Group) -> Windows:
    """Of each LAWA window: how much lower its val loss is at the end than that of live, and whether that is clear."""
    fields = {name_of(row): row for rows in group.runs for row in rows}
    live, cells = group.final("live"), {}
    for id in group.ids():
        values, row = group.final(id), fields[id]
        is_window = row.get("averager") == "lawa" and {"k", "spacing"} <= row.keys()
        if values is None or live is None or not is_window or row.get("start") or row.get("view"):
            continue
        cells[row["spacing"], row["k"]] = Cell.of(*paired_difference(values, live))
    return cells if len(cells) > 1 else {}
