"""What all samples that a model from outside is judged on have in common."""

from __future__ import annotations

import hashlib

import numpy as np

from lawa_exp.axes.dataset.base import BaseDataset
from lawa_exp.seams.dataset import Batch
from lawa_exp.seams.samples import Samples

LONGEST, UNKNOWN = 1024, 256  # tokens of a sample at most; of a model that does not say how many it takes
SEED, MASKS = 1, 7  # of masks and of the order of labelled samples; what the numbers are for
FEWEST = 10  # samples


class HeldOut(BaseDataset):
    """A single split, val. sample: one in words; tokens_per_sample: positions of it, 1 of an image.

    counted: what messages call a sample.
    """

    sample = "one"
    counted = "block"
    tokens_per_sample = 1

    def __init__(self, size: int, fingerprint: str, note: str) -> None:
        self.sizes, self.fingerprint, self.note = {"val": size}, fingerprint, note

    def train_batch(self, seed: int, samples: Samples) -> Batch:
        raise AssertionError("there is no training split")

    noise_batch = train_batch

    def train_targets(self, seed: int, samples: Samples) -> int:
        raise AssertionError("there is no training split")


def longest_of(context: int | None) -> int:
    """Tokens of a sample at most. context: what the model takes, where it says so."""
    return min(context or UNKNOWN, LONGEST)


def digest_of(*parts: str | bytes | np.ndarray) -> str:
    """Of what the samples are made of; of a long array its length and its first 16 million numbers."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{len(part)}:".encode() + np.ascontiguousarray(part[: 1 << 24]).tobytes())
        else:
            digest.update((part.encode() if isinstance(part, str) else part) + b"\0")
    return digest.hexdigest()


def padded(rows: list[np.ndarray], pad: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rows of several lengths as one array, int64 [rows, longest], and where they stand in it, as 0 and 1."""
    made = np.full((len(rows), max(map(len, rows))), pad, np.int64)
    attended = np.zeros_like(made)
    for i, row in enumerate(rows):
        at = slice(made.shape[1] - len(row), None) if left else slice(len(row))
        made[i, at], attended[i, at] = row, 1
    return made, attended
