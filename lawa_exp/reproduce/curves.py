"""Plots of losses: against step, across spikes, and the steps that an average is ahead of the live weights."""

from __future__ import annotations

from collections.abc import Sequence

from lawa_exp.reproduce.arms import Run
from lawa_exp.reproduce.material import (
    EARLY,
    LIVE_WEIGHTS,
    Material,
    at_progress,
    losses,
    peak,
    schedule,
    training_rows,
)
from lawa_exp.results.sheets import LIVE, LOOKS, LOSS, STEP, Look, Sheet, later
from lawa_exp.results.spikes import spikes
from lawa_exp.results.statistics import Curve, curve, steps_saved

TARGETS = 25  # losses at which steps are counted
BEFORE, AFTER = 150, 400  # steps around a fault
FAULTS = ("spike_batches", "spike_rate")
NATURAL = 3  # runs whose own spikes are shown, those with the highest


def loss_against_step(m: Material) -> Sheet | None:
    """Live weights and averages at the usual peak, a panel for each schedule."""
    found = m.schedules()
    if not found:
        return None
    sheet = Sheet.of(list(found))
    shown: list[float] = []
    for i, runs in enumerate(found.values()):
        lines = {LIVE: ("live", LIVE_WEIGHTS), **m.compared(runs)}
        for key, (label, id) in lines.items():
            values = losses(runs, id)
            sheet.line(i, label, values, LOOKS[key])
            shown += [v for step, seeds in values.items() if step >= EARLY * runs[0].steps for v in seeds]
        sheet.notes.append(chosen(schedule(runs[0]), m, runs))
    later(sheet.panels[0], shown)
    for panel, runs in zip(sheet.panels, found.values(), strict=True):
        panel.set_xlim(left=0.8 * EARLY * runs[0].steps)
    sheet.labels(STEP, LOSS)
    return sheet.legend()


def chosen(title: str, m: Material, runs: Sequence[Run], at: float = 1.0) -> str:
    """What the best averages of a panel are."""
    return f"{title}: " + ", ".join(f"{label} {id}" for label, id in m.compared(runs, at).values())


def ahead(live: Curve, average: Curve, target: float) -> tuple[float, bool] | None:
    """How many steps before the live weights the average has a loss; (bound, False): at least so many.

    None: it never has, or it began below, so that nobody knows when.
    """
    reached, there = steps_saved(average, 0, target)
    if not there or target > average[0][1]:
        return None
    saved, both = steps_saved(live, 0, target)
    return saved - reached, both


def steps_saved_against_loss(m: Material) -> Sheet | None:
    """How many steps earlier the averages reach a val loss, linear between evaluations."""
    found = m.schedules()
    if not found:
        return None
    sheet = Sheet.of(list(found))
    for i, (panel, runs) in enumerate(zip(sheet.panels, found.values(), strict=True)):
        live = losses(runs, LIVE_WEIGHTS)
        compared = m.compared(runs)
        ends = [losses(runs, id)[max(live)] for _, id in compared.values()]
        top = max(live[at_progress(runs[0], EARLY)])
        low = min(max(end) for end in [live[max(live)], *ends])
        for key, (label, id) in compared.items():
            exact: dict[float, list[float]] = {}
            bounds: dict[float, list[float]] = {}
            for t in (top + (low - top) * n / (TARGETS - 1) for n in range(TARGETS)):
                pairs = [ahead(list(r.curve(LIVE_WEIGHTS).items()), list(r.curve(id).items()), t) for r in runs]
                if any(p is None for p in pairs):
                    continue
                known = [p for p in pairs if p is not None]
                (exact if all(both for _, both in known) else bounds)[t] = [saved for saved, _ in known]
            sheet.line(i, label, exact, LOOKS[key])
            sheet.line(i, label, bounds, LOOKS[key], hollow=True)
        panel.set_xlim(top, low - 0.02 * (top - low))
    sheet.zero()
    sheet.labels(f"target {LOSS}", "steps saved (optimizer updates)")
    return sheet.legend()


def across_faults(m: Material) -> Sheet | None:
    """Val loss around the injected faults."""
    found = {name: runs for name in FAULTS if (runs := m.all(name))}
    if not found:
        return None
    titles = {"batches": "{length} steps of random tokens", "rate": "{length} steps at {factor:g} times the rate"}
    facts = [{k.removeprefix("fault."): v for k, v in runs[0].config.items()} for runs in found.values()]
    heads = [titles[str(f["kind"])].format(**f) for f in facts]
    sheet = Sheet.of(heads, share_y=False)
    for i, (panel, runs, fault) in enumerate(zip(sheet.panels, found.values(), facts, strict=True)):
        at, length = int(fault["at"]), int(fault["length"])
        lines: dict[str, tuple[str, Look]] = {LIVE_WEIGHTS: ("live", LOOKS[LIVE])}
        lines |= {id: (label, LOOKS[key]) for key, (label, id) in around(m, runs).items()}
        for id, (label, look) in lines.items():
            values = {s - at: v for s, v in losses(runs, id).items() if -BEFORE <= s - at <= AFTER}
            sheet.line(i, label, values, look)
        panel.axvspan(0, length, color="0.8", linewidth=0)
    sheet.labels("since the fault began (updates)", LOSS)
    return sheet.legend()


def around(m: Material, runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """Narrow and wide LAWA, EMA and SWA across a spike: {key of a look: (label, id)}."""
    named = {"lawa": ("LAWA, narrow", m.names.get("spike_lawa")), "best lawa": ("LAWA, wide", m.names.get("wide"))}
    known = {id for run in runs[:1] for id in (r["weights"] for r in run.rows)}
    found = {key: (f"{label} ({id})", str(id)) for key, (label, id) in named.items() if id in known}
    for kind, label in (("ema", "EMA"), ("swa", "SWA")):
        ids = sorted(id for id in known if id.startswith(f"{kind}-"))
        if ids:
            found[kind] = (f"{label} ({ids[0]})", ids[0])
    return found


def natural_spikes(m: Material) -> Sheet | None:
    """Spikes that no fault made, of single batches: the runs with the highest, val loss below."""
    runs = [run for name in ("cosine", "annealed") for run in m.all(name)]
    known = [(run, curve(training_rows(run), LIVE_WEIGHTS, "train")) for run in runs]
    heights = [(max((s.height for s in spikes(points)), default=0.0), run, points) for run, points in known]
    spiked = sorted((h for h in heights if h[0] > 0), key=lambda h: -h[0])[:NATURAL]
    if not spiked:
        return None
    heads = [f"{schedule(r)}, peak {peak(r):g}, seed {r.seed}" for _, r, _ in spiked]
    sheet = Sheet.of([*heads, *(" " for _ in heads)], columns=len(heads), share_y=False)
    for i, (_, run, points) in enumerate(spiked):
        below = len(spiked) + i
        sheet.line(i, "training loss of a batch", {s: [v] for s, v in points}, Look("0.45", "-", ""))
        for n, spike in enumerate(spikes(points)):
            sheet.line(i, "spikes", {spike.peak: [spike.level + spike.height]}, Look("black", "", "v"))
            if n == 0:
                middle = spike.peak
        lines = {LIVE: ("live", LIVE_WEIGHTS), **{k: v for k, v in m.compared([run]).items() if k == "lawa"}}
        for key, (label, id) in lines.items():
            sheet.line(below, label, losses([run], id), LOOKS[key])
        for panel in (sheet.panels[i], sheet.panels[below]):
            panel.set_xlim(max(0, middle - 3 * AFTER), middle + 3 * AFTER)
        ends = [v for s, v in points if s >= EARLY * run.steps]
        later(sheet.panels[i], [*ends, *(s.level + s.height for s in spikes(points))])
        falling = losses([run], LIVE_WEIGHTS)
        later(sheet.panels[below], [x for s, v in falling.items() if s >= EARLY * run.steps for x in v])
    sheet.labels(STEP, LOSS, columns=len(heads))
    sheet.panels[0].set_ylabel("training loss (nats per token)")
    return sheet.legend()
