"""Runs as Python starts a command of same_bytes: only the side's own code can be imported, and its signal is armed."""

import importlib.util
import os
import signal
import sys
from pathlib import Path


def begin(side: str) -> None:
    elsewhere = [p for p in sys.path if p != side and Path(p or ".", "lawa_exp", "__init__.py").exists()]
    sys.path[:] = [p for p in sys.path if p not in elsewhere]  # an installed one, and its plugins
    found = importlib.util.find_spec("lawa_exp")
    if not (found and found.origin and Path(found.origin).is_relative_to(side)):
        sys.stderr.write(f"error: lawa_exp is {found and found.origin}, expected that of {side}\n")
        sys.stderr.flush()
        os._exit(97)
    if at := os.environ.get("SAME_BYTES_AT"):
        sys.addaudithook(lambda event, args: _strike(at) if event == "os.rename" and _ends(args[1], at) else None)


def _ends(path: object, at: str) -> bool:
    return os.fsdecode(path).endswith(at) if isinstance(path, str | bytes | os.PathLike) else False


def _strike(at: str) -> None:
    """Just before something gets that name."""
    os.kill(os.getpid(), signal.Signals[os.environ["SAME_BYTES_SIGNAL"]])


if "SAME_BYTES_SIDE" in os.environ:
    begin(os.environ["SAME_BYTES_SIDE"])
