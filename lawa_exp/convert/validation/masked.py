"""Masked tokens: of rows, each by itself as it is trained on, or of blocks of one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from lawa_exp.convert.recognise.encoder import Encoder
from lawa_exp.convert.validation.held_out import MASKS, SEED, HeldOut, padded
from lawa_exp.seams.dataset import Batch
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.hashing import keys_of, uniform

SHARE, UNCHANGED, RANDOM = 0.15, 0.1, 0.1  # of tokens; of these left and replaced (Devlin et al. 2019)


class MaskedTokens(HeldOut):
    """Samples with 15% of their tokens masked, by the number of the sample alone."""

    unit = "masked token"

    def __init__(
        self,
        row: Callable[[int], np.ndarray],
        size: int,
        longest: int,
        encoder: Encoder,
        fingerprint: str,
        note: str,
        counted: str = "block",
    ) -> None:
        """row: the tokens of a sample with the special ones, int64 [up to longest]."""
        self.row, self.encoder, self.counted = row, encoder, counted
        self.others = np.setdiff1d(np.arange(encoder.vocab_size), list(encoder.special))  # what a token is replaced by
        self.sample, self.tokens_per_sample = f"{longest} tokens", longest
        super().__init__(size, fingerprint, note)

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """Inputs by name and targets, int64 [len(indices), longest of them]; these are -100 but where it is masked."""
        e, longest = self.encoder, self.tokens_per_sample
        assert e.mask is not None
        rows, attended = padded([self.row(i) for i in indices.tolist()], e.pad or 0, e.pads_left)
        draws = uniform(keys_of(SEED, MASKS, np.asarray(indices)), 3 * longest).reshape(len(rows), 3, longest)
        draws = draws[..., : rows.shape[1]] if not e.pads_left else draws[..., longest - rows.shape[1] :]
        masked = (draws[:, 0] < SHARE) & ~np.isin(rows, list(e.special)) & (attended == 1)
        other = self.others[(draws[:, 2] * len(self.others)).astype(np.int64)]
        replaced = np.where(draws[:, 1] < RANDOM, other, np.where(draws[:, 1] < RANDOM + UNCHANGED, rows, e.mask))
        inputs = {"input_ids": np.where(masked, replaced, rows), "attention_mask": attended}
        return inputs, np.where(masked, rows, IGNORE)


def masked_blocks(tokens: np.ndarray, block: int, encoder: Encoder, fingerprint: str, note: str) -> MaskedTokens:
    """Neighbouring parts of one text, each between the special tokens that stand around a sample."""
    before, after = ([] if e is None else [e] for e in (encoder.first, encoder.last))
    width = block - len(before) - len(after)

    def row(i: int) -> np.ndarray:
        return np.array([*before, *tokens[i * width : (i + 1) * width].tolist(), *after], np.int64)

    return MaskedTokens(cache(row), len(tokens) // width, block, encoder, fingerprint, note)


def masked_rows(texts: Sequence[str], longest: int, encoder: Encoder, fingerprint: str, note: str) -> MaskedTokens:
    """Each text by itself, cut off where it is longer than the model takes."""
    sample = encoder.sample
    assert sample is not None

    def row(i: int) -> np.ndarray:
        return np.array(sample(texts[i], longest), np.int64)

    return MaskedTokens(cache(row), len(texts), longest, encoder, fingerprint, note, "row")
