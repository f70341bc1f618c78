"""Rows of text as data: the same tokens from every kind of file, any tokenizer.json, splits, and what is refused."""

import csv
import gzip
import json
import os
import re
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from lawa_exp.axes.dataset import blocks, cache
from lawa_exp.axes.dataset.hf import HfSettings
from lawa_exp.axes.dataset.text import PydocsSettings, TextSettings
from lawa_exp.axes.dataset.tokenizers import load_tokenizer
from lawa_exp.config.rules import as_before, build
from lawa_exp.convert.tokenizers import carried
from lawa_exp.launch.compose import compose, read
from lawa_exp.system.errors import UserError

DOCUMENTS = [f"Document {n}, with “marks”,\nand {'more ' * (n % 7)}lines" for n in range(200)]
WHOLE = "".join(f"{text}\n\n" for text in DOCUMENTS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAWA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAWA_DATA", raising=False)
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def rows(path: Path | str, column: str = "text", **changes) -> TextSettings:
    settings = {"folder": None, "tokenizer": "bytes", "tokenizer_path": None, "markup": False} | changes
    return TextSettings(name="text", path=str(path), column=column, **settings)


def hf(path: Path | str, column: str | None = None, **changes) -> HfSettings:
    return HfSettings(
        **({"name": "hf", "path": str(path), "column": column, "tokenizer": "bytes", "tokenizer_path": None} | changes)
    )


def write_json_lines(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.writelines(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(texts))
    return path


def saved(texts: list[str], **more: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "n": list(range(len(texts))), **more})


def write_csv(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(texts)])
    return path


def joined(data: blocks.Blocks) -> bytes:
    return b"".join(bytes(data.splits[split].astype(np.uint8)) for split in ("train", "val", "test"))


def bpe(path: Path, prepended: bool = True) -> Path:
    """A tokenizer of characters and a few pairs, which marks the beginning of a text as Llama's does."""
    letters = sorted({*WHOLE, "▁"})
    vocabulary = {token: n for n, token in enumerate([*letters, "▁m", "or", "▁mor", "<unk>", "</s>"])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "m"), ("o", "r"), ("▁m", "or")], unk_token="<unk>"))
    if prepended:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.add_special_tokens(["</s>"])
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
    return path


def test_every_kind_of_file_gives_the_same_tokens(tmp_path):
    data = saved(DOCUMENTS)
    data.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    data.to_parquet(str(tmp_path / "a.parquet"), batch_size=7)
    (tmp_path / "shards").mkdir()
    for n, part in enumerate((DOCUMENTS[:50], DOCUMENTS[50:])):
        saved(part).to_parquet(str(tmp_path / "shards" / f"part-{n}.parquet"))
    write_json_lines(tmp_path / "packed.jsonl.gz", DOCUMENTS)
    places = [
        rows(write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)),
        rows(tmp_path / "packed.jsonl.gz"),
        rows(write_csv(tmp_path / "a.csv", DOCUMENTS)),
        rows(tmp_path / "a.parquet"),
        rows(tmp_path / "shards"),
        rows(tmp_path / "shards" / "part-*.parquet"),
        hf(tmp_path / "saved"),
        hf(tmp_path / "a.parquet"),
    ]
    opened = [place.open(16) for place in places]
    assert {joined(data) for data in opened} == {WHOLE.encode()}
    assert "column text: 200 documents (a.jsonl); a blank line ends each; cut by place" in opened[0].note


def test_a_sole_split_is_cut_between_documents(tmp_path):
    data = rows(write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)).open(16)
    total = len(WHOLE.encode())
    starts = np.cumsum([0, *(len(f"{text}\n\n".encode()) for text in DOCUMENTS)])
    val, test = (next(s for s in starts if s >= total - n * int(0.05 * total)) for n in (2, 1))
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [val, test - val, total - test]


@pytest.mark.parametrize("layout", ["saved", "cache", "repository", "split folders", "json lines"])
def test_splits_are_taken_by_their_names(tmp_path, layout, monkeypatch):
    parts = {"train": DOCUMENTS[:100], "validation": DOCUMENTS[100:150], "test": DOCUMENTS[150:]}
    place = tmp_path / "place"
    if layout == "saved":
        splits = {**{name: saved(texts) for name, texts in parts.items()}, "unsupervised": saved(["other"])}
        datasets.DatasetDict(splits).save_to_disk(str(place))
    elif layout == "cache":
        sources = {name: str(write_json_lines(tmp_path / f"{name}.jsonl", texts)) for name, texts in parts.items()}
        datasets.load_dataset("json", data_files=sources, cache_dir=str(tmp_path / "kept"))
        (place,) = (info.parent for info in (tmp_path / "kept").rglob("dataset_info.json"))
    else:
        for name, texts in parts.items():
            names = {"repository": f"data/{name}-00000-of-00001.parquet", "split folders": f"{name}/0000.parquet"}
            path = place / names.get(layout, f"{name}.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            if layout == "json lines":
                write_json_lines(path, texts)
            else:
                saved(texts).to_parquet(str(path))
    data = hf(place).open(16)
    for split, texts in zip(("train", "val", "test"), parts.values(), strict=True):
        assert bytes(data.splits[split].astype(np.uint8)) == "".join(f"{text}\n\n" for text in texts).encode()
    assert "cut by place" not in data.note
    assert ("splits that are not read: unsupervised" in data.note) == (layout == "saved")


def test_a_sole_held_out_split_serves_as_both(tmp_path):
    for name, texts in (("train", DOCUMENTS[:150]), ("test", DOCUMENTS[150:])):
        write_json_lines(tmp_path / "place" / f"{name}.jsonl", texts)
    data = rows(tmp_path / "place").open(16)
    assert np.array_equal(data.splits["val"], data.splits["test"])
    assert "the sole held-out split, test, serves as val and as test" in data.note


@pytest.mark.parametrize("prepended", [True, False])
def test_tokens_are_those_that_the_package_gives_each_document_whole(tmp_path, prepended):
    file = bpe(tmp_path / "tokenizer.json", prepended)
    own = tokenizers.Tokenizer.from_file(str(file))
    long = ["more lines\n" * 5000, *DOCUMENTS, *DOCUMENTS]  # the first longer than what is tokenized at once
    data = rows(write_json_lines(tmp_path / "a.jsonl", long), tokenizer="json", tokenizer_path=str(file)).open(16)
    end = own.token_to_id("</s>")
    expected = [token for text in long for token in (*own.encode(text, add_special_tokens=False).ids, end)]
    assert np.concatenate([data.splits[split] for split in ("train", "val", "test")]).tolist() == expected
    assert data.vocab_size == own.get_vocab_size() and f"token {end} ends each" in data.note


def test_a_vocabulary_beyond_16_bits_is_kept_in_32(tmp_path):
    vocabulary = {**{f"w{n}": n for n in range(70_000)}, "<unk>": 70_000, "<|endoftext|>": 70_001}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    texts = [f"w{n} w{69_999 - n}" for n in range(300)]
    place = write_json_lines(tmp_path / "a.jsonl", texts)
    data = rows(place, tokenizer="json", tokenizer_path=str(tmp_path / "tokenizer.json")).open(8)
    expected = [token for n in range(300) for token in (n, 69_999 - n, 70_001)]
    assert np.concatenate([data.splits[split] for split in ("train", "val", "test")]).tolist() == expected
    assert data.splits["train"].dtype == np.uint32


def test_a_tokenizer_that_drops_characters_is_said(tmp_path):
    place = write_json_lines(tmp_path / "a.jsonl", ["a b " * 9] * 50)
    for name, unknown in (("drops", None), ("keeps", "<unk>")):
        made = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "<unk>": 2}, [], unk_token=unknown))
        made.save(str(tmp_path / f"{name}.json"))
        data = rows(place, tokenizer="json", tokenizer_path=str(tmp_path / f"{name}.json")).open(8)
        said = "characters that are not in the tokenizer's vocabulary are left out" in data.note
        assert said == (2 not in data.splits["train"]) == (name == "drops")


def test_the_end_of_text_is_that_of_the_tokenizers_folder(tmp_path):
    file = bpe(tmp_path / "tokenizer.json")
    usual = load_tokenizer("json", str(file))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<unk>"}}))
    named = load_tokenizer("json", str(tmp_path))
    ids = tokenizers.Tokenizer.from_file(str(file)).get_vocab()
    assert (usual.end_of_text, named.end_of_text) == (ids["</s>"], ids["<unk>"])
    place = write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)
    fingerprint = rows(place, tokenizer="json", tokenizer_path=str(file)).open(16).fingerprint
    (tmp_path / "tokenizer_config.json").unlink()
    assert rows(place, tokenizer="json", tokenizer_path=str(file)).open(16).fingerprint != fingerprint


def test_the_fingerprint_is_of_the_content_of_the_files_and_of_the_tokenizer(tmp_path):
    place = write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)
    files = [bpe(tmp_path / "one" / "tokenizer.json"), bpe(tmp_path / "two" / "tokenizer.json")]
    files += [bpe(tmp_path / "other" / "tokenizer.json", prepended=False)]  # the same vocabulary
    seen = [rows(place, tokenizer="json", tokenizer_path=str(file)).open(16).fingerprint for file in files]
    assert seen[0] == seen[1] != seen[2]
    moved = write_json_lines(tmp_path / "moved" / "b.jsonl", DOCUMENTS)
    assert rows(moved).open(16).fingerprint == rows(place).open(16).fingerprint
    write_json_lines(place, [*DOCUMENTS[:-1], "another"])
    assert rows(moved).open(16).fingerprint != rows(place).open(16).fingerprint


def test_a_large_file_that_is_edited_in_place_is_tokenized_anew(tmp_path, monkeypatch):
    """Where the fingerprint, which reads pieces of it, is the same: the tokens are those of the file."""
    monkeypatch.setattr(blocks, "PIECE", 10)
    for module in ("blocks", "documents"):
        monkeypatch.setattr(f"lawa_exp.axes.dataset.{module}.WHOLE_FILE", 1000)
    place = write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)
    before = rows(place).open(16)
    content = bytearray(place.read_bytes())
    at = 700  # between two pieces
    at = content.index(b"lines", at)
    content[at : at + 5] = b"LINES"
    place.write_bytes(content)
    os.utime(place, ns=(1, 1))
    after = rows(place).open(16)
    if before.fingerprint == after.fingerprint:
        assert b"LINES" in joined(after) and after.sampled == [str(place)]
    else:
        pytest.fail("the edit is in a piece that is read: choose another place")


def test_tokens_are_kept_and_read_again(tmp_path, own_cache):
    place = rows(write_json_lines(tmp_path / "a.jsonl", DOCUMENTS))
    first = place.open(16)
    kept = {path: path.stat().st_mtime_ns for path in own_cache.iterdir()}
    again = place.open(16)
    assert joined(again) == joined(first) and isinstance(again.splits["train"].base, np.memmap)
    assert kept == {path: path.stat().st_mtime_ns for path in own_cache.iterdir()}
    for ends in own_cache.glob("*-ends.*"):
        ends.unlink()
    assert joined(place.open(16)) == joined(first) and place.open(16).sizes == first.sizes


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAWA_CACHE", str(tmp_path / "file"))
    assert joined(rows(write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)).open(16)) == WHOLE.encode()


def test_parts_are_kept_as_numpy_keeps_an_array(own_cache):
    parts = [np.arange(n, dtype=np.int64) for n in (0, 5, 100_000)]
    array = cache.kept_parts("key", np.uint32, lambda: parts)
    (file,) = own_cache.glob("key.*.npy")
    assert np.array_equal(np.load(file), np.concatenate(parts)) and np.array_equal(array, np.load(file))
    assert array.dtype == np.uint32


def test_blank_documents_are_left_out(tmp_path):
    place = write_json_lines(tmp_path / "a.jsonl", [*DOCUMENTS[:100], "", " \n", *DOCUMENTS[100:]])
    assert joined(rows(place).open(16)) == WHOLE.encode()


def test_the_column_is_text_or_the_only_one_of_text(tmp_path):
    datasets.Dataset.from_dict({"story": DOCUMENTS, "n": list(range(200))}).save_to_disk(str(tmp_path / "one"))
    assert joined(hf(tmp_path / "one").open(16)) == WHOLE.encode()
    saved(DOCUMENTS, title=DOCUMENTS).save_to_disk(str(tmp_path / "usual"))
    assert joined(hf(tmp_path / "usual").open(16)) == WHOLE.encode()
    datasets.Dataset.from_dict({"a": DOCUMENTS, "b": DOCUMENTS}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UserError, match=r"dataset\.column is missing: .* several columns of text, a, b; give one"):
        hf(tmp_path / "two").open(16)
    images = datasets.Dataset.from_dict({"label": [0, 1], "pixels": [[1], [2]]})
    images.save_to_disk(str(tmp_path / "images"))
    with pytest.raises(UserError, match="no column holds text; its columns are label, pixels; images are trained on"):
        hf(tmp_path / "images").open(16)


def refused(settings, said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        settings.open(16)
    assert "\n" not in str(refusal.value)


def test_what_is_wrong_with_rows_is_said_in_one_line(tmp_path):
    lines = write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)
    saved(DOCUMENTS).select_columns(["n", "text"]).to_parquet(str(tmp_path / "a.parquet"))
    write_csv(tmp_path / "a.csv", DOCUMENTS)
    for place in (lines, tmp_path / "a.parquet", tmp_path / "a.csv"):
        refused(rows(place, "txt"), rf"dataset\.path={re.escape(str(place))}: no column txt; its columns are n, text$")
    refused(rows(lines, "n"), "row 1 has no text in column n")
    with lines.open("a") as file:
        file.write('{"n": 1, "text": null}\n')
    refused(rows(lines), "row 201 has no text in column text")
    lines.write_text(lines.read_text() + "{broken\n")
    refused(rows(lines), "line 202 is not a JSON object with text")
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(100))
    refused(rows(tmp_path / "b.parquet"), r"b\.parquet cannot be read as Parquet")
    packed = write_json_lines(tmp_path / "b.jsonl.gz", DOCUMENTS)
    packed.write_bytes(packed.read_bytes()[:-20])
    refused(rows(packed), r"b\.jsonl\.gz is damaged")
    refused(rows(tmp_path), "files of JSON lines and Parquet and CSV; give those of one kind, as a pattern")
    (tmp_path / "a.txt").write_text(WHOLE)
    refused(rows(tmp_path / "a.txt"), r"a\.txt: no file of rows with columns; expected \.jsonl, ")
    refused(rows(tmp_path / "*.none"), r"no file of rows; expected \.jsonl")
    long = write_json_lines(tmp_path / "long" / "a.jsonl", [*DOCUMENTS, WHOLE])
    refused(rows(long), "one document is more than a twentieth of the tokens, at the end; give train, val and test")
    refused(hf(tmp_path / "nowhere"), "dataset=hf: a file or folder not found; .*hf download OWNER/NAME")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    saved(DOCUMENTS).to_parquet(str(tmp_path / "a.parquet"))
    saved(DOCUMENTS).save_to_disk(str(tmp_path / "saved"))
    file = bpe(tmp_path / "tokenizer.json")
    for name in ("pyarrow", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    for place in (rows(tmp_path / "a.parquet"), hf(tmp_path / "saved")):
        refused(place, r"needs the package pyarrow: pip install 'lawa_exp\[prepare\]'")
    place = rows(tmp_path / "a.parquet", tokenizer="json", tokenizer_path=str(file))
    refused(place, r"needs the package tokenizers: pip install 'lawa_exp\[transformers\]'")


def test_splits_that_are_not_clear_are_refused(tmp_path):
    for name in ("one/train", "two/train", "one/test"):
        write_json_lines(tmp_path / "several" / f"{name}.jsonl", DOCUMENTS)
    refused(rows(tmp_path / "several"), "several data sets: one, two; give the folder of one")
    write_json_lines(tmp_path / "held" / "validation.jsonl", DOCUMENTS)
    refused(rows(tmp_path / "held"), "files of val, and none is called train")
    for name in ("train", "extra"):
        write_json_lines(tmp_path / "extra" / f"{name}.jsonl", DOCUMENTS)
    refused(rows(tmp_path / "extra"), r"extra\.jsonl is of no split, as others are")
    datasets.DatasetDict({"validation": saved(DOCUMENTS)}).save_to_disk(str(tmp_path / "saved"))
    refused(hf(tmp_path / "saved"), "splits validation, and none is called train")
    saved(DOCUMENTS).save_to_disk(str(tmp_path / "part"))
    next((tmp_path / "part").glob("*.arrow")).unlink()
    refused(hf(tmp_path / "part"), r"data-00000-of-00001\.arrow is missing")


def test_a_tokenizer_that_does_not_go_with_its_path_is_refused(tmp_path):
    place = write_json_lines(tmp_path / "a.jsonl", DOCUMENTS)
    refused(rows(place, tokenizer_path=str(tmp_path)), r"dataset\.tokenizer=bytes has no files; give a tokenizer\.json")
    refused(rows(place, tokenizer="json"), r"dataset\.tokenizer_path is missing: give a tokenizer\.json")
    refused(rows(place, tokenizer="json", tokenizer_path=str(tmp_path)), r"there is no file .*tokenizer\.json")


def test_the_tokenizer_file_chooses_itself_and_the_models_vocabulary_follows(tmp_path):
    file = bpe(tmp_path / "tokenizer.json")

    def settings(*words: str):
        ((values, overrides),), _ = compose([f"dataset.tokenizer_path={file}", *words])
        return read(values, overrides)[0]

    for words in ((), ("dataset=text", "dataset.path=x.txt"), ("dataset=hf", "dataset.path=DIR", "model=pythia_14m")):
        of = settings(*words)
        assert of.dataset.tokenizer == "json" and of.model.vocab_size is None
    data = settings().dataset.open(128)
    assert settings().model.fitted(data, "pydocs").vocab_size == data.vocab_size
    with pytest.raises(UserError, match=rf"model\.vocab_size=8: expected at least {data.vocab_size}"):
        settings("model.vocab_size=8").model.fitted(data, "pydocs")
    assert settings("dataset=wikitext2", "dataset.tokenizer=gpt2").dataset.tokenizer == "gpt2"


def test_settings_of_earlier_runs_are_read_and_add_nothing_to_their_ids():
    pydocs = build(PydocsSettings, {"name": "pydocs"}, "dataset")
    assert as_before(pydocs) >= {"tokenizer", "tokenizer_path"} and pydocs.tokenizer == "bytes"
    plain = {"name": "x", "path": None, "folder": None, "tokenizer": "gpt2", "tokenizer_path": None}
    assert as_before(build(TextSettings, plain, "dataset")) >= {"column", "markup"}


def test_an_exported_tokenizer_gives_the_tokens_of_the_training(tmp_path):
    """Whatever its file puts around a text, cuts off or fills up: transformers' AutoTokenizer reads the folder."""
    from transformers import AutoTokenizer

    file = bpe(tmp_path / "tokenizer.json")
    own = tokenizers.Tokenizer.from_file(str(file))
    own.post_processor = tokenizers.processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    own.enable_truncation(5)
    own.save(str(file))
    out = carried("json", str(file), 64)
    (tmp_path / "out").mkdir()
    for name, content in out.files.items():
        (tmp_path / "out" / name).write_text(json.dumps(content))
    read_back = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    ours = load_tokenizer("json", str(file))
    tokens = ours.encode(DOCUMENTS[3]).tolist()
    assert read_back(DOCUMENTS[3]).input_ids == tokens and len(tokens) > 5
    assert (read_back.eos_token, read_back.eos_token_id) == ("</s>", ours.end_of_text) == ("</s>", out.end_of_text)
    assert load_tokenizer("json", str(tmp_path / "out")).fingerprint == ours.fingerprint
