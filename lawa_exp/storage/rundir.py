"""The run directory: one training, one lock, one marker of how it stands."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

import yaml

from lawa_exp.storage.checksums import Changed, crc32_of, forget, read_bytes, remember, write_text
from lawa_exp.storage.commit import Damaged, remove, step_name, steps_in, tidy, verify
from lawa_exp.storage.rows import append_line, each_row, read_lines
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import SMALL_YAML, check_links, locked, read_json, read_small, read_yaml, sync
from lawa_exp.system.heartbeat import NAME as HEARTBEAT
from lawa_exp.system.heartbeat import Heartbeat, wait_for_other_machines
from lawa_exp.system.machine import cpu_name, git_state, this_job, versions

if TYPE_CHECKING:
    from lawa_exp.system.distributed import Ranks

STATES_KEPT = 2
APPENDED = ("metrics.jsonl", "timing.jsonl", "provenance.jsonl", "errors.jsonl")
MARKERS = ("DONE", "FAILED", "DIVERGED", "STOPPED")
EXIT = {"done": 0, "failed": 1, "diverged": 3, "stopped": 75}


class Facts(TypedDict, total=False):
    """What a marker says: the last step, and of FAILED why, on which rank and where."""

    step: int
    reason: str
    rank: int
    traceback: str


class Started(TypedDict, total=False):
    """What provenance.jsonl says of a start, besides what is true of every process."""

    slurm: dict[str, str | int] | None  # job, start
    ranks: int
    threads: int | None
    device: str
    micro_batch: int | list[int]  # of each batch size, where there are several
    data_fingerprint: str
    data_content: str


class Ended(TypedDict):
    """A line of errors.jsonl: a start that ended after `step`; job, start: see `this_job`."""

    time: float
    step: int
    reason: str
    job: str | None
    start: int


class RunDir:
    """Paths and small files of one run; rank 0 is the only one that writes them, but for FAILED."""

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
        self.is_locked = False  # by this process
        self.reached = 0  # the last step of this process's training

    @property
    def average_ids(self) -> list[str]:
        """Of the averagers whose averages were kept."""
        return sorted(path.name for path in self.averages.glob("*") if path.is_dir())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One live process per run, which shows that it lives; what a kill left half-written is cleared."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sync(self.path.parent)
        except OSError as error:
            raise UserError(f"run_dir={self.path}: cannot be made ({error.strerror})") from None
        check_links(self.path, "run_dir")
        with locked(self.path / ".lock", f"run_dir={self.path}"):
            wait_for_other_machines(self.heartbeat.path, f"run_dir={self.path}")
            tidy(self.path)
            self.is_locked = True
            with self.heartbeat.beating():
                yield

    def marker(self) -> tuple[str, Facts] | None:
        """How the run ended last: its marker and what it says; None while it is running, new or killed, and
        where the marker is damaged."""
        for name in MARKERS:
            path = self.path / name
            if path.exists():
                try:
                    facts: Facts = {"step": 0, **json.loads(read_bytes(path))}
                    return name, facts
                except (Changed, ValueError, TypeError):
                    return None  # its newest state says how far it is, and it ends again as it ended
        return None

    def mark_failed(self, **facts: Unpack[Facts]) -> bool:
        """FAILED with these facts, of the first rank that fails; False where another one's stands there already."""
        try:
            with (self.path / "FAILED").open("x") as file:
                file.write(json.dumps(facts) + "\n")
            remember(self.path, ["FAILED"])
            return True
        except FileExistsError:
            return False

    def mark(self, name: str | None, **facts: Unpack[Facts]) -> None:
        """Leaves one marker, or none."""
        for other in MARKERS:
            if other != name:
                (self.path / other).unlink(missing_ok=True)
        if name:
            write_text(self.path / name, json.dumps(facts) + "\n")

    def note_error(self, step: int, reason: str) -> None:
        """Adds what ended a start after `step` to errors.jsonl, with the SLURM job that it came in."""
        job, start = this_job()
        line: Ended = {"time": time.time(), "step": step, "reason": reason, "job": job, "start": start}
        append_line(self.path / "errors.jsonl", line)

    def errors(self, say: Callable[[str], None] = lambda line: None) -> list[Ended]:
        """What was noted, oldest first; a damaged file is said and has none: a start needs nothing of it."""
        try:
            return cast(list[Ended], read_lines(self.path / "errors.jsonl"))
        except (Failed, UserError) as error:
            say(f"warning: {error}")
            return []

    def read_config(self) -> dict[str, Any] | None:
        """What config.yaml holds, or None where there is none; UserError where it cannot be read."""
        if not self.config.exists():
            return None
        try:
            content = read_yaml(self.config, read_bytes(self.config, SMALL_YAML))
        except Changed as error:
            raise UserError(str(error)) from None
        if not isinstance(content, dict) or "trajectory_id" not in content:
            raise UserError(f"{self.config} is damaged; choose another run_dir")
        return content

    def write_config(self, content: Mapping[str, object]) -> None:
        write_text(self.config, yaml.safe_dump(dict(content), sort_keys=False))

    def begin(self) -> None:
        """No marker, and files that are appended to from here on."""
        self.mark(None)
        forget(self.path, APPENDED)

    def remember(self) -> None:
        """The files of rows are as they are to stay: who reads them sees what is changed."""
        remember(self.path, APPENDED)

    def newest_state(self, ranks: Ranks) -> tuple[int, Path | None, list[str]]:
        """The step and folder of the newest state that is whole (0, None: there is none), and what was damaged.

        All ranks ask, and each reads its share of the files.
        """
        damaged: list[str] = []
        states = ranks.from_main({int(p.name[5:]): p for p in self.resume.glob("step_*") if p.name[5:].isdigit()})
        for step in sorted(states, reverse=True):
            problem = None
            try:
                self._check_state(states[step], ranks)
            except Damaged as error:
                problem = str(error)
            problem = next(filter(None, ranks.all_of(problem)), None)
            if problem is None:
                return step, states[step], damaged
            damaged.append(f"the state of step {step} is damaged: {problem}")
        return 0, None, damaged

    def remove_old_states(self, step: int) -> None:
        """Keeps the last states up to `step`; later ones were damaged and passed over.

        Failed where somebody has removed the run meanwhile: states alone would look like a run.
        """
        if self.is_locked and not self.config.exists():
            raise Failed(
                f"{self.path} was removed, or its config.yaml, while it trained: nothing of it can be relied on"
            )
        found = steps_in(self.resume)
        for other in sorted(found.keys() - [s for s in found if s <= step][-STATES_KEPT:]):
            remove(found[other])

    def _check_state(self, folder: Path, ranks: Ranks) -> None:
        """`Damaged` names what is not what was written, in this rank's share of it."""
        verify(folder, ranks.rank, ranks.world)
        try:
            described = read_json(folder / "state.json")
        except (OSError, ValueError):
            raise Damaged(
                f"{folder / 'state.json'} cannot be read"
            ) from None  # also told by the rank whose share it is
        if "carried" not in described:
            raise Damaged(f"{folder / 'state.json'} was saved by an earlier version")
        for s in described["carried"]["window"]["on_disk"]:
            verify(self.trajectory / step_name(s), ranks.rank, ranks.world)
        rows = described["scalars"]["metrics_bytes"]
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        if ranks.is_main and size < rows:
            raise Damaged(f"{self.metrics} has {size} bytes, less than the {rows} it was saved with")
        crc = described["scalars"].get("metrics_crc32")  # None: of an earlier version
        if ranks.is_main and crc not in (None, crc32_of(self.metrics, rows)):
            raise Damaged(f"{self.metrics} was changed: its first {rows} bytes are not what they were")

    def set_rows_aside(self, first_save: int) -> Path | None:
        """Without a state to go on from: rows from beyond the first save are kept under another name, the result."""
        try:
            if not self.metrics.exists() or max((r["step"] for r in each_row(self.metrics)), default=0) <= first_save:
                return None
        except Failed:  # damaged: somebody may want to look at it
            pass
        return self.set_aside()

    def set_aside(self) -> Path:
        """Keeps metrics.jsonl under another name, which is the result."""
        aside = next(p for i in range(1, 10**6) if not (p := self.path / f"metrics.before-{i}.jsonl").exists())
        return self.metrics.rename(aside)

    def data_content(self) -> str | None:
        """The content of the data that the run began on, see `axes.dataset.content`; None where no start tells it."""
        path = self.path / "provenance.jsonl"
        for line in read_small(path).decode(errors="replace").splitlines() if path.exists() else []:
            with suppress(ValueError, AttributeError):
                content: str | None = json.loads(line).get("data_content")
                if content:
                    return content
        return None

    def add_provenance(self, **facts: Unpack[Started]) -> int:
        """One line per start: what ran, on what, from where. Returns how many starts there were before."""
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
        path = self.path / "provenance.jsonl"
        append_line(path, line)
        return read_small(path).count(b"\n") - 1
