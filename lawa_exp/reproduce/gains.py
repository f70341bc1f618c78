"""Plots of the gain, live minus average on val: against rate, spacing, k, progress and the current rate, and early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lawa_exp.reproduce.arms import Run
from lawa_exp.reproduce.curves import chosen
from lawa_exp.reproduce.material import EARLY, SCHEDULES, Material, at_progress, gains, peak, rates, schedule, windows
from lawa_exp.results.sheets import GAIN, LOOKS, SHARE, Look, Sheet, above, later, ramp, ticks

TIMES = {"halfway": 0.5, "at the end": 1.0}


def against_rate(m: Material) -> Sheet | None:
    """At each peak, halfway and at the end; the best averages are chosen for each peak and time."""
    found = {schedule(runs[0]): runs for name in SCHEDULES if (runs := m.all(name))}
    if not found:
        return None
    sheet = Sheet.of([f"{title}, {when}" for when in TIMES for title in found], columns=len(found))
    for line, share in enumerate(TIMES.values()):
        for i, runs in enumerate(found.values(), line * len(found)):
            peaks = sorted({peak(r) for r in runs})
            lines: dict[str, dict[float, Sequence[float]]] = {}
            for rate in peaks:
                mine = [r for r in runs if peak(r) == rate]
                for key, (_, id) in m.compared(mine, share).items():
                    lines.setdefault(key, {})[rate] = gains(mine, id).get(at_progress(mine[0], share), [])
            labels = {key: label for key, (label, _) in m.compared(runs[:1], share).items()}
            for key, values in lines.items():
                sheet.line(i, labels[key], values, LOOKS[key])
            sheet.panels[i].set_xscale("log")
            ticks(sheet.panels[i], peaks)
    sheet.zero()
    sheet.labels("peak learning rate (per update)", GAIN, columns=len(found))
    return sheet.legend()


def against_spacing(m: Material) -> Sheet | None:
    """At the usual peak, a line for each k."""
    return against_window(m, "spacing (steps between snapshots)", "k = {}", spacing_on_x=True)


def against_k(m: Material) -> Sheet | None:
    """At the usual peak, a line for each spacing."""
    return against_window(m, "k (snapshots in the window)", "spacing {} steps", spacing_on_x=False)


def against_window(m: Material, x: str, label: str, spacing_on_x: bool) -> Sheet | None:
    found = m.schedules()
    if not found:
        return None
    sheet = Sheet.of([f"{title}, {when}" for when in TIMES for title in found], columns=len(found))
    for line, share in enumerate(TIMES.values()):
        for i, runs in enumerate(found.values(), line * len(found)):
            lines: dict[int, dict[float, Sequence[float]]] = {}
            for (k, spacing), id in windows(runs).items():
                own, at = (k, spacing) if spacing_on_x else (spacing, k)
                lines.setdefault(own, {})[at] = gains(runs, id).get(at_progress(runs[0], share), [])
            for n, own in enumerate(sorted(lines)):
                sheet.line(i, label.format(own), lines[own], ramp(n, len(lines)))
            if spacing_on_x:
                sheet.panels[i].set_xscale("log")
            ticks(sheet.panels[i], sorted({at for values in lines.values() for at in values}))
    sheet.zero()
    for panel in sheet.panels[:: len(found)]:
        above(panel)
    sheet.labels(x, GAIN, columns=len(found))
    return sheet.legend()


def shares(values: Mapping[float, Sequence[float]], steps: int, until: float = 1.0) -> dict[float, Sequence[float]]:
    """By step, to by percent of the budget."""
    return {100 * s / steps: v for s, v in values.items() if s <= until * steps}


def against_progress(m: Material) -> Sheet | None:
    """At the usual peak; the best averages are those of the end."""
    found = m.schedules()
    if not found:
        return None
    sheet = Sheet.of(list(found))
    shown: list[float] = []
    for i, (title, runs) in enumerate(found.items()):
        for key, (label, id) in m.compared(runs).items():
            values = shares(gains(runs, id), runs[0].steps)
            sheet.line(i, label, values, LOOKS[key])
            shown += [v for share, seeds in values.items() if share >= 100 * EARLY / 2 for v in seeds]
        sheet.notes.append(chosen(title, m, runs))
    sheet.zero()
    if shown:
        later(sheet.panels[0], shown)
    sheet.labels(SHARE, GAIN)
    return sheet.legend()


def early(m: Material) -> Sheet | None:
    """The first part of the budget: windows of the published k from narrow to wide, and an average of everything."""
    found = m.schedules()
    if not found:
        return None
    sheet = Sheet.of(list(found))
    for i, runs in enumerate(found.values()):
        cells = windows(runs)
        own = next((k for (k, _), id in cells.items() if id == m.names.get("lawa")), None)
        wider = [(f"LAWA, k = {k}, spacing {s}", id) for (k, s), id in cells.items() if k == own]
        for n, (label, id) in enumerate(wider):
            sheet.line(i, label, shares(gains(runs, id), runs[0].steps, EARLY), ramp(n, len(wider)))
        if m.names.get("swa_early"):
            values = shares(gains(runs, str(m.names["swa_early"])), runs[0].steps, EARLY)
            sheet.line(i, "mean of all since the start (SWA)", values, Look("0.55", "-", "x"))
    sheet.zero()
    sheet.labels(SHARE, GAIN)
    return sheet.legend()


def as_rate_anneals(m: Material) -> Sheet | None:
    """Gain of LAWA as published against the current rate, after the early part, and at the end by final rate."""
    annealing = {name: annealed(m.at(name)) for name in ("cosine", "annealed", "cooldown")}
    annealing = {name: runs for name, runs in annealing.items() if runs}
    ends = [runs for runs in m.schedules().values()]
    if not annealing or not m.names.get("lawa"):
        return None
    sheet = Sheet.of(["LAWA as published, by rate", "at the end"])
    told = {name: schedule(runs[0]) for name, runs in annealing.items()} | {"cooldown": "1-sqrt cool-down"}
    for n, (name, runs) in enumerate(annealing.items()):
        current = rates(runs[0])
        values = gains(runs, str(m.names["lawa"]))
        late = {s: v for s, v in values.items() if s >= EARLY * runs[0].steps and s in current}
        top = peak(runs[0])
        by_rate = {100 * current[int(s)] / top: v for s, v in late.items() if current[int(s)] < top}
        sheet.line(0, told[name], by_rate, ramp(n, 3))
    sheet.panels[0].invert_xaxis()
    lines: dict[str, dict[float, Sequence[float]]] = {}
    labels = {}
    for runs in ends:
        for key, (label, id) in m.compared(runs).items():
            labels[key] = label
            lines.setdefault(key, {})[final(runs[0])] = gains(runs, id).get(runs[0].steps, [])
    for key, by_final in lines.items():
        sheet.line(1, labels[key], by_final, LOOKS[key])
    ticks(sheet.panels[1], sorted({x for values in lines.values() for x in values}))
    sheet.panels[1].invert_xaxis()
    sheet.zero()
    sheet.labels("current rate (% of the peak)", GAIN)
    sheet.panels[1].set_xlabel("rate at the end of the budget (% of the peak)")
    return sheet.legend()


def annealed(runs: Sequence[Run]) -> list[Run]:
    """Without the stable runs that cool-downs branch from, which a set of cool-downs has, too."""
    return [run for run in runs if run.config.get("lr.final_ratio") is not None]


def final(run: Run) -> float:
    """Percent of the peak; a constant rate stays there."""
    ratio = run.config.get("lr.final_ratio")
    return 100.0 if ratio is None else 100 * float(ratio)
