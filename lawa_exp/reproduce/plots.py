"""The gain, explained: the plots, by name, with what each shows; written as PNG with their numbers as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from lawa_exp.reproduce import curves, gains, line
from lawa_exp.reproduce.material import EARLY, SCHEDULES, Material
from lawa_exp.results.figures import save_figure
from lawa_exp.results.sheets import HEAD, Sheet

BAND = "Lines: mean over seeds; bands: ± 1 standard deviation of the seeds."


@dataclass(frozen=True)
class Plot:
    """draw: None where its runs are missing. sets: what the forms call those, any of which it shows."""

    draw: Callable[[Material], Sheet | None]
    sets: tuple[str, ...]
    shows: str


PLOTS = {
    "loss_against_step": Plot(
        curves.loss_against_step,
        SCHEDULES,
        "Validation loss against step at the usual peak: live weights, LAWA as published, and the best LAWA, EMA and "
        "SWA on val at the end.",
    ),
    "steps_saved": Plot(
        curves.steps_saved_against_loss,
        SCHEDULES,
        "How many steps before the live weights of the same run an average reaches a validation loss; hollow: in some "
        "run the live weights never get there, so the mean is a lower bound.",
    ),
    "gain_against_rate": Plot(
        gains.against_rate,
        SCHEDULES,
        "The gain against the peak rate, halfway and at the end; best averages chosen at each.",
    ),
    "gain_against_spacing": Plot(
        gains.against_spacing,
        SCHEDULES,
        "The gain of LAWA against its spacing for each k, at the usual peak; what leaves the frame is worse.",
    ),
    "gain_against_k": Plot(
        gains.against_k,
        SCHEDULES,
        "The gain of LAWA against k for each spacing, at the usual peak; what leaves the frame is worse.",
    ),
    "gain_against_progress": Plot(
        gains.against_progress, SCHEDULES, "The gain against the share of the budget that is done, at the usual peak."
    ),
    "early": Plot(
        gains.early,
        SCHEDULES,
        "Where averaging hurts: early, wide windows and means of everything are worse than live.",
    ),
    "as_rate_anneals": Plot(
        gains.as_rate_anneals,
        (*SCHEDULES, "cooldown"),
        f"The gain as the rate anneals: against the current rate, from {EARLY:.0%} of the budget on, and at the end "
        "against the final rate.",
    ),
    "across_faults": Plot(
        curves.across_faults,
        curves.FAULTS,
        "Validation loss across an injected fault (grey): live weights and averages.",
    ),
    "natural_spikes": Plot(
        curves.natural_spikes,
        ("cosine", "annealed"),
        "The runs with the highest spikes that no fault made (single seeds).",
    ),
    "line_to_average": Plot(
        line.line_to_average,
        SCHEDULES,
        "Loss on the line from the live weights to LAWA as published after the last step; distances between snapshots, "
        "by lag over the last half of the budget, and one by one for a run.",
    ),
}


def write_plots(folder: Path, material: Material, names: Collection[str] = tuple(PLOTS)) -> dict[str, str]:
    """NAME.png and NAME.csv of those whose runs are there; their captions by name."""
    captions = {}
    for name in names:
        sheet = PLOTS[name].draw(material)
        if sheet is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(sheet.figure, folder / f"{name}.png")
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEAD, *sheet.rows])
        notes = f" ({'; '.join(sheet.notes)})" if sheet.notes else ""
        captions[name] = f"{PLOTS[name].shows} {BAND}{notes}"
    return captions


def section(captions: dict[str, str], sets: Collection[str], material: Material, folder: str = "plots") -> list[str]:
    """Lines of Markdown: the plots that show any of these sets."""
    mine = [n for n in captions if {material.names.get(s) for s in PLOTS[n].sets} & set(sets)]
    return [f"![{PLOTS[n].shows}]({folder}/{n}.png)\n\n{captions[n]}\n" for n in mine]
