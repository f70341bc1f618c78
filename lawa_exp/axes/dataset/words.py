"""Words in order, with fairseq's dictionary: what its task `language_modeling` trains on (`sample_break_mode=none`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.axes.dataset.blocks import Blocks, fingerprint_files, sampled
from lawa_exp.axes.dataset.fairseq import EOS, UNK, count_dictionary, encode_lines, is_binary, open_binary
from lawa_exp.axes.dataset.places import find, sole
from lawa_exp.axes.dataset.text import kept, read_splits
from lawa_exp.config.rules import one_of, optional, plain_name, setting, text


@dataclass(frozen=True)
class WordsSettings(BaseSettings):
    """`path`: a folder that `fairseq-preprocess --only-source` wrote (dict.txt, train.bin, ...), or raw text.

    format: `fairseq`, `text` (files as those of dataset=text; the dictionary is that of the train split's words), or
    `auto`: fairseq where there is a dict.txt or an index. Every line ends with an EOS, and so does what is
    before the first.
    """

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(optional(text()), "where the files are; null: in LAWA_DATA, then in data/")
    folder: str | None = setting(optional(text()), "the folder below LAWA_DATA that holds the files")
    format: str = setting(one_of("auto", "fairseq", "text"), "how the files are written; auto looks at them")

    def open(self, context: int) -> Blocks:
        get = (
            "prepare it with `fairseq-preprocess --only-source`, or give a folder with train.txt, valid.txt and "
            "test.txt with dataset.path=DIR"
        )
        place = find(self.name, self.path, self.folder, (), get)
        files: list[Path] = []
        if self.format == "fairseq" or (self.format == "auto" and is_binary(place)):
            ids, lines, files = open_binary(place, self.name)
            splits = {split: of_split.tokens for split, of_split in lines.items()}
            fingerprint = fingerprint_files(files)
            note = "" if (place / "test.idx").is_file() else sole("valid")
        else:
            texts, note = read_splits(place)
            ids = count_dictionary(texts["train"])
            digests = [hashlib.sha256(texts[split].encode()).hexdigest() for split in ("train", "val", "test")]
            fingerprint = hashlib.sha256(f"words {digests}".encode()).hexdigest()
            splits = {
                split: kept(f"{fingerprint}-{split}", partial(encode_lines, content, partial(_words, ids)))
                for split, content in texts.items()
            }
        for split in ("val", "test"):  # as fairseq's: its first target is the first word
            splits[split] = np.concatenate([np.array([EOS], splits[split].dtype), splits[split]])
        return Blocks(splits, context, len(ids), fingerprint, self.name, note, sampled(files))


def _words(ids: dict[str, int], line: str) -> np.ndarray:
    words = line.split()
    return np.fromiter((ids.get(word, UNK) for word in words), np.int32, len(words))
