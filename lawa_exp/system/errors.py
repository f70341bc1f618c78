"""What ends a command in one readable line."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user's: one readable line, exit code 2, no traceback."""


def one_line(text: str) -> str:
    """The text in one line, without what a terminal would obey."""
    joined = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in joined)


class InUse(UserError):
    """A folder that another process holds."""


class Failed(Exception):
    """A failure that is nobody's programming error: one readable line, exit code 1, no traceback."""
