"""Language-modelling samples: blocks of `context` tokens and the token after each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lawa_exp.axes.dataset.base import BaseDataset
from lawa_exp.axes.dataset.order import NOISE
from lawa_exp.seams.dataset import Batch
from lawa_exp.seams.samples import Samples
from lawa_exp.system.errors import UserError
from lawa_exp.system.hashing import hash_of, keys_of, uniform

WHOLE_FILE = 64 << 20  # bytes up to which a fingerprint reads everything
PIECES, PIECE = 64, 1 << 20  # how many pieces, of how many bytes, it reads of a larger file


class Blocks(BaseDataset):
    """Token arrays cut into samples. Train blocks start at a phase that changes with the epoch; held-out ones at 0."""

    vocab_size: int
    unit = "token"

    def __init__(
        self,
        splits: dict[str, np.ndarray],
        context: int,
        vocab_size: int,
        fingerprint: str,
        name: str,
        note: str,
        sampled: Sequence[str] = (),
    ) -> None:
        self.splits = splits
        self.context = context
        self.tokens_per_sample = context
        self.sample = f"{context} tokens"
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.sampled = sampled
        self.note = note
        for split, tokens in splits.items():
            if len(tokens) < 2 * context:
                raise UserError(
                    f"dataset={name}: its {split} split has {len(tokens)} tokens, expected at least {2 * context} "
                    f"(twice model.context={context}); choose a smaller model.context or more text"
                )
        # The last `context` tokens are left out of the count so that every phase has as many blocks.
        self.sizes = {
            s: (len(t) - context) // context if s == "train" else (len(t) - 1) // context for s, t in splits.items()
        }

    def train_batch(self, seed: int, samples: Samples) -> Batch:
        """These samples of training: inputs and targets, int64 [len(samples), context]."""
        epochs = samples.numbers // self.sizes["train"]
        phases = {e: int(hash_of(seed, e, 1) % np.uint64(self.context)) for e in np.unique(epochs).tolist()}
        starts = samples.indices * self.context + np.array([phases[e] for e in epochs.tolist()])
        return self._cut("train", starts)

    def noise_batch(self, seed: int, samples: Samples) -> Batch:
        """In place of `train_batch`: tokens drawn uniformly from the vocabulary."""
        draws = uniform(keys_of(seed, NOISE, samples.numbers), self.context + 1)
        rows = (draws * self.vocab_size).astype(np.int64)
        return rows[:, :-1].copy(), rows[:, 1:].copy()

    def train_targets(self, seed: int, samples: Samples) -> int:
        """How many tokens are to be predicted in these samples of `train_batch`."""
        return len(samples) * self.context

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """The samples of a split at `indices`: inputs and targets, int64 [len(indices), context]."""
        return self._cut(split, np.asarray(indices) * self.context)

    def _cut(self, split: str, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, length = self.splits[split], self.context + 1
        rows = np.empty((len(starts), length), np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = tokens[start : start + length]
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def fingerprint_files(paths: list[Path]) -> str:
    """A hash of the files' contents; of a file over 64 MiB, of its size and 64 evenly spaced pieces of 1 MiB."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.stat().st_size}:".encode())
        for piece in pieces(path):
            digest.update(piece)
    return digest.hexdigest()


def sampled(paths: Iterable[Path]) -> list[str]:
    """The files that their fingerprint does not read whole."""
    return [str(path) for path in paths if path.stat().st_size > WHOLE_FILE]


def pieces(path: Path) -> Iterator[bytes]:
    """A small file whole; of one over 64 MiB, 64 evenly spaced pieces of 1 MiB, at even places."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_FILE:
            yield file.read()
            return
        for piece in range(PIECES):
            file.seek((size - PIECE) * piece // (PIECES - 1) // 2 * 2)
            yield file.read(PIECE)
