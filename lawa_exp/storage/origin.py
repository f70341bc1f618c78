"""Where a training goes on from: a kept state of another run, or weights alone.

A kept state (`init.optimizer=keep`) goes on at its own step, with its optimizer, averagers and window: a cool-down or a
longer run. Weights alone (`init.optimizer=reset`) begin at step 0: a fine-tuning.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa_exp.config.names import STABLE
from lawa_exp.config.shared import Init
from lawa_exp.formats.stored import shards_of
from lawa_exp.storage.commit import Damaged, steps_in, verify
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Origin:
    """source: a run directory (with `step`), or a folder or file of weights. identity: what determines the weights."""

    source: Path
    step: int
    keep: bool
    identity: dict[str, Any]

    @property
    def first_step(self) -> int:
        """Steps completed before this training's first."""
        return self.step if self.keep else 0

    def state(self) -> Path:
        """The folder of the kept state. UserError where there is none, or where it is damaged."""
        return whole(kept_state(self.source, self.step))

    def weights(self) -> Path:
        """The folder of the weights, or their file."""
        if not is_run(self.source):
            return self.source
        run = RunDir(self.source)
        snapshots = steps_in(run.trajectory)
        if self.step in snapshots:
            return whole(snapshots[self.step])
        optimizer = (run.read_config() or {})["optimizer"]["kind"]
        if optimizer == "schedule_free":  # its state holds y, the weights that it trains; a snapshot holds x
            there = ", ".join(f"{s:,}" for s in snapshots) or "none"
            raise UserError(
                f"init.step={self.step}: after optimizer={optimizer} the weights are those of a snapshot, and "
                f"{self.source} has none of that step (it has: {there}); choose one of these, or init.optimizer=keep"
            )
        return self.state()


def find_origin(init: Init) -> Origin | None:
    """What `init` names, found on the disk; None where the seed is all. UserError names what is wrong with it."""
    if init.from_ is None:
        if init.step is not None or init.optimizer is not None:
            raise UserError("init.from is missing: init.step and init.optimizer are about it")
        return None
    if init.from_ == STABLE:
        raise UserError("init.from=stable: only under -m, where a sweep trains the stable run first; or name a run")
    source = Path(init.from_)
    if not source.exists():
        raise UserError(f"init.from={init.from_}: no such run, file or folder")
    if is_run(source):
        run = RunDir(source)
        step = init.step
        if step is None:
            step = max(steps_in(run.resume) | steps_in(run.states), default=None)
            if step is None:
                raise UserError(f"init.from={init.from_}: this run has no state yet; choose init.step")
        content = run.read_config()
        assert content
        keep = init.optimizer != "reset"
        if keep:
            kept_state(source, step)
        how = {"step": step, "optimizer": "keep" if keep else "reset"}
        return Origin(source, step, keep, {"trajectory": content["trajectory_id"], **how})
    if init.optimizer == "keep":
        raise UserError(f"init.optimizer=keep: {init.from_} is not a run and has no optimizer's state; choose reset")
    if init.step is not None:
        raise UserError(f"init.step={init.step}: {init.from_} is not a run: these are weights of one step")
    return Origin(source, 0, False, {"weights": fingerprint(source), "optimizer": "reset"})


def kept_state(source: Path, step: int) -> Path:
    """The folder of a run's complete state. UserError where it has none of that step."""
    run = RunDir(source)
    found = steps_in(run.resume) | steps_in(run.states)
    if step not in found:
        there = ", ".join(f"{s:,}" for s in sorted(found)) or "none"
        raise UserError(
            f"init.step={step}: {source} has no state of that step (it has: {there}); its own command "
            f"with save.keep=[{step}], and rerun=true if it is done, keeps one"
        )
    return found[step]


def is_run(path: Path) -> bool:
    return RunDir(path).config.is_file()


def whole(folder: Path) -> Path:
    try:
        verify(folder)
    except Damaged as error:
        raise UserError(f"init.from: {error}") from None
    return folder


def fingerprint(source: Path) -> str:
    """SHA-256 over the files of the weights."""
    digest = hashlib.sha256()
    for path in weight_files(source):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def weight_files(source: Path) -> list[Path]:
    """The files of a checkpoint that hold its weights, shards in order. UserError: it is none."""
    index = source / f"{WEIGHTS}.index.json"
    if (source / WEIGHTS).is_file():
        return [source / WEIGHTS]
    if index.is_file():
        return shards_of(index)
    from lawa_exp.formats.checkpoint import open_checkpoint  # which takes milliseconds
    from lawa_exp.formats.folders import DCP

    if (source / DCP).is_file():
        return sorted(path for path in source.rglob("*") if path.is_file())
    try:
        return [file.path for file in open_checkpoint(source).sources]
    except UserError as error:
        raise UserError(f"init.from={source}: neither a run nor a checkpoint: {error}") from None


def snapshots_of(run: RunDir) -> dict[int, Path]:
    """The committed snapshots of a run by step, those of the run that it branched from before its own."""
    own = steps_in(run.trajectory)
    content = run.read_config()
    came_from = content["identity"].get("init") if content else None
    if not content or not came_from or came_from["optimizer"] != "keep":
        return own
    source = Path(content["init"]["from"])
    if not is_run(source):
        return own
    there = RunDir(source).read_config() or {}
    if there["trajectory_id"] != came_from["trajectory"]:
        return own
    earlier = {s: path for s, path in snapshots_of(RunDir(source)).items() if s <= came_from["step"]}
    return dict(sorted((earlier | own).items()))
