"""Data sets that are not here, by their published sizes: enough for a plan, nothing to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lawa_exp.axes.dataset.images import HELD_OUT
from lawa_exp.axes.dataset.places import sole
from lawa_exp.seams.dataset import DatasetSettings

FACTS = Path(__file__).with_suffix(".yaml")
UNITS = {"tokens": "token", "masked tokens": "masked token", "images": "image"}


@dataclass(frozen=True)
class Stated:
    """See `seams.dataset.DatasetFacts`."""

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


def stated(settings: DatasetSettings, context: int | None) -> Stated | None:
    """The data set of these settings by its published sizes; None where they are not known."""
    import yaml

    facts = yaml.safe_load(FACTS.read_text()).get(settings.name)
    if facts is None:
        return None
    unit = UNITS[settings.inputs]
    sizes = {split: facts[split] for split in ("train", "val", "test") if split in facts}
    image_size = facts.get("image_size", settings.image_size)
    sample = f"up to {context} tokens"
    if unit == "image":
        sample = f"{facts['channels']}x{image_size}x{image_size} numbers in {facts['classes']} classes"
        if "val" not in sizes:
            sizes["val"] = int(HELD_OUT * sizes["train"])
            sizes["train"] -= sizes["val"]
    elif unit == "token" and context:  # as in `Blocks`
        sample = f"{context} tokens"
        sizes = {s: (n - (context if s == "train" else 1)) // context for s, n in sizes.items()}
    held_out = "" if "test" in sizes else f"; {sole('val')}"
    return Stated(
        {"test": sizes["val"], **sizes},
        context or 1,
        sample,
        unit,
        f"not here: planned with stated sizes, {facts['source']}; the run's folder will have another name{held_out}",
        facts.get("vocab_size"),
        facts.get("channels"),
        image_size,
        facts.get("classes"),
    )
