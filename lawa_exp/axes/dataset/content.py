"""What lies in files that a fingerprint does not read whole, read once and again when they change.

A fingerprint is quick, as every plan asks for it: of a large file it reads pieces, of images their names and sizes. It
stays the same where a file is edited in place. The content is known by the checksums of all files, which are kept with
each file's size, times and number: what has not been touched since is not read again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import numpy as np

from lawa_exp.axes.dataset import cache
from lawa_exp.storage.commit import file_crc32
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.files import size_text

READERS = 8  # threads
PART = 256  # files that a thread takes at once
PERIOD = 30.0  # seconds: what was read is kept as often, and the other ranks, which wait for rank 0, hear from it
SAID = 1 << 30  # bytes, of which it is said that they are read
FRESH = 2 * 10**9  # nanoseconds: a change so soon after another may not show in a file's times
T = TypeVar("T")


def content_digest(files: Sequence[str], ranks: Ranks) -> str | None:
    """A hash of the files' contents, in their order, on every rank; None of no files.

    It does not depend on where they are. Rank 0 reads them, as long as it takes.
    """
    reading = _reading(files)
    digest = None
    while len(files) and digest is None:
        digest = ranks.from_main(next(reading) if ranks.is_main else None)
    return digest


def _reading(files: Sequence[str]) -> Iterator[str | None]:
    """Yields None every PERIOD, when the cache has what was read up to then, and the hash last."""
    places = "\0".join(os.path.abspath(file) for file in files)  # noqa: PTH100  (millions of files)
    key = f"content-{hashlib.sha256(places.encode()).hexdigest()}"
    began = time.time_ns()
    facts = np.zeros((len(files), 4), np.int64)
    for finished in _worked(lambda number: _facts(files[number]), np.arange(len(files))):
        for part, results in finished:
            facts[part] = results
        yield None
    cached = cache.load(key)
    if cached is None or cached.shape != (len(files), 5):
        cached = np.full((len(files), 5), -1, np.int64)
    unread = (cached[:, :4] != facts).any(1)
    crcs = cached[:, 4].copy()
    fresh = facts[:, 2] > began - FRESH
    if (size := int(facts[unread, 0].sum())) > SAID:
        files_text = f"{size_text(size)} of data in {unread.sum():,} files"
        print(f"reading {files_text}, so that a later change is noticed", flush=True)
    for read in _worked(lambda number: file_crc32(Path(files[number])), np.flatnonzero(unread)):
        for part, sums in read:
            crcs[part] = sums
            unread[part] = False
        cache.save(key, np.column_stack([np.where((unread | fresh)[:, None], -1, facts), crcs]))
        yield None
    yield hashlib.sha256(np.column_stack([facts[:, 0], crcs]).astype("<i8").tobytes()).hexdigest()


def _worked(work: Callable[[int], T], numbers: np.ndarray) -> Iterator[list[tuple[np.ndarray, list[T]]]]:
    """The results of `work` on each number, in threads: of each PERIOD what was done in it, (numbers, results)."""
    size = max(1, min(PART, len(numbers) // READERS))
    pool = ThreadPoolExecutor(READERS)
    try:
        parts = (numbers[first : first + size] for first in range(0, len(numbers), size))
        left = {pool.submit(lambda part: [work(number) for number in part.tolist()], part): part for part in parts}
        while left:
            done, _ = wait(left, PERIOD, FIRST_EXCEPTION)
            yield [(left.pop(task), task.result()) for task in done]
    finally:
        pool.shutdown(cancel_futures=True)


def _facts(file: str) -> tuple[int, int, int, int]:
    """Size, times of the last change (of the content, which can be set, and of anything, which cannot) and number."""
    stat = os.stat(file)  # noqa: PTH116  (millions of files)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
