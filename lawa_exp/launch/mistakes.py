"""What is wrong with a command line, in one line: the word, its value and what could stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lawa_exp.config.rules import near
from lawa_exp.launch.conf import groups, launchers, siblings
from lawa_exp.system.errors import UserError

WITH_VALUE = {  # Hydra's flags that take one
    *("-c", "--cfg", "-p", "--package", "-i", "--info", "-cd", "--config-dir"),
}
FLAGS = WITH_VALUE | {  # not --experimental-rerun, which unpickles a file, nor --config-name: there is one primary file
    *("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun"),
    *("-sc", "--shell-completion"),
}
USED = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.searchpath")
OF_SWEEPER = (r"hydra.sweeper(?!\.params)",)  # of a sweeper from elsewhere; Hydra's own has none that are followed
PLUGINS = {  # launchers and sweepers from elsewhere, by the words that choose them
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    **dict.fromkeys(("hydra/launcher=submitit_local", "hydra/launcher=submitit_slurm"), "hydra-submitit-launcher"),
    "hydra/sweeper=optuna": "hydra-optuna-sweeper",
}
BY_SHELL = "set variables before the command, for jobs of SLURM in hydra.launcher.setup"
BY_ROWS = "a training prints its rows and writes them to metrics.jsonl"
INSTEAD = {  # of Hydra's settings that a training does not follow: what to use
    "run": "choose run_dir=DIR",
    "sweep": "choose runs_root=DIR and sweep=NAME",
    "output_subdir": "the run directory has config.yaml and provenance.jsonl",
    "job.chdir": "a training stays in the folder that it is started in",
    "job.env_set": BY_SHELL,
    "job.env_copy": BY_SHELL,
    "job": "choose run_dir=DIR, or under -m runs_root=DIR and sweep=NAME",
    "job_logging": BY_ROWS,
    "hydra_logging": BY_ROWS,
    "verbose": BY_ROWS,
    "callbacks": "choices of the groups update and watch are called in a training",
    "mode": "give -m, or hydra.mode=MULTIRUN, for several trainings, nothing for one",
    "sweeper.params": "under -m a setting takes several values, KEY=A,B",
    "sweeper": "under -m all is composed at once; sweep.jobs, with slurm hydra.launcher.parallel, bounds what runs",
}
FUNCTIONS = ("bool", "choice", "float", "glob", "int", "interval", "range", "shuffle", "sort", "str", "tag")
MEANT = {  # what other trainers call a setting
    **dict.fromkeys(("learning_rate", "rate", "max_lr", "base_lr", "optimizer.lr", "lr.lr", "lr.rate"), "lr.peak"),
    **dict.fromkeys(("optimizer.learning_rate", "lr.learning_rate", "lr.max_lr", "lr.value"), "lr.peak"),
    **dict.fromkeys(("batch_size", "bs", "train_batch_size", "per_device_train_batch_size"), "batch.size"),
    **dict.fromkeys(("warmup", "warmup_iters", "num_warmup_steps", "lr.warmup"), "lr.warmup_steps"),
    **dict.fromkeys(("max_steps", "num_steps", "max_iters", "iters", "iterations"), "steps"),
    **dict.fromkeys(("epoch", "num_epochs", "max_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("wd", "optimizer.wd", "decay", "optimizer.decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("optimizer.betas", "betas"), "optimizer.beta1 and optimizer.beta2"),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "depth", "model.n_layer", "model.depth"), "model.layers"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "model.n_head"), "model.heads"),
    **dict.fromkeys(("n_embd", "d_model", "hidden_size", "model.n_embd", "model.d_model"), "model.width"),
    **dict.fromkeys(("block_size", "seq_len", "max_length", "model.block_size"), "model.context"),
    **dict.fromkeys(("ema_decay", "beta_ema"), "averagers.ema.decay"),
    **dict.fromkeys(("output_dir", "out_dir", "out", "name", "run_name", "save_dir"), "run_dir"),
    **dict.fromkeys(("data", "data_dir", "data_path", "train_file"), "dataset.path"),
    **dict.fromkeys(("precision", "amp", "fp16", "bf16"), "trainer.dtype"),
    **dict.fromkeys(("gpus", "cuda"), "trainer.device"),
    **dict.fromkeys(("logger.project", "wandb_project", "project"), "loggers.wandb.project"),
    **{f"logger.{name}": f"loggers.wandb.{name}" for name in ("mode", "entity", "finish_timeout")},
}


def check_words(arguments: list[str]) -> None:
    """UserError names the first word that is neither a flag of Hydra's nor a setting, or that it cannot read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "" in arguments:
        raise UserError("an argument is empty: is a variable of the shell not set?")
    parser = OverridesParser.create()

    def problem(word: str) -> str | None:
        try:
            parser.parse_override(word)
            return None
        except HydraException as error:
            return str(error) if str(error.__cause__) == "None" else str(error.__cause__)

    for word in settings_among(arguments):
        key, _, value = word.partition("=")
        if word.startswith("~"):
            raise UserError(f"{word}: a setting cannot be removed; give another value, as KEY=null or GROUP=none")
        if "=" not in word or not key.strip("+"):
            raise UserError(f"{word}: expected KEY=VALUE")
        check_setting_of_hydra(key.lstrip("+"), value, (*USED, *OF_SWEEPER))
        if reason := problem(word):
            raise UserError(unreadable(word, reason, lambda w: problem(w) is None))


def settings_among(arguments: list[str]) -> Iterator[str]:
    """The words that are no flags and no values of flags. UserError: a flag that is none of Hydra's."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            yield word
            continue
        if word.split("=")[0] not in FLAGS:
            raise UserError(f"{word}: not a flag; settings are given as key=value, flags are in --hydra-help")
        if word in WITH_VALUE and next(words, None) is None:
            raise UserError(f"{word}: expected a value after it")


def check_setting_of_hydra(key: str, value: object, used: Collection[str] = USED) -> None:
    """UserError: it is a setting of Hydra's that a training does not follow; says what to use."""
    name = key.split("@")[0]
    if not re.match(r"hydra([./]|$)", name) or any(re.match(rf"{place}([./]|$)", name) for place in used):
        return
    setting = name.removeprefix("hydra").strip("./").replace("/", ".")
    parts = setting.split(".")
    known = (INSTEAD[place] for n in range(len(parts), 0, -1) if (place := ".".join(parts[:n])) in INSTEAD)
    instead = next(known, f"of Hydra's settings these are: {', '.join(USED)}")
    raise UserError(f"{key}={value}: not used here; {instead}")


def unreadable(word: str, reason: str, readable: Callable[[str], bool]) -> str:
    """What to write in place of a word that Hydra's grammar does not take. readable: whether it takes a word."""
    key, _, value = word.partition("=")
    if value.startswith(tuple(f"{name}(" for name in FUNCTIONS)):
        return f"{word}: {' '.join(reason.split(chr(10))[0].split())}"
    inner = value.strip()
    items = [item.strip().strip("'\"") for item in inner.strip("[]").split(",")]
    bare = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
    tries = ["[" + ", ".join(f'"{item}"' for item in items) + "]"] if re.fullmatch(r"\[[^\[\]]+\]?", inner) else []
    found = next((shlex.quote(f"{key}={text}") for text in (*tries, f'"{bare}"') if readable(f"{key}={text}")), None)
    special = "".join(dict.fromkeys(re.findall(r"[^\w./:,%+*@?|-]", value)))
    return f"{word}: Hydra cannot read {special or 'it'} in a value without quotes; write {found or 'it in quotes'}"


def explain(error: BaseException, overrides: list[str], names_of: Callable[[str, str], Collection[str]]) -> str:
    """One line for an error of Hydra's: the key, the value, and what could stand there.

    names_of(parent, without): the settings under `parent` of the choice that is composed without an override.
    """
    text = " ".join(str(e) for e in (error, error.__cause__) if e)
    choices = groups() | {"hydra/launcher": launchers(), "hydra/sweeper": ["basic"]}
    if absent := next((o for o in overrides if o in PLUGINS and o.partition("=")[0] in text), None):
        return f"{absent}: its package is missing; pip install {PLUGINS[absent]}"
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.lstrip("+~")
        if name in choices:
            if value in ("null", ""):
                return f"{name}={value}: {near(value, choices[name])}"
            if "Config group override must be" in text and re.fullmatch(r"[-+\d.e_]+|true|false|nan|inf", value, re.I):
                return f"{name}={value}: {of_a_group(name, value, choices[name])}"
            for chosen in value.strip("[]").split(","):
                if chosen and chosen not in choices[name] and f"{name}/{chosen}" in text.replace("'", ""):
                    return f"{name}={chosen}: {of_a_group(name, chosen, choices[name])}"
        if "Ambiguous value" in text and f"'{override}'" in text:
            quoted = shlex.quote(f'{key}="{value}"')
            return (
                f"{override}: several values; {key}=[{value}] is a list, -m {override} a training for each, "
                f"{quoted} a text with a comma"
            )
        if "requires --multirun" in text and f"'{override}'" in text:
            return f"{override}: several values, which need -m (--multirun)"
        if "${" in value and "nterpolation" in text:
            missing = re.search(r"Environment variable '(\w+)' not found", text)
            if missing:
                return f"{override}: the environment has no variable {missing[1]}"
            return f"{override}: expected the name of a setting in ${{}}, or a variable, ${{oc.env:NAME}}"
    if appended := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"+{appended[1]}: it is a setting already; write it without +"
    if "does not support sweep type" in text:
        named = next((o for o in overrides if "interval(" in o), " ".join(overrides))
        return f"{named}: an interval has no list of values; give them, or range(FIRST,LAST,STEP)"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        name = unknown[1].split("@")[0]
        part = name.rpartition(".")[0]
        by = next((o for o in overrides if o.partition("=")[0] == part.replace(".", "/")), None)
        if by and part.startswith("hydra.") and by.partition("=")[2] not in choices[part.replace(".", "/")]:
            return f"{name}: {by} has no such setting; --cfg hydra -p {part} shows those that it has"
        return not_a_setting(name, names_of)
    return re.sub(r"\s+", " ", text)


def of_a_group(name: str, value: str, choices: list[str]) -> str:
    """What was meant by a value that is no choice of its group."""
    number = re.fullmatch(r"[-+\d.e_]+", value)
    said = near(value, choices)
    if name == "lr" and number:
        return f"lr is the schedule; the rate is lr.peak={value}; {said}"
    if name == "batch" and number:
        return f"batch is how its size changes; the size is batch.size={value}; {said}"
    if name == "dataset" and re.fullmatch(r"hf:.*|[\w-]+/[\w-]+", value) and not Path(value).exists():
        return (
            "a data set of the Hugging Face hub is fetched first, hf download "
            f"{value.removeprefix('hf:')} --repo-type dataset --local-dir DIR, then dataset=hf dataset.path=DIR; {said}"
        )
    if name == "dataset" and re.search(r"\.(jsonl|jsonl\.gz|ndjson|parquet|csv|tsv)$", value):
        return f"a path is given as dataset=text dataset.path={value} dataset.column=text; {said}"
    if name == "dataset" and ("/" in value or re.search(r"\.(txt|bin|npz|md)$", value)):
        kind = "tokens" if value.endswith(".bin") else "arrays" if value.endswith(".npz") else "text"
        path = value.rpartition("/")[0] or "." if kind == "tokens" else value
        return f"a path is given as dataset={kind} dataset.path={path}; {said}"
    return said


def not_a_setting(name: str, names_of: Callable[[str, str], Collection[str]]) -> str:
    """What was meant by a key that is none; names_of: as in `explain`."""
    parent, _, leaf = name.rpartition(".")
    if parent.startswith("averagers."):
        kind = parent.removeprefix("averagers.")
        if leaf in siblings(parent):
            return f"{name}: {kind} is not attached; add it to avg=[...]"
        return f"{name}: not a setting of {kind}; {near(leaf, siblings(parent))}"
    if meant := MEANT.get(name):
        return f"{name}: not a setting here; did you mean {meant}?"
    if not parent:
        elsewhere = [f"{group}.{leaf}" for group in groups() if leaf in siblings(group)]
        if elsewhere:
            return f"{name}: not a setting here; did you mean {' or '.join(elsewhere)}?"
        return f"{name}: not a setting here; {near(leaf, siblings(''))}"
    if leaf in siblings(parent):
        return f"{name}: not a setting of the chosen {parent} (it belongs to another choice of it)"
    if not siblings(parent):  # ema.decay, adamw.beta1: by the name of a choice
        of_parent = [group for group, choices in groups().items() if parent in choices and leaf in siblings(group)]
        owners = [f"{group}.{leaf}" for group in of_parent]
        owners += [f"averagers.{name}"] if leaf in siblings(f"averagers.{parent}") else []
        if owners:
            return f"{name}: not a setting here; did you mean {' or '.join(owners)}?"
        return f"{name}: there are no settings {parent}; {near(parent, groups())}"
    said = f"{name}: not a setting here; {near(leaf, names_of(parent, name) or siblings(parent))}"
    if parent == "hydra.launcher":
        said += f"; another option of sbatch stands in hydra.launcher.extra='{{{leaf}: VALUE}}'"
    return said
