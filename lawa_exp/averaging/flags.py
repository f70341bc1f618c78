"""The averagers' settings as command-line flags of their names, shared by the commands that read averages out."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from lawa_exp.averaging.settings import AVERAGERS
from lawa_exp.config.rules import setting_names

DEFAULTS = {  # what is not given; others (spacing, every): the spacing of the snapshots
    **{"k": "5", "decay": "0.99", "start": "0", "warmup": "false", "sigma_rel": "0.1"},
    **{"ema_power": "0.5", "bias_power": "0.2", "lag": "10"},
}


def add_flags(parser: argparse.ArgumentParser, values: str, otherwise: dict[str, str]) -> None:
    """One flag for each setting, None where it is not given.

    values: what may be given, for the help. otherwise: what to say of those that have no default, or another one.
    """
    used: dict[str, list[str]] = {}
    for kind, (cls, _) in AVERAGERS.items():
        for name in setting_names(cls):
            used.setdefault(name, []).append(kind)
    for name, kinds in used.items():
        said = otherwise.get(name) or DEFAULTS.get(name) or "the spacing of the snapshots"
        parser.add_argument(f"--{name}", help=f"{', '.join(kinds)}: {values} (default: {said})")


def start_note(args: argparse.Namespace, kinds: Collection[str]) -> list[str]:
    """That an swa begins here where a training's does not."""
    if args.start is not None or "swa" not in kinds:
        return []
    return [
        "swa: the mean of all snapshots from the first on; one attached to a training begins at 75% of the horizon "
        "unless told otherwise, and is another average. --start sets it."
    ]


def plain(text: str) -> Any:
    """A number, true or false where it is one."""
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
