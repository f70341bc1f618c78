"""Which checkpoints of a folder or list are taken, and of which step each is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What the flags say. step_from: a regular expression with one group, the step, in a checkpoint's name.

    key: of the state dict that is averaged; None: the usual one, which in some files is an average.
    """

    step_from: str | None = None
    include_averages: bool = False
    key: str | None = None


DEFAULT = Choice()
