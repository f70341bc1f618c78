"""What an averaged file says of itself in its metadata: by what it was made, of which steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE = "average.json"  # next to averaged files whose metadata do not say it; `files`: their names
LISTED = 32  # steps that are listed; of more, the first, the last and the number


def about(averager: str, settings: Mapping[str, object], steps: Sequence[int] | None, inputs: int, **more: str) -> str:
    """JSON. steps: of the inputs, oldest first; None: they are not known. more: where it comes from."""
    content: dict[str, object] = {"averager": averager, "settings": dict(settings), "inputs": inputs, **more}
    if steps is not None:
        many = len(steps) > LISTED
        content["steps"] = {"first": steps[0], "last": steps[-1], "number": len(steps)} if many else list(steps)
    return json.dumps(content, sort_keys=True, default=str)


def trajectory_id(folder: Path) -> str | None:
    """Of a run of ours, or of its trajectory/, by the first line of its config.yaml; None of other folders."""
    config = (folder if (folder / "trajectory").is_dir() else folder.parent) / "config.yaml"
    if not config.is_file():
        return None
    with config.open(errors="replace") as file:
        key, _, id = file.readline(200).partition(": ")
    return id.strip() if key == "trajectory_id" else None
