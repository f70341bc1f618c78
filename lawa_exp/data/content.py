"""What lies in files that a fingerprint does not read whole, read once and again when they change.

A fingerprint is quick, as every plan asks for it: of a large file it reads pieces, of images their names and sizes. It
stays the same where a file is edited in place. The content is known by the checksums of all files, which are kept with
each file's size, times and number: what has not been touched since is not read again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lawa_exp.checkpoint.commit import file_crc32
from lawa_exp.data import cache
from lawa_exp.files import size_text

READERS = 8  # threads
SAID = 1 << 30  # bytes, of which it is said that they are read
FRESH = 2 * 10**9  # nanoseconds: a change so soon after another may not show in a file's times


def content_digest(files: Sequence[str], say: Callable[[str], None] = lambda _: None) -> str:
    """A hash of the files' contents, in their order; it does not depend on where they are."""
    places = "\0".join(str(Path(file).absolute()) for file in files)
    key = f"content-{hashlib.sha256(places.encode()).hexdigest()}"
    began = time.time_ns()
    facts = np.array([_facts(file) for file in files], np.int64)
    crcs = np.zeros(len(files), np.int64)
    known = cache.load(key)
    unread = np.ones(len(files), bool)
    if known is not None and known.shape == (len(files), 5):
        unread = (known[:, :4] != facts).any(1)
        crcs = np.where(unread, 0, known[:, 4])
    if unread.any():
        numbers = np.flatnonzero(unread)
        size = int(facts[numbers, 0].sum())
        if size > SAID:
            say(f"reading {size_text(size)} of data in {len(numbers):,} files, so that a later change is noticed")
        with ThreadPoolExecutor(READERS) as pool:
            crcs[numbers] = list(pool.map(lambda number: file_crc32(Path(files[number])), numbers.tolist()))
        fresh = facts[:, 2] > began - FRESH
        cache.save(key, np.column_stack([np.where(fresh[:, None], -1, facts), crcs]))
    return hashlib.sha256(np.column_stack([facts[:, 0], crcs]).astype("<i8").tobytes()).hexdigest()


def _facts(file: str) -> tuple[int, int, int, int]:
    """Size, times of the last change (of the content, which can be set, and of anything, which cannot) and number."""
    found = os.stat(file)  # noqa: PTH116  (millions of files)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
