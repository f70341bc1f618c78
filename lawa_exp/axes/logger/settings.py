"""What every logger has: its settings, and the sender of a run's rows that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from lawa_exp.config.rules import Settings, number, setting
from lawa_exp.storage.rundir import RunDir


class Differs(Exception):
    """The receiver has other rows of this run than the run's files."""


class Sender(Protocol):
    """Gives the receiver the rows of one run. It lives in a process of its own, and may raise whatever it likes."""

    @property
    def url(self) -> str | None:
        """Where its reader finds them; None: in the run's folder."""

    def send(self, whole: bool) -> None:
        """What is new in the run's files, see `rows.Steps.new`. Differs: see there; nothing more is sent then."""

    def finish(self) -> int:
        """The rest; returns the steps sent in all. The sender is used no more."""


@dataclass(frozen=True)
class LoggerSettings(Settings):
    """The settings of a logger; they are in no trajectory id.

    title: its name in sentences. package: of its extra, which pip calls as the logger; None: it needs none.
    """

    title: ClassVar[str]
    package: ClassVar[str | None] = None

    finish_timeout: float = setting(number(low=0), "seconds that a run waits at its end for the logger")

    def off(self) -> bool:
        """Whether nothing is to be sent. UserError: a variable of the environment is wrong."""
        return False

    def sender(self, run: RunDir, watch: int | None = None) -> Sender:
        """watch: the process that trains."""
        raise NotImplementedError
