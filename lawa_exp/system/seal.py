"""A small JSON object that says itself whether it is what was written: it has the CRC32 of the rest as `crc32`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

KEY = "crc32"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**content, KEY: _crc(content)}


def unsealed(text: str | bytes) -> dict[str, Any]:
    """The object without its checksum. ValueError: it is no object, or not what was written.

    One without a checksum was written by hand, or by an earlier version.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    crc = content.pop(KEY, None)
    if crc is not None and crc != _crc(content):
        raise ValueError(f"its {KEY} is not that of its content")
    return content


def _crc(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
