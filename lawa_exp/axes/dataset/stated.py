"""Data sets that are not here, by their published sizes: enough for a plan, nothing to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.axes.dataset.images import HELD_OUT
from lawa_exp.axes.dataset.places import sole

FACTS = Path(__file__).with_suffix(".yaml")
UNITS = {"tokens": "token", "masked tokens": "masked token", "images": "image"}


@dataclass(frozen=True)
class Stated:
    """What a plan asks of an open data set (see `lawa_exp.data`)."""

    sizes: dict[str, int]
    tokens_per_sample: int
    sample: str
    unit: str
    note: str
    vocab_size: int | None
    channels: int | None
    image_size: int | None
    classes: int | None
    fingerprint: str = "unknown"


def stated(settings: BaseSettings, context: int | None) -> Stated | None:
    """The data set of these settings by its published sizes; None where they are not known."""
    import yaml

    facts = yaml.safe_load(FACTS.read_text()).get(settings.name)
    if facts is None:
        return None
    unit = UNITS[settings.inputs]
    found = {split: facts[split] for split in ("train", "val", "test") if split in facts}
    image_size = facts.get("image_size", settings.image_size)
    sample = f"up to {context} tokens"
    if unit == "image":
        sample = f"{facts['channels']}x{image_size}x{image_size} numbers in {facts['classes']} classes"
        if "val" not in found:
            found["val"] = int(HELD_OUT * found["train"])
            found["train"] -= found["val"]
    elif unit == "token" and context:  # as in `Blocks`
        sample = f"{context} tokens"
        found = {s: (n - (context if s == "train" else 1)) // context for s, n in found.items()}
    held_out = "" if "test" in found else f"; {sole('val')}"
    return Stated(
        {"test": found["val"], **found},
        context or 1,
        sample,
        unit,
        f"not here: planned with stated sizes, {facts['source']}; the run's folder will have another name{held_out}",
        facts.get("vocab_size"),
        facts.get("channels"),
        image_size,
        facts.get("classes"),
    )
