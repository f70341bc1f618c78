"""Which averages the flags ask for."""

from __future__ import annotations

import argparse
import hashlib
import itertools
from typing import Any

from lawa_exp.averaging import AVERAGERS
from lawa_exp.averaging.flags import DEFAULTS, plain
from lawa_exp.config.rules import near, setting_names
from lawa_exp.runs.choices import choose
from lawa_exp.system.errors import UserError

PERIODS = ("spacing", "every")  # flags whose default is the spacing of the snapshots


def combinations(args: argparse.Namespace, snapshots: int, tracked: int | None = None) -> list[dict[str, Any]]:
    """One entry for each averager that the flags ask for; lists combine as a product.

    snapshots: steps between the snapshots; tracked: between the observations of the power_emas that were tracked.
    """
    entries = []
    kinds = args.avg.split(",")
    for kind in kinds:
        if kind not in AVERAGERS:
            raise UserError(f"--avg={kind}: {near(kind, AVERAGERS)}")
    used = {name for kind in kinds for name in setting_names(AVERAGERS[kind][0])}
    for name in {name for cls, _ in AVERAGERS.values() for name in setting_names(cls)} - used:
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is not a setting of {args.avg}: {', '.join(sorted(used))}")
    for kind in kinds:
        period = tracked if kind == "power_ema" and tracked else snapshots
        names = setting_names(AVERAGERS[kind][0])
        given = [getattr(args, name) or DEFAULTS.get(name) for name in names]
        lists = [[plain(v) for v in values.split(",")] if values else [period] for values in given]
        entries += [{"kind": kind, **dict(zip(names, values, strict=True))} for values in itertools.product(*lists)]
    return entries


def typed(entries: list[dict[str, Any]]) -> list[Any]:
    """The settings of the entries, where no training says how long an epoch is: steps are integers."""
    table = {name: cls for name, (cls, _) in AVERAGERS.items()}
    found = {}
    for entry in entries:
        settings = choose(table, entry, f"averagers.{entry['kind']}")
        for name in (*PERIODS, "start"):
            if isinstance(getattr(settings, name, 0), str):
                raise UserError(f"--{name}={getattr(settings, name)}: expected a number of steps here")
        found[settings.id] = settings
    return list(found.values())


def readout_name(ids: list[str]) -> str:
    """The ids, or the first of them and a hash of all where that would be long."""
    name = "+".join(ids)
    return name if len(name) <= 80 else f"{ids[0]}+{len(ids) - 1}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
