"""The page: page.html with the style, the script and the content written into it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path

from lawa_exp.system.errors import UserError
from lawa_exp.system.files import size_text, write_text_atomically

FOLDER = Path(__file__).parent


def write_page(content: Mapping[str, object], out: Path) -> str:
    """Writes the page; returns its size as text. UserError: there is no folder for it."""
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out={out}: expected a file in a folder that exists")
    data = json.dumps(dict(content), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")  # ends no element
    page = (FOLDER / "page.html").read_text()
    parts = {"TITLE": html.escape(str(content["title"])), "DATA": data}
    parts |= {"STYLE": (FOLDER / "page.css").read_text(), "SCRIPT": (FOLDER / "page.js").read_text()}
    before, *rest = page.split("{{")
    for piece in rest:
        name, after = piece.split("}}", 1)
        before += parts[name] + after
    write_text_atomically(out, before)
    return size_text(len(before.encode()))
