"""configurations.yaml and differences.yaml, and what the configurations cover."""

from __future__ import annotations

import re
import shlex
import string
from dataclasses import dataclass
from pathlib import Path

import yaml

from .compare import Stated

# Groups whose choices need not all be in a configuration: they need other data, a network or much time.
FREE_GROUPS = ("model", "dataset", "trainer", "logger", "experiment", "hydra")
WORDS = {  # what must be covered as well, and what a command of such a configuration holds
    "accumulation": r"trainer\.micro_batch=",
    "noise scale": r"noise_scale",
    "on_the_fly": r"lr=on_the_fly",
    "schedule_free": r"optimizer=schedule_free",
    "BatchNorm": r"model=(resnet\d+|custom)",
    "BatchNorm groups": r"norm_group=\d",
    "masked LM": r"dataset=pydocs_mlm",
    "adaptive LM": r"model=transformer_lm_wiki103",
    "1 rank": r"^python -m lawa_exp ",
    "2 ranks": r"^torchrun .*--nproc_per_node=2 -m lawa_exp ",
    "3 ranks": r"^torchrun .*--nproc_per_node=3 -m lawa_exp ",
    "FSDP": r"^torchrun .*trainer=fsdp",
    "kill and resume": r"-m lawa_exp ",
    "branching": r"init\.from=",
    "window on the disk": r"trajectory\.window=disk",
    "read-out": r"^python -m lawa_exp\.readout ",
    "merged sweep": r"^python -m lawa_exp -m .*\bk=\d+,",
    "files averaged": r"^python -m lawa_exp\.average ",
}


@dataclass(frozen=True)
class Command:
    """As a user types it. The process sends itself `signal` just before a path that ends with `at` gets its name."""

    run: str
    ends: int = 0
    signal: str = ""
    at: str = ""


@dataclass(frozen=True)
class Configuration:
    """needs: a file without which the older side cannot run it, so that there is nothing to compare."""

    name: str
    covers: list[str]
    commands: list[Command]
    needs: str = ""


@dataclass(frozen=True)
class Renamed:
    """An override, or a key with its `=`, whose `old` spelling a side takes whose file `file` holds `has`."""

    new: str
    old: str
    file: str
    has: str
    reason: str
    since: str

    def on(self, side: Path) -> bool:
        path = side / self.file
        return path.is_file() and self.has in path.read_text()

    def spelled(self, words: list[str]) -> list[str]:
        if self.new.endswith("="):
            return [self.old + word.removeprefix(self.new) if word.startswith(self.new) else word for word in words]
        return [self.old if word == self.new else word for word in words]


USUAL = {
    "sampling=epochs",
    "objective=task",
}  # of trainings that name none; custom ones have their own test


def configurations(text: str) -> list[Configuration]:
    """Those of a file in the form of configurations.yaml, the words of its `shorthand` filled in."""
    content = yaml.safe_load(text)

    def full(run: str) -> str:
        while "$" in run:
            run = string.Template(run).substitute(content["shorthand"])
        return " ".join(run.split())

    found = []
    for entry in content["configurations"]:
        given = [c if isinstance(c, dict) else {"run": c} for c in entry.pop("commands")]
        found.append(Configuration(**entry, commands=[Command(**{**c, "run": full(c["run"])}) for c in given]))
    return found


def differences(text: str) -> tuple[list[Stated], list[Renamed]]:
    content = yaml.safe_load(text)
    return [Stated(**s) for s in content["differences"] or []], [Renamed(**r) for r in content["renamed"] or []]


def uncovered(given: list[Configuration], conf: Path) -> list[str]:
    """The choices in conf/ that no command names, and of WORDS those that no configuration covers, or not truly."""
    typed = [word for c in given for command in c.commands for word in shlex.split(command.run)]
    chosen = {f"{k}={v}" for k, _, values in (w.partition("=") for w in typed) for v in re.split(r"[\[\],]", values)}
    groups = [folder for folder in sorted(conf.iterdir()) if folder.is_dir() and folder.name not in FREE_GROUPS]
    lacking = [f"{g.name}={p.stem}" for g in groups for p in sorted(g.glob("*.yaml"))]
    lacking = [choice for choice in lacking if choice not in chosen | USUAL and not choice.endswith("=custom")]
    lacking += ["model=custom"] if "model=custom" not in chosen else []
    for word, pattern in WORDS.items():
        covering = [c for c in given if word in c.covers]
        lacking += [] if covering else [word]
        for c in covering:
            killed = word != "kill and resume" or any(command.signal == "SIGKILL" for command in c.commands)
            if not (killed and any(re.search(pattern, command.run) for command in c.commands)):
                lacking.append(f"{c.name} does not do what it covers: {word}")
    return lacking
