"""Trainings from Python: `python -m lawa_exp` in a process of its own, with a bar in notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.api.runs import Run, Runs, load
from lawa_exp.storage.rundir import EXIT
from lawa_exp.system import heartbeat
from lawa_exp.system.errors import Failed, UserError

if TYPE_CHECKING:
    from io import TextIOWrapper

LOOK = 0.5  # seconds between two looks at a run's heartbeat
MISTAKE, DIVERGED = 2, EXIT["diverged"]


def train(overrides: Sequence[str] = (), *, quiet: bool = False, **settings: Any) -> Run | Runs:
    """Trains, resumes or reads out, as `lawa train OVERRIDE ...` does, and returns the run; with "-m" the sweep's runs.

    overrides: words of the command line, such as "model=gpt_tiny". settings: further ones by name, `k=[3, 5]`. quiet:
    the output of the training is not printed. A KeyboardInterrupt stops the training after its step; it is saved.
    UserError: a mistake in the settings. Failed: the training failed or was stopped. A run that diverged is returned.
    """
    if isinstance(overrides, str):
        raise UserError(f"{overrides!r}: expected a list of words, as shlex.split makes it")
    words = [*overrides, *(f"{key}={written(value)}" for key, value in settings.items())]
    process = subprocess.Popen(
        [sys.executable, "-m", "lawa_exp", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C reaches it through us, once
    )
    seen: dict[str, list[str]] = {"out": [], "err": []}
    say: Callable[[str], None] = (lambda line: None) if quiet else Bar(seen["out"]).say
    readers = [
        threading.Thread(target=read, args=(stream, seen[name], say if name == "out" else None), daemon=True)
        for name, stream in (("out", process.stdout), ("err", process.stderr))
    ]
    for reader in readers:
        reader.start()
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        for reader in readers:
            reader.join()
    return result(code, seen)


def read(stream: TextIOWrapper, lines: list[str], say: Callable[[str], None] | None) -> None:
    for line in stream:
        lines.append(line.rstrip("\n"))
        if say:
            say(lines[-1])


def result(code: int, seen: dict[str, list[str]]) -> Run | Runs:
    """What the command made, by its exit code and what it said."""
    said = [line for line in seen["err"] if line.strip()]
    last = said[-1].removeprefix("error: ") if said else f"exit code {code}"
    if code == MISTAKE:
        raise UserError(last)
    folder = folder_in(seen["out"])
    if code not in (0, DIVERGED):
        raise Failed(last + (f" ({folder})" if folder else ""))
    if folder is None:
        raise UserError("expected a training; plan=true, --help and the like only print")
    return load(folder)


def folder_in(lines: Sequence[str]) -> Path | None:
    """The run or sweep that a command's first lines name."""
    for name in ("sweep_dir=", "run_dir="):
        for line in lines:
            if line.startswith(name):
                return Path(line.removeprefix(name))
    return None


def written(value: object) -> str:
    """A value as Hydra reads it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(entry)}" for key, entry in value.items()) + "}"
    return str(value)


class Bar:
    """Prints a training's lines; in a notebook also a bar, from the heartbeat of the run that they name."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.bar: Any = None
        self.shown = "ipykernel" in sys.modules

    def say(self, line: str) -> None:
        print(line, flush=True)
        folder = folder_in(self.lines) if self.shown else None
        beat = heartbeat.read(folder / heartbeat.NAME) if folder else None
        if beat is None or "steps" not in beat:
            return
        if self.bar is None:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=beat["steps"], unit="step")
        with suppress(KeyError):
            self.bar.update(beat["step"] - self.bar.n)
