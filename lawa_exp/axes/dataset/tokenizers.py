"""Text to tokens: raw bytes, the byte-level BPE of GPT-2 or GPT-NeoX, or any tokenizer.json, from local files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lawa_exp.axes.dataset.corpora import corpus_in
from lawa_exp.config.rules import near
from lawa_exp.seams.dataset import DatasetSettings
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import LARGE, read_json, read_small

GPT2_FILES = ("encoder.json", "vocab.bpe")
FOLDERS = {"gpt2": "gpt2_bpe", "neox": "neox_tokenizer"}
NEOX_FILES = ("20B_tokenizer.json", "tokenizer.json")  # either
NAMES = ("bytes", "gpt2", "neox", "json")
ALONE = {"pydocs": "bytes", "openwebtext": "gpt2", "pile": "neox"}  # of data sets with one tokenizer
END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # what tokenizers call it, the first that is there
AROUND = ("truncation", "padding", "post_processor")  # in a tokenizer.json: what changes no token of a text
CONFIG = "tokenizer_config.json"  # in the folder of a tokenizer.json: `eos_token`
# How GPT-2 cuts text into pieces (github.com/openai/gpt-2, src/encoder.py), in an equivalent form that backtracks less.
GPT2_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The one part that still backtracks, `\s+(?!\S)`, overflows tiktoken's stack on a million blanks in a row.
BLANKS = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
LONG_BLANK = 100_000
NOWHERE = "\U0010fffd"  # a character that no vocabulary has as such
CHUNK = 20_000  # characters of a text that is cut into pieces whose tokens do not depend on each other
LONGEST_TEXT = 1_000_000  # characters: where no such cut is known, a longer text is cut at ends of lines all the same
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_LONG_BLANK = re.compile(f"(?<!{BLANKS}){BLANKS}{{{LONG_BLANK},}}")


def tokenizer_of(dataset: DatasetSettings) -> tuple[str | None, str | None]:
    """Which tokenizer made the tokens of a data set, and the folder of its files, where the settings say it."""
    return dataset.tokenizer or ALONE.get(dataset.name), dataset.tokenizer_path


def load_tokenizer(name: str, path: str | None) -> Tokenizer:
    """The tokenizer called `name`; `path`: the folder of its vocabulary files, where it has any, or a tokenizer.json.

    Raises UserError for an unknown name, and for vocabulary files that are missing or damaged.
    """
    if name not in TOKENIZERS:
        raise UserError(f"dataset.tokenizer={name} is not a tokenizer; {near(name, TOKENIZERS)}")
    return TOKENIZERS[name](path)


def _load_bytes(path: str | None) -> Tokenizer:
    if path is not None:
        raise UserError(
            f"dataset.tokenizer_path={path}: dataset.tokenizer=bytes has no files; give a tokenizer.json, or another "
            f"dataset.tokenizer: {', '.join(name for name in TOKENIZERS if name != 'bytes')}"
        )
    return Tokenizer("bytes", 256, None, _fingerprint("bytes", []), _encode_bytes)


def _encode_bytes(text: str) -> np.ndarray:
    return np.frombuffer(_printable(text).encode("utf-8"), np.uint8).astype(np.uint16)


def _load_gpt2(path: str | None) -> Tokenizer:
    """GPT-2's BPE from `encoder.json` (token to id) and `vocab.bpe` (the merges, in order)."""
    folder = find_gpt2(path)
    import tiktoken

    contents = [read_small(folder / name) for name in GPT2_FILES]
    ids, end_of_text = _read_gpt2(contents[0], contents[1], folder)
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PIECES, mergeable_ranks=ids, special_tokens={END_OF_TEXT: end_of_text}
    )

    def encode(text: str) -> np.ndarray:
        parts = [np.array(encoding.encode_ordinary(part), np.uint16) for part in _parts(_printable(text))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return Tokenizer("gpt2", len(ids) + 1, end_of_text, _fingerprint("gpt2", contents), encode)


def find_gpt2(path: str | None) -> Path:
    """The folder that holds both vocabulary files."""
    places = _places(path, FOLDERS["gpt2"])
    for place in places:
        if all((place / name).is_file() for name in GPT2_FILES):
            return place
    raise _not_found("gpt2", " and ".join(GPT2_FILES), path, places)


def _places(path: str | None, folder: str) -> list[Path]:
    """Where vocabulary files may be: `path`, else LAWA_TOKENIZER, $LAWA_DATA/`folder`, data/`folder`."""
    if path is not None:
        return [Path(path).expanduser()]
    places = [Path(os.environ["LAWA_TOKENIZER"])] if os.environ.get("LAWA_TOKENIZER") else []
    places += [Path(os.environ["LAWA_DATA"]) / folder] if os.environ.get("LAWA_DATA") else []
    return [place.expanduser() for place in [*places, Path("data") / folder]]


def _not_found(name: str, files: str, path: str | None, places: list[Path]) -> UserError:
    unset = [name for name in ("LAWA_TOKENIZER", "LAWA_DATA") if path is None and not os.environ.get(name)]
    hint = f" (not set: {', '.join(unset)})" if unset else ""
    how = f"make them with {corpus.how}; or " if (corpus := corpus_in(FOLDERS[name])) else ""
    return UserError(
        f"dataset.tokenizer={name}: {files} not found; looked in {', '.join(map(str, places))}{hint}; {how}"
        "name their folder with dataset.tokenizer_path=DIR (of other commands: --tokenizer-path DIR), "
        "or use dataset.tokenizer=bytes"
    )


def _read_gpt2(encoder: bytes, merges: bytes, folder: Path) -> tuple[dict[bytes, int], int]:
    """(the id of each token's bytes, the id of end of text).

    The ids are the merge order too, which is how tiktoken reads them; the two files must agree on it.
    """
    byte_of = symbols()
    try:
        vocabulary = json.loads(encoder)
        end_of_text = vocabulary.pop(END_OF_TEXT)
        ids = {bytes(byte_of[c] for c in token): index for token, index in vocabulary.items()}
        pairs = [line.split() for line in merges.decode("utf-8").split("\n")[1:] if line]
        merged = [bytes(byte_of[c] for c in first + second) for first, second in pairs]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder}: {' or '.join(GPT2_FILES)} is damaged ({type(error).__name__}: {error})") from None
    if sorted([*ids.values(), end_of_text]) != list(range(len(ids) + 1)) or len(ids) >= 2**16:
        raise UserError(
            f"{folder / GPT2_FILES[0]} is damaged: its ids are not 0 to {len(ids)}, below 65,536, once each"
        )
    if [ids.get(token) for token in merged] != list(range(256, len(ids))) or any(
        bytes([b]) not in ids for b in range(256)
    ):
        raise UserError(f"{folder}: {' and '.join(GPT2_FILES)} do not belong together: their merges differ")
    return ids, end_of_text


def vocabulary(path: str | None) -> tuple[dict[str, int], list[str]]:
    """GPT-2's (id of each token as it is written there, merges in their order). UserError as in `load_tokenizer`."""
    folder = find_gpt2(path)
    encoder, merges = (read_small(folder / name) for name in GPT2_FILES)
    _read_gpt2(encoder, merges, folder)
    return json.loads(encoder), [line for line in merges.decode("utf-8").split("\n")[1:] if line]


def symbols() -> dict[str, int]:
    """GPT-2 writes each byte as one visible character: itself, or the next free one from U+0100 on."""
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _load_neox(path: str | None) -> Tokenizer:
    read, vocabulary = read_with_ids(find_neox(path), "neox")
    digest = hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()
    return replace(read, end_of_text=vocabulary.get(END_OF_TEXT), fingerprint=_fingerprint("neox", [digest.encode()]))


def find_neox(path: str | None) -> Path:
    """The file of the tokenizer of GPT-NeoX-20B, and of Pythia."""
    places = _places(path, FOLDERS["neox"])
    files = [p for place in places for p in (place, *(place / name for name in NEOX_FILES)) if p.is_file()]
    if not files:
        raise _not_found("neox", " or ".join(NEOX_FILES), path, places)
    return files[0]


def read_tokenizer(file: Path, name: str) -> Tokenizer:
    """A file of the package tokenizers, as Hugging Face folders have it (tokenizer.json).

    A text's tokens are those that the package gives for it whole, without special tokens around; where its pieces are
    not those of GPT-2's pattern, a text of more than LONGEST_TEXT characters is cut behind ends of lines.
    """
    return read_with_ids(file, name)[0]


def read_with_ids(file: Path, name: str) -> tuple[Tokenizer, dict[str, int]]:
    """The tokenizer, and the id of each token."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"{file} needs the package tokenizers: pip install 'lawa_exp[transformers]'") from None
    content = read_small(file, LARGE)
    try:
        loaded = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the package raises plain Exception
        raise UserError(f"{file} is damaged: it is no tokenizer ({' '.join(str(error).split())[:100]})") from None
    loaded.encode_special_tokens = True  # the text of special tokens is text
    loaded.no_truncation()
    loaded.no_padding()
    vocabulary = loaded.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1
    dtype = np.uint16 if size <= 2**16 else np.uint32
    described = {key: part for key, part in json.loads(content).items() if key not in AROUND}
    cut = _lines if _cuts_at_lines(described) else _longest

    def encode_each(texts: Sequence[str]) -> list[np.ndarray]:
        pieces = [list(cut(_printable(text))) for text in texts]
        encodings = iter(loaded.encode_batch_fast([p for of in pieces for p in of], add_special_tokens=False))
        return [np.array([token for _ in of for token in next(encodings).ids], dtype) for of in pieces]

    digest = _fingerprint(name, [json.dumps(described, sort_keys=True).encode()])
    end = end_of_text_in(file, vocabulary)
    read = Tokenizer(name, size, vocabulary[end] if end else None, digest, lambda text: encode_each([text])[0])
    drops = loaded.encode(NOWHERE, add_special_tokens=False).ids == []
    return replace(read, dtype=dtype, encode_each=encode_each, drops=drops), vocabulary


def end_of_text_in(file: Path, vocabulary: Mapping[str, int]) -> str | None:
    """The token that ends a document: `eos_token` in its folder's tokenizer_config.json, else the first of ENDS."""
    config = file.with_name(CONFIG)
    if config.is_file():
        content = read_json(config)
        said = content.get("eos_token") if isinstance(content, dict) else None
        token = said.get("content") if isinstance(said, dict) else said
        if token in vocabulary:
            return str(token)
    return next((token for token in ENDS if token in vocabulary), None)


def _cuts_at_lines(described: Mapping[str, Any]) -> bool:
    """Whether its pieces are those of GPT-2's pattern, with nothing done to the text that reaches across them."""
    before = described.get("pre_tokenizer") or {}
    is_gpt2 = before.get("type") == "ByteLevel" and before.get("use_regex", True) and not before.get("add_prefix_space")
    return bool(is_gpt2 and (described.get("normalizer") or {}).get("type") in (None, "NFC"))


def _lines(text: str) -> Iterator[str]:
    """The text cut before ends of lines, where the pieces of GPT-2's pattern end anyway: see `_parts`."""
    start = 0
    for line_end in _LINE_END.finditer(text):
        if line_end.start() - start >= CHUNK:
            yield text[start : line_end.start()]
            start = line_end.start()
    yield text[start:]


def _longest(text: str) -> Iterator[str]:
    """A text of up to LONGEST_TEXT characters whole, a longer one behind ends of lines, the last within as many."""
    start = 0
    while len(text) - start > LONGEST_TEXT:
        end = text.rfind("\n", start, start + LONGEST_TEXT) + 1
        end = end if end > start else start + LONGEST_TEXT
        yield text[start:end]
        start = end
    yield text[start:]


def _parts(text: str) -> Iterator[str]:
    """The text, cut where GPT-2 cuts it anyway: before the last blank of a very long run that something follows."""
    start = 0
    if len(text) > LONG_BLANK:
        for run in _LONG_BLANK.finditer(text):
            if run.end() < len(text):
                yield text[start : run.end() - 1]
                start = run.end() - 1
    yield text[start:]


def _printable(text: str) -> str:
    """The text with lone surrogates (from broken JSON escapes), which UTF-8 cannot hold, replaced as tiktoken does."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _fingerprint(name: str, contents: list[bytes]) -> str:
    digest = hashlib.sha256(name.encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def dropped(tokenizer: Tokenizer) -> str:
    """What is said of data where its characters may give no token; else empty."""
    return "characters that are not in the tokenizer's vocabulary are left out" if tokenizer.drops else ""


def _load_json(path: str | None) -> Tokenizer:
    return read_tokenizer(find_json(path), "json")


def find_json(path: str | None) -> Path:
    """The tokenizer.json that `path` is, or that its folder holds."""
    if path is None:
        raise UserError("dataset.tokenizer=json: dataset.tokenizer_path is missing: give a tokenizer.json")
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"dataset.tokenizer_path={path}: there is no file {file}; give a tokenizer.json")
    return file


@dataclass(frozen=True)
class Tokenizer:
    """encode: text -> integers [tokens], of the type `dtype`; the text of special tokens is ordinary text to it.

    end_of_text: the id that ends a document, or None; fingerprint: sha256 over the name and the vocabulary files.
    encode_each: of several texts, at once where that is faster; None: one by one. drops: whether a character that is
    not in the vocabulary gives no token.
    """

    name: str
    vocab_size: int
    end_of_text: int | None
    fingerprint: str
    encode: Callable[[str], np.ndarray]
    dtype: type[np.unsignedinteger] = np.uint16
    encode_each: Callable[[Sequence[str]], list[np.ndarray]] | None = None
    drops: bool = False


TOKENIZERS: dict[str, Callable[[str | None], Tokenizer]] = {
    "bytes": _load_bytes,
    "gpt2": _load_gpt2,
    "neox": _load_neox,
    "json": _load_json,
}
