"""What SWEEP names: the runs of a sweep, one run directory, or a folder of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lawa_exp.launch.slurm.queue import SUBMITTED, read_record
from lawa_exp.storage import manifest
from lawa_exp.system.errors import UserError

AVERAGING = ("k", "spacing", "avg")  # overrides that may differ between the entries of one training


@dataclass(frozen=True)
class Listed:
    """A run directory, whether it exists yet or not.

    overrides: those that tell it from the other runs of its sweep; steps: that the sweep asks for (None: no sweep);
    job: the last one that was submitted for it, at the unix time `submitted`.
    """

    path: Path
    overrides: tuple[str, ...] = ()
    steps: int | None = None
    job: str | None = None
    submitted: float | None = None


def list_runs(sweep: Path, name: str = "SWEEP") -> list[Listed]:
    """The runs that `sweep` names, in the manifest's order or by name. UserError: it is none of what is expected.

    name: of the argument, for the message.
    """
    if (sweep / manifest.NAME).is_file():
        return with_jobs(of_manifest(sweep), [sweep])
    if is_run(sweep):
        return with_jobs([Listed(sweep)], submitted_in(sweep.resolve().parent))
    found = sorted(p for p in sweep.iterdir() if is_run(p)) if sweep.is_dir() else []
    if not found:
        raise UserError(
            f"{name}={sweep}: expected a sweep ({manifest.NAME}), a run directory (config.yaml) or a folder of runs"
        )
    return with_jobs([Listed(p) for p in found], submitted_in(sweep))


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / ".lock").is_file()


def of_manifest(sweep: Path) -> list[Listed]:
    """The runs of a sweep, each once."""
    entries = manifest.read(sweep)["entries"]
    if not entries:
        raise UserError(f"{sweep / manifest.NAME} has no entries: there is no run in this sweep")
    by_run: dict[Path, list[manifest.Entry]] = {}
    for entry in entries:
        by_run.setdefault(entry["run_dir"], []).append(entry)
    shared = set.intersection(*(set(e["overrides"]) for e in entries)) if len(by_run) > 1 else set()
    return [Listed(path, own_overrides(own, shared), max(e["steps"] for e in own)) for path, own in by_run.items()]


def own_overrides(entries: Sequence[manifest.Entry], shared: set[str]) -> tuple[str, ...]:
    """What the entries of one run have in common and the sweep's others have not; the averaging does not tell runs."""
    common = set.intersection(*(set(e["overrides"]) for e in entries)) - shared

    def tells(override: str) -> bool:
        key = override.split("=")[0].lstrip("+")
        return override in common and key not in AVERAGING and not key.startswith("averagers.")

    return tuple(filter(tells, entries[0]["overrides"]))


def submitted_in(runs_root: Path) -> list[Path]:
    """The sweeps that were submitted to SLURM."""
    return sorted(path.parent for path in runs_root.glob(f"sweeps/*/{SUBMITTED}"))


def with_jobs(runs: list[Listed], sweeps: list[Path]) -> list[Listed]:
    """The runs with their last submissions."""
    last: dict[str, tuple[str, float]] = {}
    for line in (line for sweep in sweeps for line in read_record(sweep)):
        name, job = line["run_dir"].name, (line["job"], line["time"])
        if name not in last or last[name][1] <= job[1]:
            last[name] = job
    nothing = (None, None)
    return [
        replace(run, job=job, submitted=at) for run in runs for job, at in [last.get(run.path.resolve().name, nothing)]
    ]
