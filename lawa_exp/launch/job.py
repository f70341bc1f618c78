"""What Hydra calls: for a single run, and for each job of a multirun whose launcher or sweeper is not ours."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lawa_exp.launch.conf import launchers
from lawa_exp.launch.defaults import read_defaults
from lawa_exp.launch.entries import plain, read
from lawa_exp.launch.mistakes import check_setting_of_hydra
from lawa_exp.launch.recipes import composed
from lawa_exp.system import signals
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.prefixed import prefixed

if TYPE_CHECKING:
    from hydra.experimental.callback import Callback
    from hydra.types import RunMode
    from omegaconf import DictConfig

COLLECT, SLURM = (f"hydra_plugins.lawa_exp_launcher.{name}" for name in ("Collect", "Slurm"))
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
OF_HYDRA = {"launcher": "local", "hydra_logging": "none", "job_logging": "none"}  # the default of its own groups

SINGLE: list[DictConfig] = []  # what a single run was composed to
JOBS: list[Jobs] = []  # the multirun of this process that Hydra itself trains

read_defaults()  # a launcher's process that imports this module composes its job from conf/


class Jobs(TypedDict):
    """A multirun whose jobs Hydra trains.

    by: the word that chooses its launcher or sweeper. search: the sweeper chooses jobs by the values of others.
    """

    by: str
    folder: Path
    value: str | None
    search: bool


class InFile(UserError):
    """hydra.mode=MULTIRUN stands in a file."""


class Fixed(TypedDict):
    """A setting of Hydra's that has one value here."""

    value: object
    expected: object


def job(config: DictConfig) -> float | None:
    """Keeps the configuration of a single run; trains a job of a multirun and returns its value, see `runs/value.py`.

    UserError, Failed: the job failed, or was stopped and saved.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    whole: Any = HydraConfig.instance().cfg
    if not whole.hydra.callbacks.check.multirun:
        SINGLE.append(config)
        return None
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:  # else its launcher's, which starts the job again
        signals.listen()
    overrides = list(whole.hydra.overrides.task)
    restore_words(whole)
    with prefixed(f"[{whole.hydra.job.num}] "):
        named, _ = composed(GlobalHydra.instance().config_loader(), whole, overrides)
        (value,) = train([(named, overrides)])
    if isinstance(value, Exception):
        raise type(value)(f"{value} (job {whole.hydra.job.num}: {' '.join(without_name(overrides))})")
    return value


def carried(words: Sequence[str]) -> str:
    """The words of the command line as one that Hydra neither reads nor resolves."""
    return f"x{os.fsencode(shlex.join(words)).hex()}"


def restore_words(config: Any) -> None:
    """Makes the command line of a job's process that of its multirun, which reports and manifests show."""
    if words := config.hydra.callbacks.check.typed:
        sys.argv = [sys.argv[0], *shlex.split(os.fsdecode(bytes.fromhex(words[1:])))]


def train(jobs: Sequence[tuple[Any, list[str]]]) -> list[float | Exception]:
    """Trains what was composed, with its overrides; the value of each, or what it failed with."""
    from lawa_exp.runs.job import values_of
    from lawa_exp.system.slurm_step import join_ranks

    join_ranks()
    overrides = [without_name(own) for _, own in jobs]
    try:
        return values_of([read(plain(config), own) for config, own in jobs], overrides)
    except (UserError, Failed) as error:
        return [error] * len(jobs)
    except Exception as error:  # its launcher would hand it on without its traceback
        traceback.print_exc()
        return [Failed(f"{type(error).__name__}: {error}")] * len(jobs)


def without_name(overrides: Sequence[str]) -> list[str]:
    """The overrides of an entry, without how its multirun is called and trained."""
    return [o for o in overrides if not o.lstrip("+").startswith("sweep.")]


def check_composed(
    multirun: bool,
    train: bool,
    typed: str | None,
    plan: bool,
    sweep: Mapping[str, Any],
    sweep_dir: str,
    mode: RunMode,
    launcher: str,
    sweeper: str,
    choices: Mapping[str, str | None],
    words: Sequence[str],
    fixed: Mapping[str, Fixed],
) -> Callback:
    """Hydra calls it (`hydra.callbacks`) when all is composed and nothing runs yet.

    UserError for a part of Hydra's that would do nothing here, in silence. multirun: whether -m was given. train:
    whether another's launcher may train. typed: see `carried`. sweep_dir: Hydra's, which conf/config.yaml reads.
    words: the overrides of Hydra's own settings. fixed: what Hydra may not decide, by key.
    """
    from hydra.experimental.callback import Callback
    from hydra.types import RunMode

    if mode == RunMode.MULTIRUN and not multirun:
        raise InFile("hydra.mode=MULTIRUN: give -m on the command line")
    own_launcher, own_sweeper = launcher in (COLLECT, SLURM), sweeper == SWEEPER
    by_launcher, by_sweeper = (f"hydra/{name}={choices[f'hydra/{name}']}" for name in ("launcher", "sweeper"))
    if not multirun and not (own_launcher and own_sweeper):
        raise UserError(f"{by_sweeper if own_launcher else by_launcher}: only under -m")
    if launcher == SLURM:
        check_slurm(multirun, by_launcher, None if own_sweeper else by_sweeper, sweep)
    for word in words if own_sweeper else ():
        key, _, value = word.lstrip("+").partition("=")
        if key.startswith("hydra.sweeper."):
            check_setting_of_hydra(key, value)
    for key, entry in fixed.items():
        if (entry["value"] or None) not in (None, entry["expected"]):
            group = f"hydra/{key.split('.')[0]}"
            if choices.get(group) != OF_HYDRA.get(group.removeprefix("hydra/")):
                check_setting_of_hydra(group, choices[group])
            check_setting_of_hydra(f"hydra.{key}", entry["value"])
    if not (own_launcher and own_sweeper):
        named = by_sweeper if own_launcher else by_launcher
        if plan and not own_sweeper:
            raise UserError(
                f"plan=true: not with {by_sweeper}, which chooses its jobs by the values of others; plan one of them: "
                "no -m, no hydra/... or hydra.KEY=VALUE, and a value for what it would choose"
            )
        if not train:
            raise UserError(f"{named}: not in this command; expected one of {', '.join(launchers())}, sweeper basic")
        begin(named, own_launcher, not own_sweeper, plan, sweep, Path(sweep_dir))
    return Callback()


def check_slurm(multirun: bool, launcher: str, sweeper: str | None, sweep: Mapping[str, Any]) -> None:
    """UserError: what our launcher of SLURM cannot do. sweeper: another than Hydra's own."""
    if not multirun:
        raise UserError(f"{launcher}: only under -m; for one run see launch/sbatch_single.sh")
    if sweeper:
        raise UserError(
            f"{sweeper}: not with {launcher}, which returns before its jobs have values; choose hydra/launcher=local, "
            "or submitit_slurm, which waits for them"
        )
    if sweep["jobs"] != 1:
        raise UserError(f"sweep.jobs={sweep['jobs']}: not with {launcher}; hydra.launcher.parallel bounds its jobs")


def begin(named: str, own: bool, search: bool, plan: bool, sweep: Mapping[str, Any], folder: Path) -> None:
    """From here on Hydra trains. own: through our launcher."""
    if plan:
        remedy = "plan with hydra/launcher=local, without hydra.launcher.KEY=VALUE"
        raise UserError(f"plan=true: not with {named}; {remedy}")
    if sweep["jobs"] != 1 and not own:
        raise UserError(f"sweep.jobs={sweep['jobs']}: not with {named}, which has settings of its own for it")
    if named.endswith("=submitit_slurm") and not shutil.which("sbatch"):
        raise UserError(f"{named}: no SLURM on this machine (sbatch is not in PATH); submitit_local trains here")
    if not own:
        signals.end_at_once()  # its processes have the trainings
    print(f"sweep_dir={folder}", flush=True)
    JOBS.append({"by": named, "folder": folder, "value": sweep["value"], "search": search})


def report() -> int | None:
    """Says what the jobs of this process's multirun are worth; the exit code, None where Hydra trained none."""
    if not JOBS:
        return None
    from lawa_exp.runs.job import said_values

    asked = JOBS.pop()
    return said_values(asked["folder"], asked["value"], asked["search"])
