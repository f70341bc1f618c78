"""The examples of the pages in docs/."""

import re
from pathlib import Path


def example(page: str, part: str) -> str:
    """The Python example of docs/PAGE that holds `part`."""
    text = (Path(__file__).parents[1] / "docs" / page).read_text()
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if part in code)
    return found
