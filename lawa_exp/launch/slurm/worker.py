"""A task of a SLURM job: trains what was written down when it was submitted."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import yaml

from lawa_exp.config.shared import Options
from lawa_exp.runs.builders import builders
from lawa_exp.runs.choices import config_to, unresolved_from
from lawa_exp.storage import custom
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system import signals
from lawa_exp.system.cli import exit_code
from lawa_exp.system.errors import InUse, UserError
from lawa_exp.system.files import write_text_atomically

if TYPE_CHECKING:
    from lawa_exp.runs.prepare import Prepared

PATIENCE = 120  # seconds in which a job that was cancelled, or lost its node, leaves the run


class Pinned(TypedDict):
    """What `work` needs to know of a training. command: the words after `python -m lawa_exp`."""

    run_dir: str
    command: list[str]
    trajectory_id: str
    identity: dict[str, object]
    config: dict[str, object]


def write_pinned(path: Path, prepared: Prepared, command: list[str]) -> None:
    """Writes a training down for `work`."""
    content: Pinned = {
        "run_dir": str(prepared.run_dir.resolve()),
        "command": command,
        "trajectory_id": prepared.trajectory,
        "identity": prepared.identity,
        "config": config_to(prepared.config),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, yaml.safe_dump(content, sort_keys=False))


def work(pinned: list[str]) -> None:
    """Trains what the files describe, one after another, and exits with the code of the first that is not done."""
    signals.listen()  # in place of submitit's handlers
    for path in pinned:
        code = exit_code(lambda path=path: train_pinned(Path(path)))  # type: ignore[misc]
        if code:
            break
    sys.stdout.flush()
    sys.exit(code)


def train_pinned(path: Path) -> int:
    from lawa_exp.runs.execute import execute
    from lawa_exp.runs.prepare import prepare
    from lawa_exp.system.distributed import start_device

    content: Pinned = yaml.safe_load(path.read_text())
    sys.argv = ["lawa_exp", *content["command"]]
    unresolved = unresolved_from(content["config"])
    custom.allow(builders(unresolved).values())  # the user submitted it
    options = Options(content["run_dir"], str(Path(content["run_dir"]).parent), plan=False, rerun=False)
    try:
        device, ranks = start_device(unresolved.device)
        prepared = prepare(unresolved, options, device, ranks)
        if prepared.trajectory != content["trajectory_id"]:
            raise UserError(
                f"run_dir={options.run_dir}: its data, its code or what it goes on from changed since it was queued"
            )
    except Exception as error:
        mark_before_it_began(content, error)
        raise
    since = time.monotonic()
    while True:
        try:
            return execute(prepared, options, device, ranks)
        except InUse:
            if ranks.from_main(time.monotonic() - since > PATIENCE or signals.stop_requested()):
                raise
            time.sleep(1)


def mark_before_it_began(content: Pinned, error: Exception) -> None:
    """FAILED in the folder of a run that was not begun here, so that its reason is seen where the run is looked for."""
    run = RunDir(Path(content["run_dir"]))
    if os.environ.get("RANK", "0") != "0" or (run.marker() or ("",))[0] in ("DONE", "DIVERGED"):
        return
    if not run.path.exists():
        run.path.mkdir(parents=True)
        named = {"trajectory_id": content["trajectory_id"], "identity": content["identity"]}
        run.write_config({**named, **content["config"]})
    existing = run.read_config()
    if existing and existing["trajectory_id"] == content["trajectory_id"]:
        run.mark("FAILED", step=0, reason=f"{type(error).__name__}: {error}")
