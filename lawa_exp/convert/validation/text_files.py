"""Text in UTF-8: one file."""

from __future__ import annotations

from lawa_exp.axes.dataset.encodings import markup_of, text_of
from lawa_exp.convert.validation.content import Content, Documents, Place, sole_file
from lawa_exp.system.errors import UserError

SUFFIXES = (".txt", ".text", ".md", ".raw")  # of a folder's files; of a single file any that holds text


def content(place: Place) -> Content | None:
    """UserError: it is not text, or text of another form."""
    path = sole_file(place, SUFFIXES if place.path.is_dir() else ("",))
    if path is None:
        return None
    try:
        text = text_of(path)
        kind = markup_of(path, text)
    except UserError as error:
        raise UserError(str(error).replace("dataset.path=", "--data=", 1)) from None
    if kind:
        raise UserError(f"--data={path}: it is {kind}, not text")
    return Documents([text], None, f"all of {path}", is_rows=False)
