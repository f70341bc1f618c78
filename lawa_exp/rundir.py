"""The run directory: one training, one lock, one marker of how it stands."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lawa_exp.checkpoint.commit import Damaged, step_name, tidy, verify
from lawa_exp.config import UserError
from lawa_exp.files import locked, write_text_atomically
from lawa_exp.heartbeat import NAME as HEARTBEAT
from lawa_exp.heartbeat import Heartbeat
from lawa_exp.machine import cpu_name, git_state, versions
from lawa_exp.metrics import read_rows

MARKERS = ("DONE", "FAILED", "DIVERGED", "STOPPED")


class RunDir:
    """Paths and small files of one run; rank 0 is the only one that writes."""

    def __init__(self, path: Path, heartbeat: Heartbeat | None = None) -> None:
        """heartbeat: that of the run which this one is a part of."""
        self.path = path
        self.heartbeat = heartbeat or Heartbeat(path / HEARTBEAT)
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.timing = path / "timing.jsonl"
        self.trajectory = path / "trajectory"
        self.averages = path / "averages"
        self.resume = path / "resume"
        self.states = path / "states"
        self.readouts = path / "readouts"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One live process per run, which shows that it lives; what a kill left half-written is cleared."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir={self.path}: cannot be made ({error.strerror})") from None
        with locked(self.path / ".lock", f"run_dir={self.path}"):
            tidy(self.path)
            with self.heartbeat.beating():
                yield

    def marker(self) -> tuple[str, dict[str, Any]] | None:
        """How the run ended last: its marker and what it says; None while it is running, new or killed."""
        for name in MARKERS:
            path = self.path / name
            if path.exists():
                try:
                    return name, {"step": 0, **json.loads(path.read_text())}
                except (ValueError, TypeError):
                    return name, {"step": 0}
        return None

    def mark(self, name: str | None, **facts: Any) -> None:
        """Leaves one marker, or none."""
        for other in MARKERS:
            if other != name:
                (self.path / other).unlink(missing_ok=True)
        if name:
            write_text_atomically(self.path / name, json.dumps(facts) + "\n")

    def read_config(self) -> dict[str, Any] | None:
        """What config.yaml holds, or None where there is none; UserError where it cannot be read."""
        if not self.config.exists():
            return None
        try:
            content = yaml.safe_load(self.config.read_text())
        except yaml.YAMLError:
            content = None
        if not isinstance(content, dict) or "trajectory_id" not in content:
            raise UserError(f"{self.config} is damaged; choose another run_dir")
        return content

    def write_config(self, content: dict[str, Any]) -> None:
        write_text_atomically(self.config, yaml.safe_dump(content, sort_keys=False))

    def newest_state(self) -> tuple[int, Path | None, list[str]]:
        """The step and folder of the newest state that is whole (0, None: there is none), and what was damaged."""
        damaged: list[str] = []
        found = {int(p.name[5:]): p for p in self.resume.glob("step_*") if p.name[5:].isdigit()}
        for step in sorted(found, reverse=True):
            try:
                verify(found[step])
                described = json.loads((found[step] / "state.json").read_text())
                for s in described["window"]:  # those of a window on the disk are in the trajectory
                    if not (found[step] / "window" / f"{step_name(s)}.safetensors").exists():
                        verify(self.trajectory / step_name(s))
                rows = described["scalars"]["metrics_bytes"]
                size = self.metrics.stat().st_size if self.metrics.exists() else 0
                if size < rows:
                    raise Damaged(f"{self.metrics} has {size} bytes, less than the {rows} it was saved with")
                return step, found[step], damaged
            except Damaged as error:
                damaged.append(f"the state of step {step} is damaged: {error}")
        return 0, None, damaged

    def set_rows_aside(self, first_save: int) -> Path | None:
        """Without a state to go on from: rows from beyond the first save are kept under another name, the result."""
        if not self.metrics.exists() or max((r["step"] for r in read_rows(self.metrics)), default=0) <= first_save:
            return None
        aside = next(p for i in range(1, 10**6) if not (p := self.path / f"metrics.before-{i}.jsonl").exists())
        return self.metrics.rename(aside)

    def add_provenance(self, **facts: Any) -> None:
        """One line per start: what ran, on what, from where."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "git": git_state(),
            "versions": versions(),
            "hardware": {
                "node": platform.node(),
                "machine": platform.machine(),
                "cpu": cpu_name(),
                "cores": os.cpu_count(),
            },
            **facts,
        }
        with (self.path / "provenance.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
