"""One run of W&B: opened under the run directory's id, given the steps it lacks, finished with table and plot."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa_exp.axes.logger.rows import Payload, Steps, columns, final
from lawa_exp.axes.logger.settings import Differs
from lawa_exp.axes.logger.wandb.offline import Offline, files_of
from lawa_exp.formats.about import FILE as ABOUT
from lawa_exp.storage import manifest
from lawa_exp.storage.commit import step_name
from lawa_exp.storage.metrics import metrics_of
from lawa_exp.storage.rows import each_row, read_rows, read_starts
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import Failed, UserError

KEPT = ("config.yaml", "provenance.jsonl", "metrics.jsonl", "timing.jsonl", "report.md")  # files that W&B gets
DIGEST, UP_TO = "rows_sha256", "rows_up_to"  # in the summary: of the payloads sent, and the step of the last of them
RUN_STATES = {"DONE": 0, "DIVERGED": 0, "STOPPED": 75}  # exit codes by marker; FAILED, killed: 1


@dataclass(frozen=True)
class Place:
    """Where rows go: a project of a W&B server, or (offline) a file in RUN/wandb/ that `wandb sync` sends later."""

    project: str
    entity: str | None
    mode: str  # online or offline


def folder_of(run: RunDir) -> Path:
    """Where W&B's own folder is: WANDB_DIR, else the run directory."""
    folder = os.environ.get("WANDB_DIR")
    if not folder:
        return run.path
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def run_id(run: RunDir) -> str:
    """The run directory's name, with the trajectory id where the name does not have it."""
    trajectory = (run.read_config() or {}).get("trajectory_id", "")
    name = run.path.resolve().name
    return "".join(
        c if c.isalnum() or c in "-_." else "-" for c in name + ("" if trajectory in name else f"-{trajectory}")
    )


def sweep_of(run: RunDir) -> str | None:
    """The multirun that started the run; of several the latest."""
    manifests = run.path.resolve().parent.glob(f"sweeps/*/{manifest.NAME}")
    for path in sorted(manifests, key=lambda p: p.stat().st_mtime, reverse=True):
        with suppress(UserError, Failed):  # another sweep's damaged manifest
            if any(entry["run_dir"].name == run.path.resolve().name for entry in manifest.read(path.parent)["entries"]):
                return path.parent.name
    return None


class WandbSender:
    """Sends the steps of `run` that W&B does not have yet, in their order."""

    def __init__(
        self, run: RunDir, place: Place, id: str | None = None, watch: int | None = None, artifacts: bool = False
    ) -> None:
        """watch: the process whose use of the machine W&B records; None: of no process. artifacts: whether the weights
        of the run's end are sent."""
        self.run, self.place, self.id, self.artifacts = run, place, id or run_id(run), artifacts
        self.steps = Steps(run.metrics, run.timing)
        self.digest = hashlib.sha256()
        self.described: dict[str, dict[str, object]] = {}
        self.sent = 0
        folder = run.path / "wandb"
        folder.mkdir(exist_ok=True)
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            os.environ.setdefault(name, str(folder.resolve() / "data"))
        import wandb

        self.wandb = wandb
        provenance = read_starts(run.path)
        self.handle = wandb.init(
            project=place.project,
            entity=place.entity,
            id=self.id,
            name=os.environ.get("WANDB_NAME") or run.path.resolve().name,
            group=os.environ.get("WANDB_RUN_GROUP") or sweep_of(run),
            mode="offline" if place.mode == "offline" else "online",
            resume="allow",
            dir=str(folder_of(run)),
            config={
                **(run.read_config() or {}),
                "run_dir": run.path.resolve().name,
                "starts": len(provenance),
                "provenance": provenance[-1] if provenance else None,
            },
            settings=wandb.Settings(
                console="off",
                silent=True,
                show_warnings=watch is not None,  # they go to the log
                disable_git=True,
                save_code=False,
                symlink=False,
                x_disable_meta=True,
                x_save_requirements=False,
                x_disable_stats=watch is None,
                x_stats_pid=watch or os.getpid(),
                x_transaction_log_flush_interval=2.0,
                allow_val_change=True,
            ),
        )
        self.handle.define_metric("step")
        self.handle.define_metric("*", step_metric="step")
        self.known = (
            (self.handle.summary.get(UP_TO), self.handle.summary.get(DIGEST)) if self.handle.resumed else (None, None)
        )

    @property
    def url(self) -> str | None:
        """The run's page; None of an offline run."""
        return self.handle.url if self.place.mode == "online" else None

    def file(self) -> Path:
        """The newest offline file."""
        return files_of(folder_of(self.run), self.id)[-1]

    def send(self, whole: bool) -> None:
        """Sends what is new in the files, see `Steps.new`. Differs: see there; nothing more is sent then."""
        last = None
        for step, row in self.steps.new(whole):
            if self.steps.averages != self.described:
                self.described = dict(self.steps.averages)
                self.handle.config.update({"averages": self.described}, allow_val_change=True)
            self.digest.update(canonical(row))
            if step == self.known[0] and self.digest.hexdigest() != self.known[1]:
                self.known = (None, None)  # what is sent from here on is not compared
                raise Differs(f"W&B has other rows up to step {step:,} under the id {self.id}")
            if step >= self.handle.starting_step:
                self.handle.log(row, step=step)
                self.sent += 1
                last = step
        if last is not None:
            self.handle.summary.update({UP_TO: last, DIGEST: self.digest.hexdigest()})

    def finish(self) -> int:
        """The rest, and what a finished run has besides: table, plot, summary, files; returns the steps sent in all.

        Waits for the upload.
        """
        marker, facts = self.run.marker() or ("", {})
        self.send(whole=bool(marker))
        if marker in ("DONE", "DIVERGED"):
            self.finish_with_results()
        self.handle.summary["how"] = marker.lower() or "killed"
        if marker == "FAILED":
            self.handle.summary["reason"] = facts.get("reason")
        if marker == "STOPPED":
            self.handle.mark_preempting()
        for name in KEPT:
            if (self.run.path / name).exists():
                path = (self.run.path / name).resolve()
                self.handle.save(str(path), base_path=str(path.parents[1]), policy="now")
        self.handle.finish(exit_code=RUN_STATES.get(marker, 1))
        if self.place.mode == "offline":
            self.remove_earlier()
        return self.sent

    def finish_with_results(self) -> None:
        rows = read_rows(self.run.metrics, trained=False)
        last = max(row["step"] for row in each_row(self.run.metrics))
        test = [r for r in read_rows(self.run.readouts / "test" / "metrics.jsonl") if r["step"] == last]
        metrics = metrics_of(self.run.path)
        lines, summary = final(rows, test, metrics)
        if self.sent or not self.handle.summary.get("final/table"):
            shown: Payload = {"step": last, "final/table": self.wandb.Table(columns=columns(metrics), data=lines)}
            if (self.run.path / "curves.png").exists():
                shown["final/curves"] = self.wandb.Image(str(self.run.path / "curves.png"))
            self.handle.log(shown, step=max(last, self.handle.starting_step))  # of the last step's row, a part
        self.handle.summary.update(summary)
        for artifact in self.weights(last) if self.artifacts else ():
            self.handle.log_artifact(artifact)

    def weights(self, step: int) -> Iterator[Any]:
        """Artifacts of the live weights and averages after `step`, of those that the run keeps: snapshots as they are.

        W&B stores equal content once, and reads the files where they are.
        """
        name = self.run.path.resolve().name
        folders = {"live": self.run.trajectory, **{id: self.run.averages / id for id in self.run.average_ids}}
        for id, folder in folders.items():
            saved = folder / step_name(step)
            if not saved.is_dir():
                continue
            made = json.loads((saved / ABOUT).read_text()) if (saved / ABOUT).exists() else {}
            metadata = {"run": name, "weights": id, "step": step, **made}
            artifact = self.wandb.Artifact(f"{name}-{id}", type="model", metadata=metadata)
            artifact.add_dir(str(saved), policy="immutable")
            yield artifact

    def remove_earlier(self) -> None:
        """An offline run is written whole each time: what earlier starts have left of it is in the newest file."""
        for path in files_of(folder_of(self.run), self.id)[:-1]:
            shutil.rmtree(path.parent)


def canonical(row: Payload) -> bytes:
    return json.dumps(row, sort_keys=True).encode()


def content(run: RunDir) -> str:
    """The digest of all steps of the run, as the summary has it."""
    return hashlib.sha256(b"".join(canonical(row) for _, row in Steps(run.metrics, run.timing).new(True))).hexdigest()


def in_file(run: RunDir, id: str) -> bool:
    """Whether a finished offline file under this id, and no other, holds exactly the rows of the run directory."""
    found = files_of(folder_of(run), id)
    if len(found) != 1:
        return False
    file = Offline(found[0])
    steps = Steps(run.metrics, run.timing).new(whole=bool(run.marker()))
    return file.finished and list(map(comparable, file.history)) == [comparable(row) for _, row in steps]


def comparable(sent: Payload) -> Payload:
    """A step without what W&B and the end of the run have added; NaN as text, for it equals nothing."""
    ours = {k: v for k, v in sent.items() if not k.startswith(("_", "final/"))}
    return {k: "NaN" if isinstance(v, float) and math.isnan(v) else v for k, v in ours.items()}
