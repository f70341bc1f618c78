"""One training for the entries of a multirun that share a trajectory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lawa_exp.axes.configuration import Config
from lawa_exp.config.rules import flat
from lawa_exp.runs.choices import config_to
from lawa_exp.runs.identity import DETERMINING, LISTED
from lawa_exp.runs.prepare import Prepared
from lawa_exp.system.errors import UserError
from lawa_exp.system.fingerprint import merged

MERGED = {
    "averagers",
    "watch",
    "loggers",
    "evaluate.every",
    "save.every",
    "save.keep",
    "trajectory.every",
}  # see `merge`


IN_IDS = {*DETERMINING, *LISTED, "init", "teacher"}


def observing(config: Config) -> dict[str, Any]:
    """The settings by key that are in no trajectory's id. What differs in the others, of one id, does not matter."""
    return flat({name: part for name, part in config_to(config).items() if name not in IN_IDS})


def merge(entries: list[Prepared]) -> Prepared:
    """One training for entries of one trajectory and budget that differ only in averaging: all their averagers.

    Its snapshots, evaluations and kept states are those of all of them. UserError names anything else they differ in.
    """
    first = entries[0]
    for other in entries[1:]:
        one, two = observing(first.config), observing(other.config)
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key) and key not in MERGED:
                raise UserError(
                    f"these entries are one training, but {key} is {one.get(key)} and {two.get(key)}: choose one"
                )
    configs = [p.config for p in entries]
    watches = dict.fromkeys(watch for c in configs for watch in c.watch)
    loggers = dict.fromkeys(logger for c in configs for logger in c.loggers)
    for group, named in (("watch", watches), ("logger", loggers)):
        if len({name for name, _ in named}) < len(named):
            raise UserError(
                f"these entries are one training, but a {group} of one name has other settings: name them apart"
            )
    config = replace(
        first.config,
        watch=tuple(watches),
        loggers=tuple(loggers),
        averagers=tuple({a.id: a for c in configs for a in c.averagers}.values()),
        evaluate=replace(first.config.evaluate, every=math.gcd(*(c.evaluate.every for c in configs))),
        save=replace(
            first.config.save,
            every=min(c.save.every for c in configs),
            keep=tuple(sorted({s for c in configs for s in c.save.keep})),
        ),
        trajectory=replace(first.config.trajectory, every=math.gcd(*(c.trajectory.every for c in configs))),
    )
    codes = [p.code for p in entries if p.code]
    return replace(first, config=config, code=merged(codes) if codes else None)
