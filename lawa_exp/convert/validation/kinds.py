"""The kinds of data that DATA may be, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Callable

from lawa_exp.axes.dataset.tables import listed
from lawa_exp.convert.validation import datasets_on_disk, image_folders, rows, text_files, token_files
from lawa_exp.convert.validation.content import Content, Place
from lawa_exp.system.errors import UserError

KINDS: dict[str, Callable[[Place], Content | None]] = {
    "a data set that `datasets` saved": datasets_on_disk.content,
    "images in a folder for each class": image_folders.content,
    "tokens (val.bin)": token_files.content,
    "JSON lines, CSV or Parquet": rows.content,
    "text": text_files.content,
}


def content_of(place: Place) -> Content:
    """UserError: it is of no kind, and what lies there."""
    for kind in KINDS.values():
        if (content := kind(place)) is not None:
            return content
    names = sorted(p.name for p in place.path.iterdir()) if place.path.is_dir() else [place.path.name]
    raise UserError(f"{place}: expected {', '.join(KINDS)}; there is {listed(names) or 'nothing'}")
