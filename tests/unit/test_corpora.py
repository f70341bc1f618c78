"""`python -m lawa_exp.data`: corpora made from copies of their sources, by the rule, and checked."""

import gzip
import hashlib
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from lawa_exp.axes.dataset.corpora import Corpus, Written, corpora
from lawa_exp.axes.dataset.places import DataMissing
from lawa_exp.axes.dataset.text import TextSettings
from lawa_exp.console import main
from lawa_exp.data.make import check, make, tree_digest
from lawa_exp.system.errors import UserError

DATA = Path(os.environ.get("LAWA_DATA", "nowhere")).absolute()
LONG = "A sentence of an article that is long enough. " * 6


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def corpus(**files: bytes) -> Corpus:
    """Of files with these contents."""
    written = tuple(Written(name, [name], sha256=sha256(content)) for name, content in files.items())
    return replace(corpora()["tinyshakespeare"], files=written)


def wiki(folder: Path, *documents: str) -> Path:
    """A copy of wikiVisual, of which wiki_00 and wiki_99 have documents."""
    place = folder / "text" / "AA"
    place.mkdir(parents=True)
    for number in range(100):
        (place / f"wiki_{number:02}").write_bytes(b"")
    head = '<doc id="1" url="http://x" title="T">\n'
    (place / "wiki_00").write_bytes("".join(f"{head}{text}\n</doc>\n" for text in documents[:-1]).encode())
    (place / "wiki_99").write_bytes(f"{head}{documents[-1]}\n</doc>\n".encode().replace(b"BAD", b"\xff"))
    return folder


def test_articles_are_taken_by_the_rule(tmp_path):
    source = wiki(
        tmp_path / "wikiVisual",
        f"\nFirst\n\n{LONG}<br /><ref name='a'>note</ref> H<sub>2</sub>O <refSchabas/><table>",
        "Too short",
        f"{LONG}BAD<div\nclass='b'>end",
    )
    expected = f"First\n\n{LONG}note H2O <table>\n\n\n{LONG}\ufffdend\n".encode()
    made = replace(corpora()["enwiki2015"], files=(Written("enwiki2015.txt", [], sha256=sha256(expected)),))
    (line,) = make(made, source, tmp_path / "out")
    assert (tmp_path / "out" / "enwiki2015.txt").read_bytes() == expected and "as stated" in line
    with pytest.raises(UserError) as refusal:
        make(corpora()["enwiki2015"], source, tmp_path / "other")
    assert sha256(expected) in str(refusal.value) and "expected 324f919a0eba2868851168" in str(refusal.value)
    (source / "text" / "AA" / "wiki_50").unlink()
    with pytest.raises(UserError, match=r"text/AA/wiki_50 is missing; .*/wikiVisual at commit 1c0fac92"):
        make(corpora()["enwiki2015"], source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("packed", ["folder", "gzip", "archive", "below"])
def test_files_are_taken_from_folders_and_archives(tmp_path, packed):
    wanted = corpus(**{"a.txt": b"one", "b.txt": b"two"})
    source = tmp_path / "source"
    place = source / "deep" / "er" if packed == "below" else source
    place.mkdir(parents=True)
    for name, content in (("a.txt", b"one"), ("b.txt", b"two")):
        if packed == "gzip":
            (place / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (place / name).write_bytes(content)
    if packed == "below":
        (source / "a.txt").write_bytes(b"of another data set")
    if packed == "archive":
        with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
            archive.add(source, "source")
        source = tmp_path / "source.tar.gz"
    make(wanted, source, tmp_path / "made" / "out")
    assert (tmp_path / "made" / "out" / "a.txt").read_bytes() == b"one"
    assert [path.name for path in sorted((tmp_path / "made").rglob("*"))] == ["out", "a.txt", "b.txt"]
    again = make(wanted, tmp_path / "source", tmp_path / "made" / "out")
    *lines, unread = again
    assert all(line.endswith("is there already") for line in lines)
    assert unread == f"--from {tmp_path / 'source'} was not read: all is there already"
    (tmp_path / "made" / "out" / "b.txt").unlink()
    kept, made = make(wanted, source, tmp_path / "made" / "out")
    assert kept.endswith("is there already") and made.endswith("as stated")


def test_other_content_is_refused_with_both_sums(tmp_path):
    wanted = corpus(**{"a.txt": b"one"})
    (tmp_path / "a.txt").write_bytes(b"other")
    for act in (lambda: make(wanted, tmp_path, tmp_path / "out"), lambda: check(wanted, tmp_path)):
        with pytest.raises(UserError) as refusal:
            act()
        assert sha256(b"other") in str(refusal.value) and sha256(b"one") in str(refusal.value)
    below = replace(wanted, files=(replace(wanted.files[0], name="raw/a.txt"),))
    with pytest.raises(UserError, match=r"--from .*/a\.txt: a\.txt has 5 bytes .*; expected a copy of https://"):
        make(below, tmp_path, tmp_path / "up" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"it has no a\.txt; expected a copy of https://"):
        make(wanted, tmp_path / "empty", tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()


def test_wikitext_is_the_rows_of_the_hub(tmp_path):
    """Where the bytes are others than ours, the words that were published tell; and that is said."""
    lines = ["", " = Title = \n", "", " A <unk> sentence . \n"]
    content = " \n = Title = \n \n A <unk> sentence . \n"
    datasets.disable_progress_bars()
    (tmp_path / "wikitext").mkdir()
    datasets.Dataset.from_dict({"text": lines}).to_parquet(str(tmp_path / "wikitext" / "train-00000-of-00001.parquet"))
    file = replace(corpora()["wikitext-2"].files[0], sha256=sha256(content.encode()), words=11)
    make(replace(corpora()["wikitext-2"], files=(file,)), tmp_path / "wikitext", tmp_path / "same")
    assert (tmp_path / "same" / "train.txt").read_text() == content
    other = replace(corpora()["wikitext-2"], files=(replace(file, sha256="0" * 64),))
    (line,) = make(other, tmp_path / "wikitext", tmp_path / "other")
    assert "11 words as published, of other bytes than ours" in line and "in another order" in line
    fewer = replace(corpora()["wikitext-2"], files=(replace(file, sha256="0" * 64, words=12),))
    with pytest.raises(UserError, match=r"train\.txt has 11 words, expected 12"):
        make(fewer, tmp_path / "wikitext", tmp_path / "fewer")


def test_images_are_copied_and_known_by_all_files(tmp_path):
    source = tmp_path / "clone"
    for name in ("train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(name.encode())
    digest = tree_digest({"train": source / "train", "val": source / "test"})[0]
    names = ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg")
    sums = [sha256(name.replace("val", "test").encode()) for name in names]
    assert digest == sha256("".join(f"{n}\0{s}\n" for n, s in zip(names, sums, strict=True)).encode())
    wanted = replace(corpora()["cifar10_jpeg"], tree=digest)
    make(wanted, source, tmp_path / "out")
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.jpg")) == list(names)
    assert "is there already" in make(wanted, source, tmp_path / "out")[0]
    (tmp_path / "out" / "val" / "cat" / "1.jpg").write_bytes(b"changed")
    with pytest.raises(UserError, match=f"has other content: .* expected {digest}"):
        check(wanted, tmp_path / "out")
    with pytest.raises(UserError, match=f"with sha256 over all {digest}, expected 2d4943f7c4d210eb"):
        make(corpora()["cifar10_jpeg"], source, tmp_path / "up" / "other")
    assert not (tmp_path / "up").exists()


def test_the_list_says_where_each_corpus_is_and_what_it_is_made_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAWA_DATA", str(tmp_path / "shared"))
    place = tmp_path / "data" / "tinyshakespeare"
    place.mkdir(parents=True)
    (place / "input.txt").write_text("other")
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    damaged = "data/tinyshakespeare, damaged: data/tinyshakespeare/input.txt has 5 bytes, expected 1,115,394; remove it"
    assert f"tinyshakespeare: in {damaged}" in said
    assert f"enwiki2015: not here; looked in {tmp_path}/shared/enwiki2015, data/enwiki2015\n" in said
    for entry in corpora().values():
        assert all(" ".join(text.split()) in said for text in (entry.source, entry.licence, entry.rule, entry.use))
    for words, expected in (
        (["tinyshakespeare"], "error: data/tinyshakespeare/input.txt has 5 bytes with sha256"),
        (["tinyshakespeare", "--from", "."], "error: data/tinyshakespeare/input.txt has 5 bytes with sha256"),
        (["tinyshakespeare", "--from", "."], "; it is there already: remove it, or give another --out"),
        (["fashion_mnist", "--from", "."], "did you mean FashionMNIST, of dataset=fashion_mnist? choices: "),
        (["tinyshakespear", "--from", "."], "no such corpus; did you mean tinyshakespeare? choices: "),
        (
            ["enwiki2015"],
            "--from is missing: enwiki2015 is made from a copy of https://github.com/jason-feng/wikiVisual",
        ),
        (["enwiki2015", "--from", "nowhere"], "--from nowhere: no such file or folder"),
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            sys.exit(main(["data", "prepare", *words]))
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


def test_a_missing_corpus_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWA_DATA", raising=False)
    for entry in corpora().values():
        settings = TextSettings("x", None, entry.folder, None, "bytes", None, False)
        with pytest.raises(DataMissing, match=f"make it with `python -m lawa_exp.data prepare {entry.name} --"):
            settings.open(16)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs LAWA_DATA")
@pytest.mark.parametrize(
    "name",
    ["tinyshakespeare", "wikitext-2", "enwiki2015", "MNIST", "FashionMNIST", "zeroshot", "gpt2_bpe", "neox_tokenizer"],
)
def test_the_corpora_on_this_machine_are_those_that_are_stated(name):
    entry = corpora()[name]
    if not entry.is_in(DATA / entry.folder):
        pytest.skip(f"LAWA_DATA has no {entry.folder}")
    assert entry.damage(DATA / entry.folder) is None
    assert len(check(entry, DATA / entry.folder)) == len(entry.files)
