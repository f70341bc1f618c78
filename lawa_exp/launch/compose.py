"""From the command line to configurations: with recipes.py and the launcher in hydra_plugins all that knows Hydra."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from lawa_exp import __version__
from lawa_exp.averaging import AVERAGERS
from lawa_exp.axes.dataset.places import whole
from lawa_exp.config.names import BUDGET_UNITS, STABLE
from lawa_exp.config.rules import build, setting_names
from lawa_exp.launch.conf import CONF, attached, launchers
from lawa_exp.launch.data import settled
from lawa_exp.launch.defaults import read_defaults
from lawa_exp.launch.mistakes import check_setting_of_hydra, check_words, explain
from lawa_exp.launch.recipes import chosen_model, with_recipe
from lawa_exp.system import signals
from lawa_exp.system.cli import exit_code
from lawa_exp.system.errors import UserError
from lawa_exp.system.limits import PLAIN_NAME, is_plain_name

if TYPE_CHECKING:
    from hydra.experimental.callback import Callback
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from lawa_exp.axes.configuration import Unresolved
    from lawa_exp.config.shared import Options
    from lawa_exp.launch.slurm.settings import Slurm

HELP = {"-h", "--help", "--hydra-help"}
NEEDED = {"run_dir", "runs_root", "sweep", "plan", "rerun", "k", "spacing", "averagers", "dataset"} | {
    *("layers", "update", "watch", "logger", "loggers")
}
COLLECT, SLURM = (f"hydra_plugins.lawa_exp_launcher.{name}" for name in ("Collect", "Slurm"))
OF_HYDRA = {"launcher": "local", "hydra_logging": "none", "job_logging": "none"}  # the default of its own groups
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code. A user's mistake is one line on stderr and exit code 2."""
    signals.listen()
    return exit_code(lambda: command(arguments))


def command(arguments: list[str]) -> int:
    if "--version" in arguments:  # ours, not Hydra's
        print(f"lawa_exp {__version__}")
        return 0
    composed, multirun = compose(arguments)
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

    return run_all(entries, [o for _, o in composed]) if multirun else run_one(*entries[0])


def set_hydras_defaults() -> None:
    """Makes `OF_HYDRA` Hydra's own defaults.

    An override in conf/config.yaml would come before one in an experiment, which Hydra then passes over in silence.
    """
    from hydra.conf import HydraConf
    from hydra.core.config_store import ConfigStore

    node = HydraConf()
    node.defaults = [{group: OF_HYDRA.get(group, choice) for group, choice in each.items()} for each in node.defaults]
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


def compose(arguments: list[str], sweep_dir: str | None = None) -> tuple[list[tuple[dict[str, Any], list[str]]], bool]:
    """(plain values, overrides) for each training, and whether this is a multirun.

    sweep_dir: where Hydra writes the multirun.yaml of a multirun, if not in the sweep's own folder.
    """
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
        name = given.get("sweep", "sweep").strip("'\"")
        if "$" in name or not is_plain_name(name):  # Hydra writes there before it is checked as a setting
            raise UserError(f"sweep={name}: expected {PLAIN_NAME}")
        if "sweep" not in given:
            asked = sorted(o for o in overrides if not o.startswith("hydra"))  # what is trained, not where
            arguments = [
                *arguments,
                f"sweep=sweep-{hashlib.sha256(chr(10).join(asked).encode()).hexdigest()[:8]}",
            ]
        arguments = [*arguments, "hydra.callbacks.check.multirun=true"]
        if sweep_dir:
            arguments.append(f"hydra.callbacks.check.sweep_dir={sweep_dir}")
    single = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def collect(config: DictConfig) -> None:
        single.append((config, overrides))

    before = sys.argv
    try:
        if HELP & set(arguments):
            list_groups_once()
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

        if lawa_exp_launcher.Collect.started and not lawa_exp_launcher.COMPOSED:
            named = [o for o in overrides if "(" in o] or overrides
            raise UserError(f"-m {' '.join(named)}: has no value, so there is nothing to train (glob is for groups)")
        entries = lawa_exp_launcher.COMPOSED or single
        return [(plain(config), own) for config, own in entries], multirun
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        for mistake in (error, error.__cause__):
            if isinstance(mistake, UserError):
                raise mistake from None
        raise UserError(explain(error, overrides, functools.partial(settings_of, arguments))) from None
    finally:
        sys.argv = before
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


class Fixed(TypedDict):
    """A setting of Hydra's that has one value here."""

    value: object
    expected: object


def check_composed(
    multirun: bool,
    sweep_dir: str,
    mode: RunMode,
    launcher: str,
    sweeper: str,
    choices: Mapping[str, str | None],
    fixed: Mapping[str, Fixed],
) -> Callback:
    """Hydra calls it (`hydra.callbacks`) when all is composed and nothing runs yet.

    UserError for a part of Hydra's that would do nothing here, in silence. multirun: whether -m was given. sweep_dir:
    Hydra's, which conf/config.yaml reads. fixed: what Hydra may not decide, by key.
    """
    from hydra.experimental.callback import Callback
    from hydra.types import RunMode

    if mode == RunMode.MULTIRUN and not multirun:
        raise UserError("hydra.mode=MULTIRUN: give -m on the command line")
    if launcher not in (COLLECT, SLURM):
        name = choices["hydra/launcher"]
        raise UserError(f"hydra/launcher={name}: expected one of {', '.join(launchers())}; {launcher} is not used here")
    if sweeper != SWEEPER:
        raise UserError(f"hydra/sweeper={choices['hydra/sweeper']}: expected basic, which trains every combination")
    if launcher == SLURM and not multirun:
        raise UserError(
            f"hydra/launcher={choices['hydra/launcher']}: only under -m; for one run see launch/sbatch_single.sh"
        )
    for key, entry in fixed.items():
        if (entry["value"] or None) not in (None, entry["expected"]):
            group = f"hydra/{key.split('.')[0]}"
            if choices.get(group) != OF_HYDRA.get(group.removeprefix("hydra/")):
                check_setting_of_hydra(group, choices[group])
            check_setting_of_hydra(f"hydra.{key}", entry["value"])
    return Callback()


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values, interpolations resolved; UserError names a value that is missing."""
    from omegaconf import OmegaConf

    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(f"{sorted(missing)[0]} is missing: give it on the command line")
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))  # a mapping gives a dict


def read(values: dict[str, Any], overrides: list[str]) -> tuple[Unresolved, Options]:
    """The checked settings of one training."""
    from lawa_exp.config.shared import Options
    from lawa_exp.runs.builders import builders
    from lawa_exp.runs.choices import unresolved_from
    from lawa_exp.storage import custom

    values = dict(values)
    if missing := sorted(NEEDED - values.keys()):
        raise UserError(f"{missing[0]} is missing: it cannot be left out")
    named = {o.split("=")[0].lstrip("+") for o in overrides}
    if named & set(BUDGET_UNITS):  # one on the command line replaces the recipe's
        values |= {unit: None for unit in BUDGET_UNITS if unit not in named}
    options = build(Options, {f: values.pop(f) for f in ("run_dir", "runs_root", "sweep", "plan", "rerun")}, "")
    if isinstance(values["averagers"], Mapping) and (kinds := attached(overrides)) is not None:
        values["averagers"] = {k: v for k, v in values["averagers"].items() if k in kinds}  # not what others would set
    check_attached(values["averagers"])
    values["averagers"] = list(expand(values["averagers"]))
    for group in ("layers", "update", "watch", "loggers"):
        values[group] = [{"name": name, **settings} for name, settings in values[group].items()]
    settled(values, named, whole_path)
    init = values.get("init")
    if isinstance(init, dict) and init.get("from") not in (None, STABLE):
        init["from"] = whole_path(init["from"])
    teacher = values.get("teacher")
    if isinstance(teacher, dict) and teacher.get("from") is not None:
        teacher["from"] = whole_path(teacher["from"])
    for key in ("k", "spacing"):  # read by the averagers through interpolation
        values.pop(key)
    unresolved = unresolved_from(values)
    custom.allow(builders(unresolved).values())  # these are the user's own words
    return unresolved, options


def without_effect(values: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """Lines on settings of averagers, of an experiment, that avg=... on the command line does not attach."""
    kinds, averagers = attached(overrides), values["averagers"]
    if kinds is None or not isinstance(averagers, Mapping):
        return []
    others = {kind: settings for kind, settings in averagers.items() if kind not in kinds and settings}
    return [f"averagers.{kind} of the experiment has no effect: avg=... does not attach {kind}" for kind in others]


def check_attached(averagers: object) -> None:
    """UserError: some settings of an averager are there, and no choice of `avg` that has them all."""
    for kind, settings in averagers.items() if isinstance(averagers, Mapping) else ():
        if (
            kind in AVERAGERS
            and isinstance(settings, Mapping)
            and set(setting_names(AVERAGERS[kind])) - settings.keys()
        ):
            name = next(iter(settings), "")
            raise UserError(f"averagers.{kind}.{name}: {kind} is not attached; add it to avg=[...]")


def whole_path(value: object) -> object:
    """A path from the root; `2024` is one, too. What is none is refused by the setting's rule."""
    if value == "" or isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    path = Path(str(value))
    with contextlib.suppress(RuntimeError):  # ~NAME of nobody
        path = path.expanduser()
    return str(whole(path))


def expand(averagers: object) -> Iterator[dict[str, Any]]:
    """One entry for each averager; settings that are lists combine as a product."""
    if not isinstance(averagers, Mapping):
        raise UserError(f"averagers={averagers}: expected a mapping; choose with avg=[...]")
    for kind, settings in averagers.items():
        if not isinstance(settings, Mapping):
            raise UserError(f"averagers.{kind}={settings}: expected a mapping; choose with avg=[...]")
        empty = [name for name, value in settings.items() if value == []]
        if empty:
            raise UserError(f"averagers.{kind}.{empty[0]}=[]: expected a value or a list of them")
        options = [v if isinstance(v, list) else [v] for v in settings.values()]
        for values in itertools.product(*options):
            yield {"kind": kind, **dict(zip(settings, values, strict=True))}


def check_budgets(overrides: list[str]) -> None:
    given = [o for o in overrides if o.split("=")[0].lstrip("+") in BUDGET_UNITS]
    if len(given) > 1:
        raise UserError(
            f"two budgets on one command line ({' '.join(given)}): give exactly one of {', '.join(BUDGET_UNITS)}"
        )
