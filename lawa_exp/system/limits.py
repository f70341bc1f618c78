"""The limits of command lines; imported for every --help, so it imports nothing."""

from __future__ import annotations

MOST_THREADS = 1024  # more than machines have cores; a million end the process, or the machine
PLAIN_NAME = "a name without / or line breaks, of at most 200 bytes, that does not begin with a dot"


def is_plain_name(text: str) -> bool:
    """Whether a file or folder of this name is in its folder, and seen there."""
    return 0 < len(text.encode(errors="replace")) <= 200 and text[0] != "." and "/" not in text and text.isprintable()
