"""What an averaged file says of itself in its metadata: by what it was made, of which steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

FILE = "average.json"  # next to averaged files whose metadata do not say it; `files`: their names
LISTED = 32  # steps that are listed; of more, the first, the last and the number


def about(averager: str, settings: Mapping[str, object], steps: Sequence[int] | None, inputs: int) -> str:
    """JSON, equal for equal averages. steps: of the inputs, oldest first; None: they are not known."""
    content: dict[str, object] = {"averager": averager, "settings": dict(settings), "inputs": inputs}
    if steps is not None:
        many = len(steps) > LISTED
        content["steps"] = {"first": steps[0], "last": steps[-1], "number": len(steps)} if many else list(steps)
    return json.dumps(content, sort_keys=True, default=str)
