"""Rows on the disk, which W&B is sent as well."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lawa_exp.config.rules import Rule, number, one_of, optional, setting, text
from lawa_exp.config.shared import Logger
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
class WandbLogger(Logger):
    """The logger that also sends its rows to W&B, from a process of its own.

    mode: online; offline, a file in RUN/wandb/; off; null: as WANDB_MODE says, else online. project: null: as
    WANDB_PROJECT says, else lawa_exp. finish_timeout: seconds that a run waits for W&B at its end.
    """

    mode: str | None = setting(
        optional(Rule("one of online, offline, off", lambda v: one_of(*MODES).parse("off" if v is False else v))),
        "online; offline (files in RUN/wandb/); off; null: as WANDB_MODE says, else online",
    )
    project: str | None = setting(optional(text()), "the project on W&B; null: as WANDB_PROJECT says, else lawa_exp")
    entity: str | None = setting(optional(text()), "the user or team on W&B; null: your default")
    finish_timeout: float = setting(number(low=0), "seconds that a run waits at its end for W&B")
