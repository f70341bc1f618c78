"""From the command line to configurations: with recipes.py and the launcher in hydra_plugins all that knows Hydra."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from lawa_exp import __version__
from lawa_exp.config.names import BUDGET_UNITS
from lawa_exp.config.rules import build
from lawa_exp.launch import job
from lawa_exp.launch.alike import compose_alike_once
from lawa_exp.launch.conf import CONF
from lawa_exp.launch.defaults import read_defaults
from lawa_exp.launch.entries import plain, read, without_effect
from lawa_exp.launch.mistakes import check_words, explain
from lawa_exp.launch.recipes import chosen_model, with_recipe
from lawa_exp.storage.rundir import EXIT
from lawa_exp.system import signals
from lawa_exp.system.cli import exit_code
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.limits import PLAIN_NAME, is_plain_name

if TYPE_CHECKING:
    from hydra.types import RunMode

    from lawa_exp.launch.slurm.settings import Slurm

HELP = {"-h", "--help", "--hydra-help"}


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code. A user's mistake is one line on stderr and exit code 2."""
    signals.listen()
    return exit_code(lambda: command(arguments))


def command(arguments: list[str]) -> int:
    if "--version" in arguments:  # ours, not Hydra's
        print(f"lawa_exp {__version__}")
        return 0
    try:
        composed, multirun = compose(arguments, train=True)
    except (UserError, Failed):
        if job.report() != EXIT["stopped"]:
            raise
        return EXIT["stopped"]
    if (code := job.report()) is not None:
        return code
    if not composed:  # --help, --cfg and the like have printed what they had to
        return 0
    cluster = cluster_settings()
    entries = [read(values, overrides) for values, overrides in composed]
    for note in dict.fromkeys(note for values, overrides in composed for note in without_effect(values, overrides)):
        print(f"note: {note}", file=sys.stderr)
    if cluster:
        from lawa_exp.launch.slurm.submit import submit

        return submit(entries, [o for _, o in composed], cluster)
    from lawa_exp.runs.sweep import run_all, run_one

    asked = entries[0][1].sweep
    if not multirun and (asked.jobs != 1 or asked.value):
        raise UserError(f"sweep.{f'jobs={asked.jobs}' if asked.jobs != 1 else f'value={asked.value}'}: only under -m")
    return run_all(entries, [o for _, o in composed]) if multirun else run_one(*entries[0])


def set_hydras_defaults() -> None:
    """Makes `job.OF_HYDRA` Hydra's own defaults.

    An override in conf/config.yaml would come before one in an experiment, which Hydra then passes over in silence.
    """
    from hydra.conf import HydraConf
    from hydra.core.config_store import ConfigStore

    node = HydraConf()
    node.defaults = [
        {group: job.OF_HYDRA.get(group, choice) for group, choice in each.items()} for each in node.defaults
    ]
    ConfigStore.instance().store(group="hydra", name="config", node=node, provider="lawa_exp")


def cluster_settings() -> Slurm | None:
    """The checked settings of `hydra/launcher=slurm`, once all is composed; None without."""
    from hydra_plugins import lawa_exp_launcher

    settings = dict(lawa_exp_launcher.CLUSTER)
    lawa_exp_launcher.CLUSTER.clear()  # for the next call in this process
    if not settings:
        return None
    from lawa_exp.launch.slurm.settings import Slurm

    return build(Slurm, settings, "hydra.launcher")


def spelled(arguments: list[str]) -> list[str]:
    """The arguments with what is ours in Hydra's words: --jobs N, sweep=NAME, hydra.mode=MULTIRUN for -m."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        key, _, value = word.partition("=")
        if key == "--jobs":
            value = value if "=" in word else next(rest, "")
            if not value.isdecimal():
                raise UserError(f"--jobs {value}".rstrip() + ": expected a number of trainings at a time, as --jobs 2")
            word = f"sweep.jobs={value}"
        elif key.lstrip("+") == "sweep" and not value.startswith("{"):
            word = f"sweep.name={value}"
        elif key.lstrip("+") == "hydra.mode" and value == "MULTIRUN":
            word = "-m"
        words.append(word)
    return words


def compose(
    arguments: list[str], sweep_dir: str | None = None, train: bool = False
) -> tuple[list[tuple[dict[str, Any], list[str]]], bool]:
    """(plain values, overrides) for each training, and whether this is a multirun.

    sweep_dir: where Hydra writes the multirun.yaml of a multirun, if not in the sweep's own folder. train: a launcher
    or sweeper that is not ours may train; then nothing is returned, and `job.report` says what it did.
    """
    arguments = given_arguments = spelled(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors as exceptions, not as exit code 1
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    read_defaults()
    set_hydras_defaults()
    check_words(arguments)
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    multirun = "-m" in arguments or "--multirun" in arguments
    check_budgets(overrides)
    if multirun:
        given = {o.split("=")[0].lstrip("+"): o.partition("=")[2] for o in overrides}
        if "run_dir" in given:
            raise UserError("run_dir: not under -m, where every run has a folder of its own; choose runs_root=DIR")
        name = given.get("sweep.name", "sweep").strip("'\"")
        if "$" in name or not is_plain_name(name):  # Hydra writes there before it is checked as a setting
            raise UserError(f"sweep={name}: expected {PLAIN_NAME}")
        if "sweep.name" not in given:
            asked = sorted(o for o in overrides if not o.startswith(("hydra", "sweep.")))  # what is trained, not where
            arguments = [
                *arguments,
                f"sweep.name=sweep-{hashlib.sha256(chr(10).join(asked).encode()).hexdigest()[:8]}",
            ]
        arguments = [*arguments, "hydra.callbacks.check.multirun=true", f"hydra.callbacks.check.train={train}".lower()]
        if train:
            arguments.append(f"hydra.callbacks.check.typed={job.carried(sys.argv[1:])}")
        if sweep_dir:
            arguments.append(f"hydra.callbacks.check.sweep_dir={sweep_dir}")
    collect = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job.job)
    before = sys.argv
    try:
        if HELP & set(arguments):
            list_groups_once()
        if multirun:
            compose_alike_once()
        recipes = [o.partition("=")[2] for o in overrides if o.split("=")[0].lstrip("+") == "recipe"]
        if recipes and not multirun:  # under -m the launcher does it for each entry
            arguments = with_recipe(arguments, chosen_model(overrides), recipes[-1])
        words = [a for a in arguments if a.startswith("~") or ("=" in a and not a.startswith("-"))]
        sys.argv = [before[0], *words, *(a for a in arguments if a not in words)]  # Hydra wants them without a gap
        try:
            with mode_known(multirun, overrides):
                strictly(collect)
        except AssertionError:  # Hydra's: a file of the user's has a hydra.mode
            strictly(collect)
        from hydra_plugins import lawa_exp_launcher  # only now: Hydra loads its plugins anew

        if lawa_exp_launcher.Collect.started and not (lawa_exp_launcher.COMPOSED or job.JOBS):
            named = [o for o in overrides if "(" in o] or overrides
            raise UserError(f"-m {' '.join(named)}: has no value, so there is nothing to train (glob is for groups)")
        entries = lawa_exp_launcher.COMPOSED or [(config, overrides) for config in job.SINGLE]
        return [(plain(config), own) for config, own in entries], multirun
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        for mistake in (error, error.__cause__):
            if isinstance(mistake, job.InFile):
                return compose([*given_arguments, "-m"], sweep_dir, train)
            if isinstance(mistake, UserError):
                raise mistake from None
        raise UserError(explain(error, overrides, functools.partial(settings_of, arguments))) from None
    except Exception as error:
        if not job.JOBS or isinstance(error, Failed):
            raise
        raise Failed(f"{job.JOBS[-1]['by']}: {type(error).__name__}: {error}") from None
    finally:
        sys.argv = before
        job.SINGLE.clear()
        if launcher := sys.modules.get("hydra_plugins.lawa_exp_launcher"):  # for the next call in this process
            launcher.COMPOSED.clear()
            launcher.Collect.started = False


@contextlib.contextmanager
def mode_known(multirun: bool, overrides: list[str]) -> Iterator[None]:
    """Lets Hydra compose a single run once. It composes a first time to look for hydra.mode, which -m says here.

    What it is in Hydra 1.3 alone: in another version that has no such method nothing changes. A word about hydra makes
    it look as ever; of a hydra.mode in a file it says that it is not the one that was expected (an AssertionError).
    """
    from hydra._internal.hydra import Hydra
    from hydra.types import RunMode

    look = getattr(Hydra, "get_mode", None)
    if look is None or multirun or any("hydra" in o.partition("=")[0] for o in overrides):
        yield
        return

    def known(hydra: Hydra, config_name: str | None, overrides: list[str]) -> RunMode:
        return RunMode.RUN

    Hydra.get_mode = known  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Hydra.get_mode = look  # type: ignore[method-assign]


def list_groups_once() -> None:
    """Lets Hydra read the folders of choices once for its help; it does so anew for each of them, 140 times.

    What it is in Hydra 1.3 alone: in another version that has no such method nothing changes.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    read_folders = getattr(ConfigLoaderImpl, "_parse_overrides_and_create_caching_repo", None)
    if read_folders and not hasattr(read_folders, "__wrapped__"):
        last: list[Any] = []

        @functools.wraps(read_folders)
        def remembered(loader: object, config_name: str | None, overrides: list[str]) -> object:
            if not last or last[0] != (loader, config_name, overrides):
                last[:] = [(loader, config_name, list(overrides)), read_folders(loader, config_name, overrides)]
            return last[1]

        ConfigLoaderImpl._parse_overrides_and_create_caching_repo = remembered  # type: ignore[method-assign,assignment]


def strictly(work: Callable[[], None]) -> None:
    """Runs what is Hydra's; its warnings are a line each. UserError: of a missing folder, or how its flags are used."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(said):
            warnings.simplefilter("always", UserWarning)
            work()
    except SystemExit as error:
        if error.code:
            raise UserError((said.getvalue().strip().splitlines() or [str(error)])[-1].split("error: ")[-1]) from None
        raise
    sys.stderr.write(said.getvalue())
    for warning in warned:
        message = " ".join(str(warning.message).split())
        if place := re.search(r"hydra.searchpath in .*path=(.*) is not available", message):
            raise UserError(f"hydra.searchpath: there is no folder {place[1]}")
        if issubclass(warning.category, UserWarning):  # such as of a plugin that cannot be imported
            print(f"warning: {message}", file=sys.stderr)


def settings_of(arguments: list[str], parent: str, without: str) -> Collection[str]:
    """The settings under `parent` of what the other arguments compose; none where they do not."""
    others = [a for a in arguments if a.split("=")[0].lstrip("+") != without]
    if len(others) == len(arguments):
        return ()
    try:
        values: Any = compose(others)[0][0][0]
    except (UserError, IndexError):
        return ()
    for name in parent.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return [name for name in values if name != "kind"] if isinstance(values, dict) else ()


def check_budgets(overrides: list[str]) -> None:
    given = [o for o in overrides if o.split("=")[0].lstrip("+") in BUDGET_UNITS]
    if len(given) > 1:
        raise UserError(
            f"two budgets on one command line ({' '.join(given)}): give exactly one of {', '.join(BUDGET_UNITS)}"
        )
