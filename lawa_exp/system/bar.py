"""A progress bar on a terminal."""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """A progress bar in bytes or another unit, where stderr is a terminal."""

    def __init__(self, total: int, unit: str = "B") -> None:
        self.bar = None
        if sys.stderr and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit=unit, unit_scale=unit == "B", dynamic_ncols=True)

    def __enter__(self) -> Any:
        return self.show

    def show(self, done: int) -> None:
        if self.bar:
            self.bar.update(done - self.bar.n)

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.close()
