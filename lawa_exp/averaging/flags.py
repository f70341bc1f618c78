"""The averagers' settings as command-line flags of their names, shared by the commands that read averages out."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from lawa_exp.averaging import AVERAGERS
from lawa_exp.config.rules import default_of, setting_names

PERIODS = ("spacing", "every")  # flags whose default is the spacing of the snapshots, not that of the settings
FROM_FLAGS = {kind: AVERAGERS[kind] for kind in AVERAGERS if kind != "custom"}  # whose settings are a builder's own
KINDS = {  # of averagers that have a setting, by its name
    name: [kind for kind, cls in FROM_FLAGS.items() if name in setting_names(cls)]
    for name in dict.fromkeys(name for cls in FROM_FLAGS.values() for name in setting_names(cls))
}
SWA_START = "75% of the horizon"  # in conf/avg/swa.yaml
IN_TRAINING = {  # what conf/avg has in place of these commands' defaults
    "every": "attached to a training, ema and power_ema observe every step",
    "start": f"attached to a training, swa begins at {SWA_START}",
}


def add_flags(parser: argparse.ArgumentParser, values: str, otherwise: dict[str, str]) -> None:
    """One flag for each setting, None where it is missing.

    values: what each takes, and otherwise: the default of those that have another one; both for the help.
    """
    for name, kinds in KINDS.items():
        default = otherwise.get(name)
        if default is None and name in PERIODS:
            default = "the spacing of the snapshots"
        elif default is None:
            default = ", ".join(dict.fromkeys(as_text(default_of(AVERAGERS[kind], name)) for kind in kinds))
        default = "; ".join(filter(None, (default, IN_TRAINING.get(name))))
        text = f"{', '.join(kinds)}: {values} (default: {default})"
        parser.add_argument(f"--{name}", help=text.replace("%", "%%"))


def start_note(start: str | None, kinds: Collection[str]) -> list[str]:
    """That an swa of these commands does not begin where a training's does. start: the flag."""
    if start is not None or "swa" not in kinds:
        return []
    return [
        f"swa: the mean of all snapshots from the first on; one attached to a training begins at {SWA_START} "
        "by default, and is another average. --start sets it."
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


def as_text(value: Any) -> str:
    """What `plain` reads as `value`."""
    return str(value).lower() if isinstance(value, bool) else str(value)
