"""Tokenizers, against GPT-2's published ids (where LAWA_DATA has its vocabulary) and a small vocabulary of our own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lawa_exp.axes.dataset.tokenizers import load_tokenizer
from lawa_exp.system.errors import UserError

MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ċ Ċ")  # GPT-2 writes a blank as Ġ, a line end as Ċ
ENVIRONMENT = ("LAWA_TOKENIZER", "LAWA_DATA")


def symbols() -> dict[int, str]:
    """Byte -> the character GPT-2's files write it as, in the order of the ids 0 to 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}


def write_vocabulary(folder: Path, merges: tuple[str, ...] = MERGES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*symbols().values(), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


def decode(tokens: np.ndarray, folder: Path) -> str:
    byte_of = {symbol: b for b, symbol in symbols().items()}
    token_of = {n: token for token, n in json.loads((folder / "encoder.json").read_text()).items()}
    return b"".join(bytes(byte_of[c] for c in token_of[n]) for n in tokens.tolist()).decode()


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    return write_vocabulary(tmp_path / "vocabulary")


@pytest.fixture
def gpt2_files() -> Path:
    folder = Path(os.environ.get("LAWA_DATA", "")) / "gpt2_bpe"
    if not os.environ.get("LAWA_DATA") or not (folder / "encoder.json").is_file():
        pytest.skip("LAWA_DATA is not set or has no gpt2_bpe/encoder.json")
    return folder


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and no environment variable that names a place."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path / "bare")
    return tmp_path / "bare"


def test_bytes() -> None:
    tokenizer = load_tokenizer("bytes", None)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.end_of_text) == ("bytes", 256, None)
    tokens = tokenizer.encode("aé中<|endoftext|>")
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == list("aé中<|endoftext|>".encode())
    assert tokenizer.encode("").shape == (0,)
    assert load_tokenizer("bytes", None).fingerprint == tokenizer.fingerprint


def test_small_vocabulary(vocabulary: Path) -> None:
    tokenizer = load_tokenizer("gpt2", str(vocabulary))
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.end_of_text) == ("gpt2", 263, 262)
    tokens = tokenizer.encode("hello world")
    assert tokens.dtype == np.uint16
    letters = {b: n for n, b in enumerate(symbols())}
    assert tokens.tolist() == [259, 260, *(letters[ord(c)] for c in "orld")]
    assert tokenizer.encode("").shape == (0,)


@pytest.mark.parametrize(
    "text",
    ["", " ", "hello  world\n\n\nx\t", "aé中😀\u2003\x1c\x00", "<|endoftext|>", "it's 12 o'clock\r\n", "\n" * 50],
)
def test_round_trip(vocabulary: Path, text: str) -> None:
    tokens = load_tokenizer("gpt2", str(vocabulary)).encode(text)
    assert 262 not in tokens, "the text of a special token is ordinary text"
    assert decode(tokens, vocabulary) == text


def test_long_runs_of_blanks(vocabulary: Path) -> None:
    """A million line ends before a letter overflow tiktoken's stack; the cut that avoids it changes no token."""
    tokenizer = load_tokenizer("gpt2", str(vocabulary))
    pair, single, letter = 261, tokenizer.encode("\n")[0], tokenizer.encode("a")[0]
    for pairs in (3, 49_999, 50_001, 1_000_000):
        tokens = tokenizer.encode("a" + "\n" * (2 * pairs + 1) + "a" + "\n" * (2 * pairs))
        expected = [[letter], np.full(pairs, pair), [single, letter], np.full(pairs, pair)]
        assert np.array_equal(tokens, np.concatenate(expected))


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_lone_surrogates_are_replaced(vocabulary: Path, name: str) -> None:
    tokenizer = load_tokenizer(name, None if name == "bytes" else str(vocabulary))
    assert np.array_equal(tokenizer.encode("a\ud800b"), tokenizer.encode("a\ufffdb"))


def test_fingerprint_and_no_stale_cache(
    vocabulary: Path, tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    first = load_tokenizer("gpt2", str(vocabulary))
    write_vocabulary(vocabulary, ("h e", "Ġ w"))
    second = load_tokenizer("gpt2", str(vocabulary))
    assert (first.vocab_size, second.vocab_size) == (263, 259)
    assert len(second.encode("hello")) == 4
    assert len({first.fingerprint, second.fingerprint, load_tokenizer("bytes", None).fingerprint}) == 3
    copied = write_vocabulary(tmp_path / "copied", ("h e", "Ġ w"))
    assert load_tokenizer("gpt2", str(copied)).fingerprint == second.fingerprint
    assert not list((tmp_path / "cache").iterdir())


def test_where_the_files_are_looked_for(tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        load_tokenizer("gpt2", None)
    for part in (
        "encoder.json and vocab.bpe",
        "data/gpt2_bpe",
        "dataset.tokenizer_path=DIR",
        "dataset.tokenizer=bytes",
    ):
        assert part in str(error.value)
    write_vocabulary(bare / "data" / "gpt2_bpe", MERGES[:1])
    assert load_tokenizer("gpt2", None).vocab_size == 258
    monkeypatch.setenv("LAWA_DATA", str(tmp_path / "lawa_data"))
    assert load_tokenizer("gpt2", None).vocab_size == 258
    write_vocabulary(tmp_path / "lawa_data" / "gpt2_bpe", MERGES[:2])
    assert load_tokenizer("gpt2", None).vocab_size == 259
    monkeypatch.setenv("LAWA_TOKENIZER", str(tmp_path / "tokenizer"))
    assert load_tokenizer("gpt2", None).vocab_size == 259
    write_vocabulary(tmp_path / "tokenizer", MERGES[:3])
    assert load_tokenizer("gpt2", None).vocab_size == 260
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty") as error:
        load_tokenizer("gpt2", str(tmp_path / "empty"))
    assert "lawa_data" not in str(error.value), "a path that was given is the only place"
    for folder in (bare / "data" / "gpt2_bpe", tmp_path / "lawa_data" / "gpt2_bpe", tmp_path / "tokenizer"):
        (folder / "vocab.bpe").unlink()
    with pytest.raises(UserError) as error:
        load_tokenizer("gpt2", None)
    for part in ("tokenizer", "lawa_data", "data/gpt2_bpe"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("encoder.json", "{"),
        ("encoder.json", "[1, 2]"),
        ("encoder.json", '{"a": 0, "b": 7, "<|endoftext|>": 1}'),
        ("encoder.json", '{"a": 0}'),
        ("vocab.bpe", "#version: 0.2\nh e\n"),
        ("vocab.bpe", "#version: 0.2\nh e l\n"),
        ("vocab.bpe", "#version: 0.2\n" + "\n".join(reversed(MERGES)) + "\n"),
    ],
)
def test_damaged_vocabulary(vocabulary: Path, name: str, content: str) -> None:
    (vocabulary / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        load_tokenizer("gpt2", str(vocabulary))


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="did you mean gpt2"):
        load_tokenizer("gpt", None)


def test_torch_is_not_imported() -> None:
    program = "import sys, lawa_exp.axes.dataset.tokenizers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.data
def test_published_ids(gpt2_files: Path) -> None:
    tokenizer = load_tokenizer("gpt2", str(gpt2_files))
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (50257, 50256)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.encode("<|endoftext|>").tolist() == [27, 91, 437, 1659, 5239, 91, 29]


@pytest.mark.data
def test_equal_to_tiktoken_on_odd_texts(gpt2_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against tiktoken's own reader of the two files, and the pattern of the GPT-2 release as it was published."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # no cache
    ranks = data_gym_to_mergeable_bpe_ranks(str(gpt2_files / "vocab.bpe"), str(gpt2_files / "encoder.json"))
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    reference = tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokenizer = load_tokenizer("gpt2", str(gpt2_files))
    alphabet = np.array(list("ab1 \n\t\x1c\x85\xa0\u2003\u3000é中'sdltve<|!😀\u200b"))
    random = np.random.default_rng(0)
    for _ in range(500):
        text = "".join(random.choice(alphabet, random.integers(1, 60)))
        assert tokenizer.encode(text).tolist() == reference.encode_ordinary(text), repr(text)
    blanks = "x" + " " * 150_000 + "\n" * 3 + "y" + "\t" * 120_000
    assert tokenizer.encode(blanks).tolist() == reference.encode_ordinary(blanks)


@pytest.mark.data
def test_twelve_megabytes_in_seconds(gpt2_files: Path) -> None:
    tokenizer = load_tokenizer("gpt2", str(gpt2_files))
    words = np.random.default_rng(0).choice(
        ["the", "averages", "of", "weights", "12", "réseau", "\n", "LAWA"], 2_200_000
    )
    text = " ".join(words)
    assert len(text) > 10_000_000
    begun = time.perf_counter()
    tokens = tokenizer.encode(text)
    assert time.perf_counter() - begun < 20  # about a second on an idle core
    assert len(tokens) > 2_000_000
