"""`python -m lawa_exp.push RUN`: the rows of finished or stopped runs, sent to a logger: W&B, TensorBoard, CSV."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lawa_exp.axes.logger import LOGGERS
from lawa_exp.axes.logger.follow import waiting_lock
from lawa_exp.axes.logger.wandb.settings import project_of
from lawa_exp.status.runs import list_runs
from lawa_exp.storage import manifest
from lawa_exp.storage.metrics import metrics_of, together
from lawa_exp.storage.rows import each_line
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import check_links, locked

NOT_IN_PROJECTS = "/\\#?%:"  # of W&B


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)
    if not args.runs and not args.workspace:
        parser().error("expected RUN, --workspace, or both")

    def command() -> int:
        if args.project and set(args.project) & set(NOT_IN_PROJECTS):
            raise UserError(f"--project={args.project}: expected a name without {' '.join(NOT_IN_PROJECTS)}")
        logger = LOGGERS[args.to]
        if args.to != "wandb" and (flag := of_wandb(args)):
            raise UserError(f"--{flag} is for --to=wandb, and this is --to={args.to}")
        if logger.package and importlib.util.find_spec(logger.package) is None:
            raise UserError(f"the package {logger.package} is missing; pip install 'lawa_exp[{args.to}]'")
        runs = [run for path in args.runs for run in runs_of(Path(path))]
        if args.workspace:
            from lawa_exp.axes.logger.wandb.workspace import make

            metrics = together(metrics_of(run.path) for run in runs)
            print(make(project_of(args.project), args.entity, args.show, metrics))
        failed = 0
        for run in [] if args.show else runs:
            try:
                print(send(run, args.to) if args.to != "wandb" else push(run, args), flush=True)
            except (UserError, Failed, OSError) as error:
                if len(runs) == 1:
                    raise
                failed += 1
                print(f"error: {error}", file=sys.stderr)
        return 1 if failed else 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.push",
        description="Sends the rows of metrics.jsonl and timing.jsonl to Weights & Biases: one clean run for each run "
        "directory, under its name. What W&B has already is not sent again; where it has other rows under this name, "
        "they go to a run of their own. --to tensorboard and --to csv write RUN/tensorboard and RUN/csv anew.",
    )
    p.add_argument("runs", metavar="RUN", nargs="*", help="a run directory, or a sweep or folder of runs: all of them")
    p.add_argument("--to", choices=list(LOGGERS), default="wandb", help="the logger (default: wandb)")
    p.add_argument("--project", help="default: the run's loggers.wandb.project, else WANDB_PROJECT, else lawa_exp")
    p.add_argument("--entity", help="default: the run's loggers.wandb.entity, or the account's own")
    p.add_argument("--offline", action="store_true", help="into a file in RUN/wandb/, for `wandb sync` later")
    p.add_argument(
        "--workspace",
        action="store_true",
        help="also make the dashboard of the project, with panels for the metrics of RUN",
    )
    p.add_argument("--show", action="store_true", help="with --workspace: print the dashboard as JSON, send nothing")
    return p


def runs_of(path: Path) -> list[RunDir]:
    """A run, or those of a sweep that were begun, in the order of its entries, and a line on each of the others.

    UserError: it is neither.
    """
    found = [RunDir(listed.path) for listed in list_runs(path, "RUN")]
    root = path.resolve().parent.parent
    for run in found if (path / manifest.NAME).is_file() else []:
        if run.path.resolve().parent != root:
            raise UserError(f"RUN={path}: its {manifest.NAME} names {run.path}, outside of {root}; name the run itself")
    for run in found:
        if not run.config.exists():
            print(f"{run.path}: no run there yet, nothing to send", flush=True)
    return [run for run in found if run.config.exists()]


def of_wandb(args: argparse.Namespace) -> str:
    """A flag that is given, and W&B's alone."""
    return next((flag for flag in ("project", "entity", "offline", "workspace", "show") if getattr(args, flag)), "")


@contextmanager
def alone(run: RunDir, kind: str, patience: float) -> Iterator[None]:
    """Whole rows of a run that no process trains. patience: seconds that a stopped training's own sender may take.

    UserError: it is training, or has no rows.
    """
    if not run.metrics.exists():
        raise UserError(f"RUN={run.path}: no metrics.jsonl there yet")
    for file in (run.metrics, run.timing):
        for _ in each_line(file):  # Failed: it is damaged
            pass
    check_links(run.path, "RUN")  # what they point at is no part of the run, and would be sent
    with locked(run.path / ".lock", f"RUN={run.path}"), waiting_lock(run, kind, patience):
        yield


def send(run: RunDir, kind: str) -> str:
    """Writes all rows anew for a logger that keeps them in the run's folder; returns a line that says so."""
    logger = LOGGERS[kind](finish_timeout=0)
    with alone(run, kind, 30):
        steps = logger.sender(run).finish()
    return f"{run.path}: {steps} steps in {run.path / kind}"


def push(run: RunDir, args: argparse.Namespace) -> str:
    """Sends what W&B lacks of the run; returns a line that says so. UserError: it is training. Failed: W&B does not."""
    from lawa_exp.axes.logger.settings import Differs
    from lawa_exp.axes.logger.wandb.send import Place, WandbSender, content, folder_of, in_file, run_id

    entries = (run.read_config() or {}).get("loggers", [])
    logger: dict[str, Any] = next((entry for entry in entries if entry.get("kind") == "wandb"), {})
    place = Place(
        project_of(args.project or logger.get("project")),
        args.entity or logger.get("entity"),
        "offline" if args.offline else "online",
    )
    artifacts = bool(logger.get("artifacts"))
    with alone(run, "wandb", logger.get("finish_timeout", 0)):
        id = run_id(run)
        if args.offline and in_file(run, id):
            return f"{run.path}: all rows are in {folder_of(run) / 'wandb'} already"
        try:
            try:
                sender = WandbSender(run, place, id, artifacts=artifacts)
                sent = sender.finish()
            except Differs:
                sender.handle.finish()
                sender = WandbSender(run, place, f"{id}-{content(run)[:8]}", artifacts=artifacts)
                sent = sender.finish()
        except Exception as error:  # of whatever kind W&B's are
            raise Failed(f"{run.path}: W&B: {type(error).__name__}: {str(error).strip()}") from error
        where = sender.url or f"{sender.file()} (wandb sync {sender.file().parent} sends it)"
        return f"{run.path}: {sent} of {sender.steps.count} steps sent, to {where}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
