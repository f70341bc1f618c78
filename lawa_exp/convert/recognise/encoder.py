"""Tokenizers of other people's models: of a folder of transformers, of nanoGPT's meta.pkl, GPT-2's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lawa_exp.axes.dataset.encodings import META, plain_pickle
from lawa_exp.axes.dataset.tokenizers import load_tokenizer
from lawa_exp.system.errors import UserError, one_line
from lawa_exp.system.files import read_small

SIGNS = (  # files that say together that a folder has a tokenizer of transformers: other tools write a vocab.json, too
    *(("tokenizer.json",), ("tokenizer_config.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",)),
    *(("tokenizer.model",), ("sentencepiece.bpe.model",)),
)
GPT2_SIZES = (50257, 50304)  # GPT-2's vocabulary, and padded to a multiple of 64


@dataclass(frozen=True)
class Encoder:
    """encode: text -> int64 [tokens], without special ones. end: stands between documents.

    first, last: around a sample; mask, pad: special tokens, None where there is none. special: all of them. sample:
    (text, most tokens) -> tokens with the special ones, as the model takes a text that it classifies.
    """

    name: str
    vocab_size: int
    encode: Callable[[str], np.ndarray]
    end: int | None = None
    first: int | None = None
    last: int | None = None
    mask: int | None = None
    pad: int | None = None
    special: frozenset[int] = frozenset()
    sample: Callable[[str, int], list[int]] | None = None
    pads_left: bool = False  # shorter texts of a batch


def of_transformers(folders: Sequence[Path]) -> Encoder | None:
    """The tokenizer in the first of the folders that has one; no code of theirs runs. UserError: it cannot be read."""
    folder = next((f for f in folders if any(all((f / n).is_file() for n in names) for names in SIGNS)), None)
    if folder is None:
        return None
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        made: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # several packages' own kinds
        raise UserError(f"{folder}: its tokenizer cannot be read ({one_line(str(error))[:150]})") from None

    def encode(text: str) -> np.ndarray:
        return np.array(made(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)

    def sample(text: str, most: int) -> list[int]:
        ids: list[int] = made(text, truncation=True, max_length=most)["input_ids"]
        return ids

    end = made.eos_token_id if made.eos_token_id is not None else made.sep_token_id
    return Encoder(
        f"the tokenizer in {folder}",
        made.vocab_size,  # tokens that were added and are not used may have no row in the model
        encode,
        end,
        made.cls_token_id if made.cls_token_id is not None else made.bos_token_id,
        made.sep_token_id if made.sep_token_id is not None else made.eos_token_id,
        made.mask_token_id,
        made.pad_token_id if made.pad_token_id is not None else end,
        frozenset(made.all_special_ids),
        sample,
        made.padding_side == "left",
    )


def of_characters(folders: Sequence[Path]) -> Encoder | None:
    """The characters of nanoGPT's meta.pkl (stoi) in the first of the folders that has one. UserError: damaged."""
    path = next((p for f in folders if (p := f / "meta.pkl").is_file()), None)
    if path is None:
        return None
    try:
        content: Any = plain_pickle(read_small(path, META))
        numbers = {str(c): int(i) for c, i in content["stoi"].items()}
    except Exception:  # whatever a damaged pickle raises
        raise UserError(f"{path} is damaged: expected a mapping with stoi, the number of each character") from None

    def encode(text: str) -> np.ndarray:
        try:
            return np.array([numbers[c] for c in text], np.int64)
        except KeyError as error:
            raise UserError(f"{path} has no number for the character {error} of the text") from None

    return Encoder(f"the characters in {path}", max(numbers.values()) + 1, encode)


def of_gpt2(vocab_size: int | None) -> Encoder | None:
    """GPT-2's, where the vocabulary has its size. UserError: it is not on this machine, and cannot be fetched."""
    if vocab_size not in GPT2_SIZES:
        return None
    try:
        own = load_tokenizer("gpt2", None)
        return Encoder("GPT-2's tokenizer", own.vocab_size, lambda t: own.encode(t).astype(np.int64), own.end_of_text)
    except UserError:
        pass
    import tiktoken

    try:
        made = tiktoken.get_encoding("gpt2")
    except Exception as error:  # of the network, where it is not in tiktoken's cache
        raise UserError(
            f"GPT-2's tokenizer, which a vocabulary of {vocab_size:,} stands for, is not on this machine "
            f"({one_line(str(error))[:100]}); give --data tokens as numbers (val.bin)"
        ) from None
    return Encoder(
        "GPT-2's tokenizer", made.n_vocab, lambda t: np.array(made.encode_ordinary(t), np.int64), made.eot_token
    )
