"""One training for the entries of a multirun that share a trajectory."""

from __future__ import annotations

import math
from dataclasses import replace

from lawa_exp.config.rules import flat
from lawa_exp.runs.choices import config_to
from lawa_exp.runs.prepare import Prepared
from lawa_exp.system.errors import UserError

MERGED = {  # what entries of one training may differ in, see `merge`; names, places and an unused horizon do not matter
    *("averagers", "evaluate.every", "save.every", "save.keep", "trajectory.every", "lr.horizon", "model.name"),
    *("init.from", "dataset.name", "dataset.path", "dataset.folder", "dataset.tokenizer_path"),
}


def merge(entries: list[Prepared]) -> Prepared:
    """One training for entries of one trajectory and budget that differ only in averaging: all their averagers.

    Its snapshots, evaluations and kept states are those of all of them. UserError names anything else they differ in.
    """
    first = entries[0]
    for other in entries[1:]:
        one, two = flat(config_to(first.config)), flat(config_to(other.config))
        for key in sorted(one):
            if one[key] != two.get(key) and key not in MERGED:
                raise UserError(
                    f"these entries are one training, but {key} is {one[key]} and {two.get(key)}: choose one"
                )
    configs = [p.config for p in entries]
    config = replace(
        first.config,
        averagers=tuple({a.id: a for c in configs for a in c.averagers}.values()),
        evaluate=replace(first.config.evaluate, every=math.gcd(*(int(c.evaluate.every) for c in configs))),
        save=replace(
            first.config.save,
            every=min(int(c.save.every or 1) for c in configs),
            keep=tuple(sorted({s for c in configs for s in c.save.keep})),
        ),
        trajectory=replace(first.config.trajectory, every=math.gcd(*(int(c.trajectory.every or 1) for c in configs))),
    )
    return replace(first, config=config)
