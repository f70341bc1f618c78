"""The dashboard of a W&B project, in code: loss by averager, steps saved, rate, throughput, final tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lawa_exp.averaging import AVERAGERS
from lawa_exp.storage.metrics import KNOWN, Metrics, own_metrics
from lawa_exp.system.errors import Failed, UserError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.reports.v2.interface import PanelTypes
    from wandb_workspaces.workspaces import Section, Workspace


def workspace(project: str, entity: str | None, metrics: Metrics = KNOWN) -> Workspace:
    """The dashboard; nothing is sent. metrics: those of the project's runs, whose tasks' own have panels.

    UserError: the package of W&B's that makes it is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError("the package wandb-workspaces is missing; pip install 'lawa_exp[wandb]'") from None
    kinds = list(AVERAGERS)

    def lines(
        title: str, *keys: str, regex: str | None = None, smoothed: float | None = None, log_y: bool | None = None
    ) -> LinePlot:
        return panels.LinePlot(
            title=title,
            x="step",
            y=list(keys),
            metric_regex=regex,
            title_x="step",
            smoothing_factor=smoothed,
            smoothing_type=None if smoothed is None else "exponential",
            log_y=log_y,
        )

    def section(name: str, *content: PanelTypes) -> Section:
        return workspaces.Section(name=name, panels=list(content), is_open=True)

    best = [f"best/{kind}/loss" for kind in kinds]
    saved = [f"steps_saved/{kind}" for kind in kinds]
    of_metrics = []
    for name in own_metrics(metrics):
        keys = [f"val/live/{name}", *(f"best/{kind}/{name}" for kind in kinds)]
        both = f"Validation {name}, live and the best of each kind of average", f"Validation {name} of every average"
        of_metrics.append(section(f"{name} by averager", lines(both[0], *keys), lines(both[1], regex=f"val/.*/{name}")))
    return workspaces.Workspace(
        name="lawa_exp",
        entity=entity or "",
        project=project,
        settings=workspaces.WorkspaceSettings(x_axis="step", ignore_outliers=True),
        runset_settings=workspaces.RunsetSettings(groupby=[]),
        sections=[
            section(
                "Loss by averager",
                lines("Validation loss, live and the best of each kind of average", "val/live/loss", *best),
                lines("Validation loss of every average", regex="val/.*/loss"),
                lines("Validation loss of views (in bfloat16, int8, ...)", regex="val/.*@.*/loss"),
            ),
            *of_metrics,
            section(
                "Steps saved",
                panels.BarPlot(title="Most steps saved, by kind", metrics=[panels.SummaryMetric(key) for key in saved]),
                panels.WeavePanelSummaryTable(table_name="final/table"),
                panels.MediaBrowser(media_keys=["final/curves"]),
            ),
            section(
                "Training",
                lines("Learning rate", "train/lr"),
                lines("Training loss", "train/loss", smoothed=0.6),
                lines("Gradient norm", "train/grad_norm", log_y=True),
                lines("Batch size", "train/batch_size"),
                lines("What is trained, where it is not the loss", "train/objective"),
                lines("Noise scale", "train/grad_squared", "train/grad_variance", log_y=True),
                lines("Samples trained, and read where that is more", "val/trained_samples", "val/read_samples"),
                lines("Passes over a trained sample, where not one", "val/passes"),
            ),
            section(
                "Throughput",
                lines("Tokens per second (images, of images)", "timing/tokens_per_second"),
                lines("Memory (bytes)", "timing/memory"),
                lines("Seconds of training since the last start", "timing/seconds"),
            ),
        ],
    )


def make(project: str, entity: str | None, show: bool, metrics: Metrics = KNOWN) -> str:
    """Saves the dashboard in the project and returns its address; show: returns it as JSON. Failed: W&B does not."""
    made = workspace(project, entity, metrics)
    if show:
        return json.dumps(json.loads(made._to_model().model_dump_json(by_alias=True)), indent=1)
    if not entity:
        raise UserError("--workspace: give the --entity (user or team) whose project it is for")
    try:
        made.save()
    except Exception as error:  # of whatever kind W&B's are
        raise Failed(f"--workspace: W&B: {type(error).__name__}: {str(error).strip()}") from error
    return str(made.url)
