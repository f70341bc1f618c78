"""When, along the inputs, each average begins, goes on and is complete, and which sums are kept meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lawa_exp.formats.stored import Average


@dataclass
class Event:
    """What an input's chunk is for: sums in slots lo .. hi-1 that it begins or joins, and averages complete with it."""

    begins: list[tuple[int, float]] = field(default_factory=list)
    joins: list[tuple[int, int, float]] = field(default_factory=list)
    ends: list[tuple[int, int, float]] = field(default_factory=list)  # slot, average, divisor


Schedule = dict[int, Event]  # by input, ascending


def schedule(averages: dict[int, Average]) -> tuple[Schedule, int]:
    """The events of some averages (by number), and the slots that they need at once."""
    events: Schedule = {i: Event() for i in sorted({i for a in averages.values() for i in a.inputs})}
    free: list[int] = []
    slots = 0
    starting = sorted(averages, key=lambda a: averages[a].inputs[0])
    open_: dict[int, int] = {}  # average -> slot
    weights = {a: dict(zip(average.inputs, average.weights, strict=True)) for a, average in averages.items()}
    for i, event in events.items():
        joined = [(slot, weights[a][i]) for a, slot in open_.items() if i in weights[a]]
        while starting and averages[starting[0]].inputs[0] == i:
            a = starting.pop(0)
            if free:
                slot = free.pop(0)
            else:
                slot, slots = slots, slots + 1
            open_[a] = slot
            event.begins.append((slot, averages[a].weights[0]))
        for slot, weight in sorted(joined):  # neighbours with equal weights are added in one go
            last = event.joins[-1] if event.joins else None
            if last and last[1] == slot and last[2] == weight:
                event.joins[-1] = (last[0], slot + 1, weight)
            else:
                event.joins.append((slot, slot + 1, weight))
        for a in [a for a in open_ if averages[a].inputs[-1] == i]:
            slot = open_.pop(a)
            event.ends.append((slot, a, math.fsum(averages[a].weights)))
            free.append(slot)
    return events, slots
