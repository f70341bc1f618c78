"""What Weights & Biases needs to know; where a setting is null, its own environment variables decide."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lawa_exp.axes.logger.settings import LoggerSettings, Sender
from lawa_exp.config.rules import Rule, boolean, one_of, optional, setting, text
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError

MODES = ("online", "offline", "off")  # of W&B; YAML reads a bare off as false
OF_WANDB = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}
TRUE = ("true", "1", "yes", "on")


def mode_of(chosen: str | None) -> str:
    """online, offline or off, as chosen, else as WANDB_DISABLED and WANDB_MODE say. UserError: no mode of W&B's."""
    if chosen is not None:
        return chosen
    if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
        return "off"
    told = os.environ.get("WANDB_MODE") or "online"
    if told not in OF_WANDB:
        raise UserError(f"WANDB_MODE={told}: expected one of {', '.join(OF_WANDB)}; or choose logger.mode")
    return OF_WANDB[told]


def project_of(chosen: str | None) -> str:
    """The project as chosen, else as WANDB_PROJECT says."""
    return chosen or os.environ.get("WANDB_PROJECT") or "lawa_exp"


@dataclass(frozen=True)
class WandbLogger(LoggerSettings):
    """Rows go to W&B; `push` sends those of a run that has ended."""

    title = "W&B"
    package = "wandb"

    mode: str | None = setting(
        optional(Rule("one of online, offline, off", lambda v: one_of(*MODES).parse("off" if v is False else v))),
        "online; offline (files in RUN/wandb/); off; null: as WANDB_MODE says, else online",
    )
    project: str | None = setting(optional(text()), "the project on W&B; null: as WANDB_PROJECT says, else lawa_exp")
    entity: str | None = setting(optional(text()), "the user or team on W&B; null: your default")
    artifacts: bool = setting(boolean(), "whether the live weights and averages of the end are sent as artifacts")

    def off(self) -> bool:
        return mode_of(self.mode) == "off"

    def sender(self, run: RunDir, watch: int | None = None) -> Sender:
        from lawa_exp.axes.logger.wandb.send import Place, WandbSender

        place = Place(project_of(self.project), self.entity, mode_of(self.mode))
        return WandbSender(run, place, watch=watch, artifacts=self.artifacts)
