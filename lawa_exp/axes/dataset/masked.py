"""Masked language modelling as fairseq's task `masked_lm` does it: blocks of whole lines, 15% of their tokens masked.

The masks are fairseq's own, number for number: a function of (seed, epoch, number of the block). The seed of training
is the run's; that of evaluation is always fairseq's default, 1, in its first epoch, as `fairseq-validate` has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from lawa_exp.axes.dataset.base import BaseDataset, BaseSettings
from lawa_exp.axes.dataset.blocks import fingerprint_files, sampled
from lawa_exp.axes.dataset.fairseq import (
    BOS,
    PAD,
    SPECIAL,
    UNK,
    Lines,
    encode_lines,
    is_binary,
    lines_of,
    open_binary,
    read_dictionary,
)
from lawa_exp.axes.dataset.order import NOISE
from lawa_exp.axes.dataset.places import find, sole
from lawa_exp.axes.dataset.text import kept, read_pydocs, read_splits
from lawa_exp.axes.dataset.tokenizers import find_gpt2, load_tokenizer
from lawa_exp.config.rules import one_of, optional, plain_name, setting, text
from lawa_exp.seams.dataset import Batch
from lawa_exp.seams.samples import Samples
from lawa_exp.seams.task import Task
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_small
from lawa_exp.system.hashing import keys_of, uniform

MASKED, UNCHANGED, RANDOM = 0.15, 0.1, 0.1  # share of the tokens; of these, left as they are; replaced at random
EVALUATION = (1, 1)  # (seed, epoch) of the masks of evaluation
IGNORE = -100  # a target that does not count, as in models.objective


@dataclass(frozen=True)
class MaskedLMSettings(BaseSettings):
    """`path`: a folder that `fairseq-preprocess --only-source` wrote (dict.txt, train.bin, ...), or raw text.

    format: `fairseq`, `text` (files as those of dataset=text, through GPT-2's BPE and the dict.txt in the folder
    of its files), or `auto`: fairseq where there is a dict.txt or an index.
    """

    inputs: ClassVar[str] = "masked tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(optional(text()), "where the files are; null: in LAWA_DATA, then in data/")
    folder: str | None = setting(optional(text()), "the folder below LAWA_DATA that holds the files")
    format: str = setting(one_of("auto", "fairseq", "text"), "how the files are written; auto looks at them")
    tokenizer_path: str | None = setting(
        optional(text()), "a tokenizer.json, or a folder that holds the tokenizer's files"
    )

    def open(self, context: int) -> MaskedBlocks:
        get = (
            "prepare it with `fairseq-preprocess --only-source`, or give a folder with train.txt, valid.txt and "
            "test.txt with dataset.path=DIR"
        )
        place = find(self.name, self.path, self.folder, (), get)
        if self.format == "fairseq" or (self.format == "auto" and is_binary(place)):
            ids, splits, files = open_binary(place, self.name)
            note = "" if (place / "test.idx").is_file() else sole("valid")
            return MaskedBlocks(splits, ids, context, fingerprint_files(files), self.name, note, sampled(files))
        return self._from_text(*read_splits(place), context)

    def _from_text(self, texts: dict[str, str], note: str, context: int) -> MaskedBlocks:
        tokenizer = load_tokenizer("gpt2", self.tokenizer_path)
        dictionary = find_gpt2(self.tokenizer_path) / "dict.txt"
        if not dictionary.is_file():
            raise UserError(
                f"dataset={self.name}: raw text needs fairseq's dictionary of GPT-2's tokens, {dictionary}, "
                "from https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/dict.txt"
            )
        ids = read_dictionary(dictionary)
        table = np.array([ids.get(str(token), UNK) for token in range(tokenizer.vocab_size)], np.int32)
        head = hashlib.sha256(tokenizer.fingerprint.encode() + read_small(dictionary))
        splits, whole = {}, head.copy()
        for split, content in texts.items():
            digest = head.copy()
            digest.update(content.encode())
            whole.update(digest.digest())
            encode = partial(encode_lines, content, lambda line: table[tokenizer.encode(line.strip())])
            splits[split] = lines_of(kept(f"{digest.hexdigest()}-lines", encode))
        return MaskedBlocks(splits, ids, context, whole.hexdigest(), self.name, note)


@dataclass(frozen=True)
class PydocsMLMSettings(BaseSettings):
    """The text and the splits of dataset=pydocs, as lines of bytes: byte b is symbol 4 + b, behind fairseq's special
    ones, and <mask> is the last, number 260."""

    inputs: ClassVar[str] = "masked tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")

    def open(self, context: int) -> MaskedBlocks:
        splits, note = read_pydocs()
        tokenizer = load_tokenizer("bytes", None)
        symbols = (*SPECIAL, *map(str, range(tokenizer.vocab_size)), "<mask>")
        digest, lines = hashlib.sha256(" ".join(symbols).encode()), {}
        for split, content in splits.items():
            digest.update(hashlib.sha256(content.encode()).digest())
            encoded = encode_lines(
                content, lambda line: tokenizer.encode(line.rstrip("\n")).astype(np.int32) + len(SPECIAL)
            )
            lines[split] = lines_of(encoded)
        ids = {symbol: number for number, symbol in enumerate(symbols)}
        return MaskedBlocks(lines, ids, context, digest.hexdigest(), self.name, note)


class MaskedBlocks(BaseDataset):
    """Samples of <s> and whole lines, up to `context` tokens, padded to it; the targets are the tokens masked."""

    vocab_size: int
    unit = "masked token"

    @property
    def usual_task(self) -> Task:
        """In bits too: so are the losses that fairseq prints, and what was published from them."""
        from lawa_exp.axes.dataset.tasks import Tokens

        return Tokens(self.unit, in_bits=True)

    def __init__(
        self,
        splits: dict[str, Lines],
        ids: dict[str, int],
        context: int,
        fingerprint: str,
        name: str,
        note: str,
        sampled: Sequence[str] = (),
    ) -> None:
        """ids: of the dictionary's symbols; <mask> gets the next one. UserError: no line fits into `context`."""
        self.tokens = {split: lines.tokens for split, lines in splits.items()}
        self.context = self.tokens_per_sample = context
        self.sample = f"up to {context} tokens"
        self.mask = ids.get("<mask>", len(ids))
        self.vocab_size = max(len(ids), self.mask + 1)
        self.fingerprint = fingerprint
        self.sampled = sampled
        weights = np.ones(self.vocab_size)
        weights[: len(SPECIAL)] = 0  # what a token is replaced with at random
        self.cumulated = (weights / weights.sum()).cumsum()
        self.cumulated /= self.cumulated[-1]
        self.blocks: dict[str, np.ndarray] = {}
        self.numbers: dict[str, np.ndarray] = {}
        notes = [note] if note else []
        for split, lines in splits.items():
            blocks = complete_blocks(lines.sizes, context - 1)
            fits = blocks[:, 1] - blocks[:, 0] < context
            if not fits.any():
                raise UserError(f"dataset={name}: no line of its {split} split fits into model.context={context}")
            if not fits.all():
                notes.append(f"{(~fits).sum():,} lines of {split} are longer than {context - 1} tokens and left out")
            self.blocks[split] = blocks[fits]
            self.numbers[split] = np.flatnonzero(fits)  # fairseq counts the blocks that it leaves out
        self.note = "; ".join(notes)
        self.sizes = {split: len(blocks) for split, blocks in self.blocks.items()}

    def train_batch(self, seed: int, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """These samples of training: inputs and targets, int64 [len(samples), context]."""
        draws = [(seed, epoch + 1) for epoch in self._epochs(samples).tolist()]
        return self._batch("train", samples.indices, draws)

    def noise_batch(self, seed: int, samples: Samples) -> Batch:
        """In place of `train_batch`: its tokens and targets, drawn uniformly from the symbols that are not special."""
        inputs, targets = self.train_batch(seed, samples)
        keys = keys_of(seed, NOISE, samples.numbers)
        noise = self.cumulated.searchsorted(uniform(keys, 2 * self.context), side="right")
        inputs = np.where(inputs == PAD, inputs, noise[:, : self.context])
        return inputs, np.where(targets == IGNORE, targets, noise[:, self.context :])

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """The samples of a split at `indices`: inputs and targets, int64 [len(indices), context]."""
        return self._batch(split, np.asarray(indices), [EVALUATION] * len(indices))

    def train_targets(self, seed: int, samples: Samples) -> int:
        """How many tokens are masked in these samples of `train_batch`."""
        lengths = np.diff(self.blocks["train"][samples.indices])[:, 0] + 1
        random, count = np.random.RandomState(0), 0
        numbers = self.numbers["train"][samples.indices]
        for epoch, number, length in zip(self._epochs(samples), numbers, lengths, strict=True):
            random.seed(seed_of(seed, epoch + 1, number))
            count += _count(random, int(length))
        return count

    def _epochs(self, samples: Samples) -> np.ndarray:
        return samples.numbers // self.sizes["train"]

    def _batch(self, split: str, indices: np.ndarray, draws: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.full((len(indices), self.context), PAD, np.int64)
        targets = np.full((len(indices), self.context), IGNORE, np.int64)
        random = np.random.RandomState(0)
        for row, (index, draw) in enumerate(zip(indices.tolist(), draws, strict=True)):
            start, stop = self.blocks[split][index].tolist()
            length = stop - start + 1
            clean = np.empty(length, np.int64)
            clean[0] = BOS
            clean[1:] = self.tokens[split][start:stop]
            random.seed(seed_of(*draw, self.numbers[split][index]))
            source, predicted = self.masked(clean, random)
            inputs[row, :length] = source
            targets[row, :length][predicted] = clean[predicted]
        return inputs, targets

    def masked(self, clean: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """(the tokens with some of them masked, which are to be predicted: bool), in the order of fairseq's draws."""
        size = len(clean)
        predicted = np.zeros(size, bool)
        predicted[random.choice(size, _count(random, size), replace=False)] = True
        other = predicted & (random.random_sample(size) < UNCHANGED + RANDOM)
        unchanged = other & (random.random_sample(size) < UNCHANGED / (UNCHANGED + RANDOM))
        replaced = other & ~unchanged
        source = clean.copy()
        source[predicted & ~unchanged] = self.mask
        draws = random.random_sample(int(replaced.sum()))  # numpy's `choice` with probabilities, its sum kept
        source[replaced] = self.cumulated.searchsorted(draws, side="right")
        return source, predicted


def seed_of(*numbers: int) -> int:
    """How fairseq seeds numpy's old generator; its stream, like Python's hash of integers, is fixed for good."""
    return int(hash(tuple(int(n) for n in numbers)) % 1e6)


def _count(random: np.random.RandomState, size: int) -> int:
    """How many of `size` tokens are masked: its first draw rounds."""
    return int(MASKED * size + random.random_sample())


def complete_blocks(sizes: np.ndarray, longest: int) -> np.ndarray:
    """fairseq's `sample_break_mode=complete`: as many whole lines as go into `longest` tokens, one at least.

    sizes: the tokens of each line; returns where each block starts and stops among the tokens, int64 [blocks, 2].
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    blocks, start, line = [], 0, 0
    while line < len(ends):
        line = max(line + 1, int(np.searchsorted(ends, start + longest, side="right")))
        blocks.append((start, int(ends[line - 1])))
        start = blocks[-1][1]
    return np.array(blocks, np.int64).reshape(-1, 2)
