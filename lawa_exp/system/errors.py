"""What ends a command in one readable line."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user's: one readable line, exit code 2, no traceback."""


class InUse(UserError):
    """A folder that another process holds."""


class Failed(Exception):
    """A failure that is nobody's programming error: one readable line, exit code 1, no traceback."""
