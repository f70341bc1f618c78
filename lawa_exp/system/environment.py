"""Variables of the environment that others set (torchrun, srun, OpenMP), read as they mean them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lawa_exp.system.errors import UserError


def number(name: str, default: int, low: int = 0, environment: Mapping[str, str] = os.environ) -> int:
    """The integer in a variable; `default` where it is unset or empty. UserError: it is none, or under `low`."""
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < low:
        raise UserError(f"{name}={text}: expected an integer of at least {low} in this variable of the environment")
    return int(text)


def ranks() -> tuple[int, int, int, int]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE. UserError: they do not go together, or are no numbers."""
    world = number("WORLD_SIZE", 1, 1)
    if world == 1:
        return 0, 1, 0, 1
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"WORLD_SIZE={world}: {name} is not set; torchrun and srun set both, else unset WORLD_SIZE")
    rank, local_world = number("RANK", 0), number("LOCAL_WORLD_SIZE", world, 1)
    local_rank = number("LOCAL_RANK", rank % local_world)
    for name, value, size in (("RANK", rank, world), ("LOCAL_RANK", local_rank, local_world)):
        if value >= size:
            raise UserError(f"{name}={value}: expected less than the {size} ranks that the environment names")
    if local_world > world:
        raise UserError(f"LOCAL_WORLD_SIZE={local_world}: expected at most WORLD_SIZE={world}")
    if not 0 < number("MASTER_PORT", 0) < 65536:
        raise UserError(f"MASTER_PORT={os.environ['MASTER_PORT']}: expected a port, 1 to 65535")
    return rank, world, local_rank, local_world
