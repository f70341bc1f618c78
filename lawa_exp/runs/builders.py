"""The code of the user's own that a training names, by its place: `model`, `layers.0`, `averagers.1`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lawa_exp.axes.configuration import Config, Unresolved
from lawa_exp.config.parts import Part
from lawa_exp.storage import custom
from lawa_exp.storage.custom import Builder

FOR_READING = {"model", "dataset", "batch", "layers", "averagers"}  # what evaluating the weights of a run builds


def builders(parts: Config | Unresolved) -> dict[str, Builder]:
    """Every builder by its place."""
    named: dict[str, Builder] = {}
    for field in fields(parts):
        part = getattr(parts, field.name)
        if not isinstance(part, tuple):
            _add(named, field.name, field.name, part)
            continue
        for number, entry in enumerate(part):  # a list of choices has names, one of averagers has none
            name, settings = entry if isinstance(entry, tuple) else ("custom", entry)
            _add(named, f"{field.name}.{number}", f"{field.name}.{name}", settings)
    return named


def _add(named: dict[str, Builder], place: str, key: str, part: Any) -> None:
    values = part.values if isinstance(part, Part) else vars(part) if hasattr(part, "__dict__") else {}
    if values.get("builder"):
        named[place] = Builder(key, values["builder"], values.get("args"), values.get("code"))


def admit(
    parts: Config | Unresolved,
    written: Mapping[str, object],
    folder: Path,
    trust: bool,
    groups: Collection[str] = FOR_READING,
) -> None:
    """Lets the builders of these groups run, those that evaluating the weights of a run takes; see `custom.admit`."""
    needed = {place: b for place, b in builders(parts).items() if place.partition(".")[0] in groups}
    custom.admit(needed, written, folder, trust)
