"""Whole lines of a process among others that write to the same terminal."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO


class Prefixed(io.TextIOBase):
    """Hands on whole lines, each in one piece and with a prefix."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self.stream, self.prefix, self.begun = stream, prefix, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        if lines:
            self.stream.write("".join(f"{self.prefix}{line}\n" if line else "\n" for line in lines))
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def end(self) -> None:
        """Writes a last line that has no end."""
        if self.begun:
            self.write("\n")


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """What is printed goes to the process's own streams, each line with the prefix."""
    out, err = (Prefixed(stream or io.StringIO(), prefix) for stream in (sys.__stdout__, sys.__stderr__))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.end()
            err.end()
