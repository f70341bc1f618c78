"""Rows on the disk, which W&B is sent as well."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.config.rules import Rule, number, one_of, optional, setting, text
from lawa_exp.config.shared import Logger

MODES = ("online", "offline", "off")  # of W&B; YAML reads a bare off as false


@dataclass(frozen=True)
class WandbLogger(Logger):
    """The logger that also sends its rows to W&B, from a process of its own.

    mode: online; offline, a file in RUN/wandb/; off. finish_timeout: seconds that a run waits for W&B at its end.
    """

    mode: str = setting(
        Rule("one of online, offline, off", lambda v: one_of(*MODES).parse("off" if v is False else v)),
        "online; offline (files in RUN/wandb/); off",
    )
    project: str = setting(text(), "the project on W&B")
    entity: str | None = setting(optional(text()), "the user or team on W&B; null: your default")
    finish_timeout: float = setting(number(low=0), "seconds that a run waits at its end for W&B")
