"""Which averagers a request names."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

from lawa_exp.averaging import AVERAGERS, AveragerSettings
from lawa_exp.averaging.flags import FROM_FLAGS, KINDS, PERIODS, plain
from lawa_exp.averaging.settings import unresolved
from lawa_exp.config.rules import default_of, near, setting_names
from lawa_exp.readout.request import Averages
from lawa_exp.runs.choices import choose
from lawa_exp.system.errors import UserError


def combinations(
    requested: Averages, snapshots: int, tracked: int | None = None, attached: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """One entry for each averager, as in a configuration's `averagers`; lists combine as a product.

    snapshots: steps between the snapshots; tracked: between the observations of the power_emas that were tracked.
    attached: the entries of the run, which are taken as they are where flags cannot say them.
    """
    entries = []
    kinds = requested.kinds
    for kind in kinds:
        if kind not in AVERAGERS:
            raise UserError(f"--avg={kind}: {near(kind, AVERAGERS)}")
    from_flags = [kind for kind in kinds if kind in FROM_FLAGS]
    used = {name for kind in from_flags for name in setting_names(AVERAGERS[kind])}
    for name in KINDS.keys() - used:
        if name in requested.settings:
            raise UserError(f"--{name} is not a setting of {','.join(kinds)}: {', '.join(sorted(used))}")
    for kind in kinds:
        if kind not in FROM_FLAGS:
            own = [dict(entry) for entry in attached if entry["kind"] == kind]
            if not own:
                raise UserError(f"--avg={kind}: expected a run that has one attached; this has none")
            entries += own
            continue
        period = tracked if kind == "power_ema" and tracked else snapshots
        names = setting_names(AVERAGERS[kind])
        lists = [values_of(requested, kind, name, period) for name in names]
        entries += [{"kind": kind, **dict(zip(names, values, strict=True))} for values in itertools.product(*lists)]
    return entries


def values_of(requested: Averages, kind: str, name: str, period: int) -> list[Any]:
    """The requested values of a setting of `kind`, or its default."""
    if text := requested.settings.get(name):
        return [plain(value) for value in text.split(",")]
    return [period if name in PERIODS else default_of(AVERAGERS[kind], name)]


def typed(entries: list[dict[str, Any]]) -> list[AveragerSettings]:
    """The settings of the entries, where no training says how long an epoch is: steps are integers."""
    by_id = {}
    for entry in entries:
        if text := unresolved(AVERAGERS[entry["kind"]], entry):
            raise UserError(f"--{text}: expected a number of steps here")
        settings = choose(AVERAGERS, entry, f"averagers.{entry['kind']}")
        by_id[settings.id] = settings
    return list(by_id.values())


def readout_name(ids: list[str]) -> str:
    """The ids, or the first of them and a hash of all where that would be long."""
    name = "+".join(ids)
    return name if len(name) <= 80 else f"{ids[0]}+{len(ids) - 1}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
