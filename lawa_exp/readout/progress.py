"""A read-out of revisions as it goes on: what was evaluated, the averagers' states, and which revisions are needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lawa_exp.evaluation.replay import Replay
from lawa_exp.evaluation.result_files import remove_files, write_files
from lawa_exp.readout.subject import Revisions
from lawa_exp.storage.commit import Damaged, commit, remove, verify
from lawa_exp.storage.rows import Row, encode, read_lines
from lawa_exp.storage.safetensors import read_tensors, write_tensors
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json, write_text_atomically

FILE, STATE = "progress.jsonl", "progress_state"


class Revisiting:
    """progress.jsonl in the folder of the results: what was requested, then a line for each step that is evaluated.

    The last step is done with the results: until they are written, and `finish` called, it is evaluated again.
    """

    def __init__(self, out: Path, revisions: Revisions, replay: Replay, live: Sequence[int], writes: bool) -> None:
        """UserError: something else was requested before, and is not finished.

        Where it writes, `out` is there and the caller's alone.
        """
        self.out, self.replay, self.source, self.live, self.writes = out, replay, revisions.source, list(live), writes
        request = json.loads(json.dumps(revisions.identity, sort_keys=True))
        lines = read_lines(out / FILE)
        same = bool(lines) and lines[0].get("request") == request
        over = bool(lines) and lines[-1].get("finished", False)
        if len(lines) > 1 and not same and not over:
            raise UserError(
                f"{out}: a read-out of something else was begun there and is not finished; choose another "
                f"folder, or remove its {FILE}"
            )
        self.finished = same and over
        self.done: dict[int, tuple[list[Row], list[Row]]] = {}
        self.stateful = [a.averager for a in replay.averages if not a.averager.settings.windowed]
        if same and not self.finished:
            lines = [line for line in lines[1:] if line["step"] != self.live[-1]]
            self.done = {line["step"]: (line["rows"], line["measures"]) for line in lines}
            self._load_states()
        self.reached = max(self.done, default=None)
        if self.done:
            replay.go_on(max(self.done), [s for s in self.live if s not in self.done])
        if writes and not self.finished:
            if not self.done:
                self._drop_states()  # what another read-out left
                remove_files(out)
            kept: list[dict[str, Any]] = [
                {"step": s, "rows": rows, "measures": more} for s, (rows, more) in self.done.items()
            ]
            # Without the part of a line that a kill, or a full disk, left: the next one would go on there.
            write_text_atomically(out / FILE, "".join(encode(line) for line in [{"request": request}, *kept]))
        if writes:
            for step in set(self.source.paths) - (set() if self.finished else set(replay.wanted)):
                self.source.forget(step)

    def add(self, step: int, rows: list[Row], measures: list[Row], files: Mapping[str, str]) -> None:
        """Also removes the revisions that nothing reads any more."""
        self.reached = step
        if not self.writes:
            return
        write_files(self.out, files)
        with (self.out / FILE).open("a") as file:
            file.write(encode({"step": step, "rows": rows, "measures": measures}))
        later = [s for s in self.live if s > step]
        if self.stateful and later:  # the last step is evaluated again, from the state before it
            commit(self.out / STATE, {"tensors.safetensors": self._write_tensors, "state.json": self._writer(step)})
        windows = [a.averager.settings for a in self.replay.averages if a.averager.settings.windowed]
        needed = {t for s in later for settings in windows for t in settings.needed(s)}
        for t in self.replay.wanted:
            if t <= step and t not in needed and later:  # after the last step: with `finish`
                self.source.forget(t)

    def finish(self) -> None:
        """The results are written."""
        if self.writes:
            with (self.out / FILE).open("a") as file:
                file.write(encode({"finished": True}))
            for t in self.replay.wanted:
                self.source.forget(t)
            self._drop_states()

    def _write_tensors(self, path: Path) -> None:
        write_tensors(path, {f"{a.settings.id}/{n}": t for a in self.stateful for n, t in a.state()[0].items()})

    def _writer(self, step: int) -> Callable[[Path], None]:
        scalars = {a.settings.id: a.state()[1] for a in self.stateful}

        def write(path: Path) -> None:
            path.write_text(json.dumps({"step": step, "scalars": scalars}))

        return write

    def _load_states(self) -> None:
        """Of the averagers; where they are not those of the last line, everything begins anew."""
        if not self.stateful or not self.done:
            return
        folder = self.out / STATE
        try:
            verify(folder)
            saved = read_json(folder / "state.json")
            tensors = read_tensors(folder / "tensors.safetensors")
        except (Damaged, OSError, ValueError):
            self.done = {}
            return
        self.done = {s: found for s, found in self.done.items() if s <= saved["step"]}  # a kill came between the two
        if max(self.done, default=0) != saved["step"]:
            self.done = {}
            return
        for averager in self.stateful:
            begin = f"{averager.settings.id}/"
            own = {n[len(begin) :]: t.to(self.replay.device) for n, t in tensors.items() if n.startswith(begin)}
            averager.load(own, saved["scalars"][averager.settings.id])

    def _drop_states(self) -> None:
        if (self.out / STATE).is_dir():
            remove(self.out / STATE)
