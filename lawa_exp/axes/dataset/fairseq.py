"""fairseq's data: a dictionary, and text as lines of its symbols, from `fairseq-preprocess` or from raw text."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lawa_exp.system.errors import UserError
from lawa_exp.system.files import LARGEST, read_small

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the first symbols of every dictionary
BOS, PAD, EOS, UNK = range(4)
MMAP, OLD = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"  # how an index begins
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class Lines:
    """tokens: [all tokens], each line with its EOS; sizes: int64 [lines], the tokens of each."""

    tokens: np.ndarray
    sizes: np.ndarray


def read_dictionary(path: Path) -> dict[str, int]:
    """The id of each symbol of a `dict.txt` (`symbol count` a line). UserError names a line that is not such a one."""
    ids = {symbol: number for number, symbol in enumerate(SPECIAL)}
    for number, line in enumerate(io.StringIO(_text(path), newline=None), len(SPECIAL)):
        symbol, _, count = line.rstrip().rpartition(" ")
        if not symbol or not count.isdigit() or symbol in ids:
            what = "has a symbol twice" if symbol in ids else "is not `symbol count`"
            raise UserError(f"{path}: line {number - len(SPECIAL) + 1}, {line.strip()[:60]!r}, {what}")
        ids[symbol] = number
    return ids


def count_dictionary(text: str) -> dict[str, int]:
    """The dictionary that `fairseq-preprocess` makes of a text: its words, the most frequent first, padded to 8."""
    counts = Counter(word for line in io.StringIO(text, newline=None) for word in line.split())
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if word not in SPECIAL]
    words += [f"madeupword{number:04d}" for number in range(-(len(words) + len(SPECIAL)) % 8)]
    return {symbol: number for number, symbol in enumerate([*SPECIAL, *words])}


def encode_lines(text: str, encode: Callable[[str], np.ndarray]) -> np.ndarray:
    """The tokens that `encode` gives for each line, and an EOS behind each: int32 [tokens]."""
    end = np.array([EOS], np.int32)
    parts = [part for line in io.StringIO(text, newline=None) for part in (encode(line), end)]
    return np.concatenate(parts or [end[:0]])


def lines_of(tokens: np.ndarray) -> Lines:
    """Tokens whose lines end with an EOS, as lines."""
    return Lines(tokens, np.diff(np.flatnonzero(tokens == EOS), prepend=-1))


def read_indexed(prefix: Path) -> Lines:
    """The lines in PREFIX.bin, memory-mapped, and PREFIX.idx. UserError where they are no whole mmap data set."""
    index, data = prefix.with_name(f"{prefix.name}.idx"), prefix.with_name(f"{prefix.name}.bin")
    for path in (index, data):
        if not path.is_file():
            raise UserError(f"{path} is missing: fairseq-preprocess --only-source writes it")
    head = read_small(index, LARGEST)
    if head.startswith(OLD):
        raise UserError(f"{index} is of the old kind: expected what fairseq-preprocess --dataset-impl mmap writes")
    code, count = (head[17], int.from_bytes(head[18:26], "little")) if len(head) >= 26 else (0, 0)
    if not head.startswith(MMAP) or code not in DTYPES or len(head) != 26 + 12 * count:
        raise UserError(f"{index} is damaged or cut short: expected an index of fairseq-preprocess")
    dtype = np.dtype(DTYPES[code])
    sizes = np.frombuffer(head, "<i4", count, 26).astype(np.int64)
    if not sizes.sum():
        raise UserError(f"{index} has no tokens: the text that it was made of was empty")
    if data.stat().st_size != int(sizes.sum()) * dtype.itemsize:
        size, expected = data.stat().st_size, int(sizes.sum()) * dtype.itemsize
        raise UserError(f"{data} is cut short: it has {size:,} bytes, its index says {expected:,}")
    return Lines(np.memmap(data, dtype, "r"), sizes)


def is_binary(folder: Path) -> bool:
    """Whether it looks like what `fairseq-preprocess` wrote."""
    return (folder / "dict.txt").is_file() or (folder / "train.idx").is_file()


def open_binary(folder: Path, name: str) -> tuple[dict[str, int], dict[str, Lines], list[Path]]:
    """The dictionary, the lines of each split and the files of what `fairseq-preprocess` wrote; without a test split,
    the valid one serves as both. UserError where a token is beyond the dictionary."""
    if not (folder / "dict.txt").is_file():
        raise UserError(f"dataset={name}: {folder / 'dict.txt'} is missing: fairseq-preprocess writes it")
    ids = read_dictionary(folder / "dict.txt")
    stems = dict(SPLITS)
    if not (folder / "test.idx").is_file():
        stems["test"] = stems["val"]
    splits = {split: read_indexed(folder / stem) for split, stem in stems.items()}
    for split, lines in splits.items():
        highest = int(lines.tokens.max())
        if highest >= len(ids):
            raise UserError(
                f"dataset={name}: {folder / stems[split]}.bin holds token {highest}, beyond the {len(ids):,} symbols "
                f"of {folder / 'dict.txt'}: another dictionary's"
            )
    files = [folder / "dict.txt", *(folder / f"{stem}.{end}" for stem in stems.values() for end in ("bin", "idx"))]
    return ids, splits, sorted(set(files))


def _text(path: Path) -> str:
    try:
        return read_small(path, LARGEST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
