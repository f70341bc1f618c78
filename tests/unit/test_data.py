"""Texts and token files as data sets: splits, fingerprints, and what each mistake is answered with."""

import dataclasses
import lzma
import os
import pickle
import re
import runpy
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lawa_exp.axes.dataset import blocks, cache, content
from lawa_exp.axes.dataset.image_folder import in_colour
from lawa_exp.axes.dataset.masked import PydocsMLMSettings
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.dataset.text import PYDOCS, PydocsSettings, TextSettings, kept
from lawa_exp.axes.dataset.tokens import OpenWebTextSettings, TokensSettings
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import Failed, UserError


def text(path, **changes) -> TextSettings:
    settings = {
        "name": "text",
        "folder": None,
        "column": None,
        "tokenizer": "bytes",
        "tokenizer_path": None,
        "markup": False,
    } | changes
    return TextSettings(path=str(path) if path else None, **settings)


def whole(data, split: str) -> bytes:
    return bytes(data.splits[split].astype(np.uint8))


LINES = [f"line {i} of a small text, with ümlauts\n" for i in range(1000)]


def test_pydocs_is_the_same_text_in_every_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # the interpreter's own text: another in each
    data, masked = PydocsSettings(name="pydocs").open(128), PydocsMLMSettings(name="pydocs_mlm").open(128)
    assert data.fingerprint == "8bb403881b0696dc59c5118fe95e888650662ca44621cf126b7fbd959df64d02"
    assert masked.fingerprint == "18327fbd9546723f3f3615e5d813f30e3d9f1474357e78f4ba71a41ee3fabfe6"
    assert data.sizes == {"train": 3277, "val": 181, "test": 181} and data.vocab_size == 256
    assert masked.sizes == {"train": 4990, "val": 269, "test": 266}
    assert b"statement" in whole(data, "train")
    assert data.fingerprint == PydocsSettings(name="pydocs").open(64).fingerprint


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="CPython 3.11.7 alone can write the text again")
def test_pydocs_is_what_its_recipe_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = re.findall(r"```python\n(.*?)```", PYDOCS.with_name("README.md").read_text(), re.DOTALL)
    (recipe,) = (code for code in recipes if PYDOCS.name in code)
    Path("recipe.py").write_text(recipe)
    runpy.run_path("recipe.py")
    assert lzma.decompress(Path(PYDOCS.name).read_bytes()) == lzma.decompress(PYDOCS.read_bytes())


def test_a_python_without_lzma_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(UserError, match="dataset=pydocs: this Python was built without lzma"):
        PydocsSettings(name="pydocs").open(128)


def test_a_file_is_cut_by_place_and_nothing_is_lost(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(LINES))
    data = text(path).open(16)
    assert whole(data, "train") + whole(data, "val") + whole(data, "test") == path.read_bytes()
    before = data.fingerprint
    path.write_text("".join(LINES).replace("small", "other"))
    assert text(path).open(16).fingerprint != before


def test_a_folder_with_named_splits_is_taken_as_it_is(tmp_path):
    for name, lines in (("train", LINES[:800]), ("valid", LINES[800:900]), ("test", LINES[900:])):
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    data = text(tmp_path).open(16)
    assert whole(data, "val") == "".join(LINES[800:900]).encode() and data.note == ""
    (tmp_path / "test.txt").unlink()
    data = text(tmp_path).open(16)
    assert whole(data, "val") == whole(data, "test") and "serves as val and as test" in data.note


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, lines in (("b.md", LINES[500:]), ("a.txt", LINES[:500]), ("sub/c.py", LINES[:10])):
        (tmp_path / name).write_text("".join(lines))
    (tmp_path / ".hidden").write_bytes(b"\xff\xff")
    data = text(tmp_path).open(16)
    joined = whole(data, "train") + whole(data, "val") + whole(data, "test")
    assert joined == "\n".join(["".join(LINES[:500]), "".join(LINES[500:]), "".join(LINES[:10])]).encode()


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no file"):
        text(tmp_path).open(16)


@pytest.fixture
def bins(tmp_path):
    tokens = np.arange(5000, dtype=np.uint16)
    tokens[:4000].tofile(tmp_path / "train.bin")
    tokens[4000:].tofile(tmp_path / "val.bin")
    return tmp_path


def test_token_files_are_read_as_nanogpt_writes_them(bins):
    data = TokensSettings("tokens", str(bins), 5000, "uint16").open(10)
    inputs, targets = data.eval_batch("val", np.array([0, 3]))
    assert inputs[0].tolist() == list(range(4000, 4010)) and targets[1].tolist() == list(range(4031, 4041))
    assert "serves as val and as test" in data.note and isinstance(data.splits["train"], np.memmap)
    inputs, _ = data.train_batch(0, in_epochs(0, data.sizes["train"], data.sizes["train"], seed=0))
    assert inputs.max() < 4000 and len(np.unique(inputs)) == inputs.size


def test_openwebtext_is_found_under_lawa_data(bins, monkeypatch):
    (bins / "openwebtext").mkdir()
    for name in ("train.bin", "val.bin"):
        (bins / name).rename(bins / "openwebtext" / name)
    monkeypatch.setenv("LAWA_DATA", str(bins))
    assert OpenWebTextSettings("openwebtext", None).open(10).vocab_size == 50257


def test_token_files_that_do_not_fit(bins, tmp_path):
    with (bins / "train.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"train\.bin is not uint16"):
        TokensSettings("tokens", str(bins), 5000, "uint16").open(10)
    (bins / "val.bin").unlink()
    with pytest.raises(UserError, match=r"val\.bin is missing from the folder"):
        TokensSettings("tokens", str(bins), 5000, "uint16").open(10)


def small_tokens(folder: Path, dtype: str, highest: int = 60) -> TokensSettings:
    for split, n in (("train", 400), ("val", 100)):
        np.random.default_rng(0).integers(0, highest, n).astype(dtype).tofile(folder / f"{split}.bin")
    return TokensSettings("tokens", str(folder), highest, "uint16")


@pytest.mark.parametrize("dtype, highest", [("uint32", 60), ("uint32", 70_000), ("int32", 60), ("int64", 60)])
def test_tokens_of_another_width_are_refused_and_read_when_told(tmp_path, dtype, highest):
    """huggingface/transformers 2825: every second uint16 of a small uint32 is 0, and a model learns that."""
    settings = small_tokens(tmp_path, dtype, highest)
    with pytest.raises(UserError, match=r"train\.bin looks like u?int(32|64) .*give dataset\.dtype="):
        settings.open(10)
    data = dataclasses.replace(settings, dtype=dtype).open(10)
    expected = np.fromfile(tmp_path / "val.bin", dtype)
    assert data.splits["val"].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "content, said",
    [
        (np.arange(1, 400, dtype=">u2").tobytes(), "looks big-endian"),
        (b"To be, or not to be: that is the question.\n" * 40, "is text or single bytes"),
        (b"\x1f\x8b" + bytes(range(256)) * 4, "is gzip"),
        (np.lib.format.magic(1, 0) + bytes(500), "is a NumPy array"),
        (np.array([20240520, 1, 400], "<i4").tobytes() + bytes(1012), "is llm.c's"),
        (np.full(400, 400, np.uint16).tobytes(), "holds token 400, beyond its vocabulary of 400"),
    ],
    ids=["big-endian", "text", "gzip", "npy", "llm.c", "beyond"],
)
def test_files_that_are_no_tokens_are_named(tmp_path, content, said):
    for split in ("train", "val"):
        (tmp_path / f"{split}.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"train\.bin {said}"):
        TokensSettings("tokens", str(tmp_path), 400, "uint16").open(10)


def test_negative_tokens_are_refused(tmp_path):
    for split in ("train", "val"):
        np.full(100, -100, np.int64).tofile(tmp_path / f"{split}.bin")
    with pytest.raises(UserError, match="holds token -100"):
        TokensSettings("tokens", str(tmp_path), 400, "int64").open(10)


def test_the_vocabulary_is_that_of_nanogpts_meta(tmp_path):
    """As data/shakespeare_char/prepare.py of nanoGPT writes it; a pickle that calls something is not run."""
    settings = small_tokens(tmp_path, "uint16")
    meta = {"vocab_size": 65, "itos": {0: "a"}, "stoi": {"a": 0}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    assert settings.open(10).vocab_size == 65
    for damaged in (pickle.dumps(os.getcwd), b"nothing", pickle.dumps({"vocab": 65})):
        (tmp_path / "meta.pkl").write_bytes(damaged)
        with pytest.raises(UserError, match=r"meta\.pkl is damaged: expected a mapping with vocab_size"):
            settings.open(10)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_images_of_another_mode_are_in_colour_and_of_more_bits_refused(tmp_path, mode):
    """As torchvision's ImageFolder converts them; of 16 bits it would keep white alone."""
    grey = Image.fromarray(np.full((4, 4), 100, np.uint8))
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    image = Image.fromarray(np.full((4, 4), 25_700, deep[mode])) if mode in deep else grey.convert(mode)
    assert image.mode == mode
    if mode in deep:
        with pytest.raises(Failed, match=re.escape(f"a.png has pixels of mode {mode}; expected 8 bits a channel")):
            in_colour(image, "a.png")
        return
    colour = np.asarray(in_colour(image, "a.png")).astype(int)
    assert colour.shape == (4, 4, 3) and (mode == "1" or abs(colour - 100).max() <= 2)


JSON_LINES = '{"text": "one"}\n' * 200


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", JSON_LINES.encode(), "JSON lines, not text"),
        ("a.txt", JSON_LINES.encode(), "JSON lines, not text"),
        ("a.json", b'[{"text": "one"}]', "JSON, not text"),
        ("a.csv", b"text,label\none,1\n" * 100, "a table, not text"),
        ("a.txt", b"<!DOCTYPE html><html>" + b"x" * 500, "HTML or XML, not text"),
        ("a.txt", b"\x1f\x8b" + bytes(500), "it is gzip"),
        ("a.jsonl.gz", b"\x1f\x8b" + bytes(500), r"it is gzip of rows .give .* dataset\.column=NAME"),
        ("a.parquet", b"PAR1" + bytes(500), "it is Parquet"),
        ("a.txt", "one two ".encode("utf-16") * 100, "UTF-16"),
        ("a.txt", "one two ".encode("utf-16-le") * 100, "it holds NUL .byte 1."),
        ("a.txt", "caf\xe9 ".encode("latin-1") * 100, "byte 3.*iconv"),
    ],
    ids=["jsonl", "renamed", "json", "csv", "html", "gzip", "rows in gzip", "parquet", "utf-16", "no-mark", "latin-1"],
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as refusal:
        text(tmp_path / name).open(10)
    assert "\n" not in str(refusal.value) and name in str(refusal.value)


def test_markup_is_text_when_told_and_a_byte_order_mark_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSON_LINES)
    assert whole(text(tmp_path / "a.jsonl", markup=True).open(10), "train") == JSON_LINES[:2880].encode()
    for name, mark in (("plain.txt", b""), ("marked.txt", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(mark + b"one two " * 100)
    assert len({text(tmp_path / name).open(10).fingerprint for name in ("plain.txt", "marked.txt")}) == 1


def test_a_large_files_fingerprint_sees_its_size_and_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "WHOLE_FILE", 1000)
    monkeypatch.setattr(blocks, "PIECE", 10)
    path = tmp_path / "train.bin"
    seen = set()
    for whole in (b"a" * 5000, b"a" * 4999 + b"b", b"b" + b"a" * 4999, b"a" * 5001):
        path.write_bytes(whole)
        seen.add(blocks.fingerprint_files([path]))
    assert len(seen) == 4


def test_an_edit_in_place_is_noticed_where_the_fingerprint_reads_pieces(bins, tmp_path, monkeypatch):
    """By any time or path: a copy, or a file that was only touched, has the same content."""
    monkeypatch.setattr(blocks, "WHOLE_FILE", 1000)
    monkeypatch.setattr(blocks, "PIECE", 10)
    monkeypatch.setattr(content, "FRESH", 0)
    monkeypatch.setenv("LAWA_CACHE", str(tmp_path / "cache"))
    read, original = [], content.file_crc32
    monkeypatch.setattr(content, "file_crc32", lambda path: read.append(path.name) or original(path))

    def seen(folder: Path) -> tuple[str, str, list[str]]:
        data = TokensSettings("tokens", str(folder), 5000, "uint16").open(10)
        read.clear()
        return data.fingerprint, content.content_digest(data.sampled, Ranks()), sorted(read)

    train = bins / "train.bin"
    both = ["train.bin", "val.bin"]
    assert train.stat().st_size > 1000 and (bins / "val.bin").stat().st_size > 1000
    fingerprint, digest, first = seen(bins)
    assert first == both and seen(bins) == (fingerprint, digest, [])
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in both:
        shutil.copy(bins / name, copied / name)
    assert seen(copied) == (fingerprint, digest, both)
    train.touch()
    assert seen(bins) == (fingerprint, digest, ["train.bin"])
    times, whole = train.stat(), train.read_bytes()
    middle = len(whole) // 2 // 2 * 2 + 16  # between two pieces
    train.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    os.utime(train, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had not been edited
    edited = seen(bins)
    assert edited[0] == fingerprint and edited[1] != digest and edited[2] == ["train.bin"]
    train.write_bytes(whole)
    assert seen(bins)[:2] == (fingerprint, digest)


@pytest.mark.parametrize("fresh, noticed", [(10**15, True), (0, False)])
def test_a_change_right_after_another_is_read_again(tmp_path, monkeypatch, fresh, noticed):
    """It may come within one tick of the clock that files have: their facts are the same."""
    path, facts = tmp_path / "train.bin", (5, 1, time.time_ns(), 7)
    monkeypatch.setattr(content, "_facts", lambda file: facts)
    monkeypatch.setattr(content, "FRESH", fresh)
    path.write_bytes(b"first")
    before = content.content_digest([str(path)], Ranks())
    path.write_bytes(b"other")
    assert (content.content_digest([str(path)], Ranks()) != before) is noticed


def test_what_a_killed_start_has_read_is_not_read_again(tmp_path, monkeypatch):
    """It is kept while the rest is read, and the other ranks hear from this one meanwhile."""
    monkeypatch.setattr(content, "FRESH", 0)
    monkeypatch.setattr(content, "PERIOD", 0.01)
    monkeypatch.setattr(content, "READERS", 1)
    monkeypatch.setattr(content, "PART", 1)
    files = [str(tmp_path / name) for name in ("a", "b", "c")]
    for file in files:
        Path(file).write_text(file)
    read, goes_on, original = [], threading.Event(), content.file_crc32

    def slow(path: Path) -> int:
        read.append(path.name)
        assert path.name == "a" or goes_on.wait(60)
        return original(path)

    monkeypatch.setattr(content, "file_crc32", slow)
    reading = content._reading(files)
    while "b" not in read:
        assert next(reading) is None
    assert next(reading) is None and next(reading) is None  # a is done by then
    goes_on.set()
    reading.close()
    read.clear()
    assert len(content.content_digest(files, Ranks())) == 64 and read == ["b", "c"]


def test_a_damaged_cache_of_tokens_is_made_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAWA_CACHE", str(tmp_path / "cache"))
    tokens, made = np.arange(1000, dtype=np.uint16), []

    def encode() -> np.ndarray:
        made.append(1)
        return tokens

    for damage in (lambda whole: b"", lambda whole: whole[:-7], lambda whole: whole[:-1] + b"\xff", None):
        assert (kept("key", encode) == tokens).all()
        said = capsys.readouterr().err
        assert (kept("key", encode) == tokens).all() and capsys.readouterr().err == ""
        (file,) = (tmp_path / "cache").iterdir()
        if damage:
            file.write_bytes(damage(file.read_bytes()))
        assert said == ("" if len(made) == 1 else f"warning: {file} is damaged: it is made anew\n")
    assert len(made) == 4


def test_another_users_cache_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAWA_CACHE", str(tmp_path))
    tokens = np.arange(1000, dtype=np.uint16)
    cache.save("key", tokens)
    (file,) = tmp_path.iterdir()

    def denied(path: Path) -> int:  # for permissions do not stop root, who may run this
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache, "file_crc32", denied)
    assert cache.load("key") is None and file.exists() and capsys.readouterr().err == ""


@pytest.mark.data
def test_wikitext2_as_gpt2_tokens(tmp_path, monkeypatch):
    root = Path(os.environ.get("LAWA_DATA", "/nonexistent"))
    if not (root / "wikitext-2").is_dir():
        pytest.skip("LAWA_DATA does not hold wikitext-2")
    monkeypatch.setenv("LAWA_CACHE", str(tmp_path))
    settings = text(None, name="wikitext2", folder="wikitext-2", tokenizer="gpt2")
    data = settings.open(128)
    assert data.vocab_size == 50257 and len(data.splits["train"]) > 2_000_000
    again = settings.open(128)  # from the cache
    assert (np.asarray(again.splits["val"]) == np.asarray(data.splits["val"])).all()
    assert again.fingerprint == data.fingerprint
