"""Places of rows that mislead: links, one content under two kinds, shards and files that are missing or there twice."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from lawa_exp.axes.dataset.documents import open_documents
from lawa_exp.axes.dataset.layouts import files_at
from lawa_exp.axes.dataset.text import TextSettings
from lawa_exp.axes.dataset.tokenizers import load_tokenizer
from lawa_exp.launch.compose import compose, read
from lawa_exp.system.errors import UserError

DOCUMENTS = [f"Document {n} of many words" for n in range(200)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAWA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAWA_DATA", raising=False)


def opened(place: Path | str, column: str | None = "text"):
    return open_documents(files_at(place), column, load_tokenizer("bytes", None), 8, "text")


def refused(place: Path, said: str, column: str | None = "text") -> None:
    with pytest.raises(UserError, match=said) as refusal:
        opened(place, column)
    assert "\n" not in str(refusal.value)


def write(path: Path, content: str = LINES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_the_same_bytes_as_csv_and_as_tsv_are_two_contents(tmp_path):
    content = "text\n" + "".join(f'"{text} ""quoted"""\n' for text in DOCUMENTS)
    as_csv, as_tsv = (opened(write(tmp_path / name, content)) for name in ("a.csv", "a.tsv"))
    assert bytes(as_csv.splits["train"][:38].astype(np.uint8)) == b'Document 0 of many words "quoted"\n\nDoc'
    assert bytes(as_tsv.splits["train"][:37].astype(np.uint8)) == b'"Document 0 of many words ""quoted"""'
    assert as_csv.fingerprint != as_tsv.fingerprint


def test_files_of_the_hubs_cache_are_read_under_the_names_of_their_links(tmp_path):
    """There `snapshots/REVISION/train.jsonl` is a link to `blobs/HASH`."""
    blobs, place = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    place.mkdir(parents=True)
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "</s>", "<end>", *" ".join(DOCUMENTS[:1]).split()])}
    words = tokenizers.Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    contents = {
        "train.jsonl": LINES,
        "tokenizer.json": words.to_str(),
        "tokenizer_config.json": json.dumps({"eos_token": "<end>"}),
    }
    for name, content in contents.items():
        (place / name).symlink_to(write(blobs / name.replace(".", "0"), content))
    words_of_user = [
        *("dataset=text", "dataset.column=text", "model=gpt_tiny", "steps=1"),
        *(f"dataset.path={place / 'train.jsonl'}", f"dataset.tokenizer_path={place / 'tokenizer.json'}"),
    ]
    ((values, own),), _ = compose(words_of_user)
    dataset = read(values, own)[0].dataset
    assert isinstance(dataset, TextSettings) and dataset.tokenizer == "json"
    assert "token 2 ends each" in dataset.open(8).note  # <end>, as the file next to the link says


def test_links_that_a_walk_would_leave_out_are_refused(tmp_path):
    elsewhere = write(tmp_path / "elsewhere" / "a.jsonl").parent
    write(tmp_path / "one" / "train.jsonl")
    (tmp_path / "one" / "validation").symlink_to(elsewhere)
    refused(tmp_path / "one", r"one/validation is a link to a folder of files, which is not followed; give .* pattern")
    assert list(files_at(f"{tmp_path / 'one'}/**/*.jsonl").splits) == ["train", "val"]
    write(tmp_path / "two" / "train.jsonl")
    (tmp_path / "two" / "test.jsonl").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "two", r"two/test\.jsonl is a link that leads nowhere")


def test_rows_that_are_there_twice_are_refused(tmp_path):
    write(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    refused(tmp_path, r"a\.jsonl and a\.jsonl\.gz are the same rows twice; give one of them")


def test_shards_that_are_missing_are_said(tmp_path):
    for number in range(3):
        write(tmp_path / f"train-0000{number}-of-00003.jsonl")
    assert "shards" not in opened(tmp_path).note
    (tmp_path / "train-00001-of-00003.jsonl").unlink()
    assert "train: 2 of 3 shards" in opened(tmp_path).note


def test_what_the_package_datasets_would_not_write_is_refused(tmp_path):
    write(tmp_path / "one" / "dataset_dict.json", '{"splits": ["train", "test"]}')
    refused(tmp_path / "one", r"one/train/state\.json is missing$")
    for number, (name, content) in enumerate([("dataset_dict.json", "[]"), ("state.json", "{}")]):
        write(tmp_path / f"{number}" / name, content)
        refused(tmp_path / f"{number}", "is damaged: it is not what the package datasets writes")


def test_files_without_documents_and_rows_that_are_none_are_refused(tmp_path):
    for name, content in (("empty.jsonl", ""), ("head.csv", "text\n"), ("blank.jsonl", '{"text": " "}\n')):
        refused(write(tmp_path / name, content), rf"no document in column text of train \({re.escape(name)}\)$")
    refused(tmp_path / "empty.jsonl", r"empty\.jsonl: no row is in it", None)
    for name, row in (("list", "[0, 5]"), ("text", '"text"'), ("deep", "[" * 100_000)):
        for column in ("text", None):
            refused(write(tmp_path / f"{name}.jsonl", f"{row}\n"), "line 1 is not a JSON object", column)
    refused(write(tmp_path / "two.csv", "text,text\na,b\n"), r"two\.csv: several columns are called text; expected one")
    refused(write(tmp_path / "null.jsonl", '{"text": null}\n' + LINES), "row 1 has no text in column text", None)
    damaged = pa.Array.from_buffers(
        pa.utf8(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": damaged}), tmp_path / "damaged.parquet")
    refused(tmp_path / "damaged.parquet", r"damaged\.parquet cannot be read as Parquet \('utf-8' codec")
