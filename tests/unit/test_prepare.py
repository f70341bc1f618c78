"""`python -m lawa_exp.data prepare`, run as the real command: its files, its resuming after kills, its exit codes."""

import fcntl
import gzip
import hashlib
import importlib.util
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lawa_exp
from lawa_exp.axes.dataset.tokenizers import END_OF_TEXT
from lawa_exp.axes.dataset.tokens import TokensSettings
from lawa_exp.data.prepare import goes_to_val, prepare
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.hashing import hash_of

DOCUMENTS = 9_001  # four commits of 2,000 and a rest
VAL_FRACTION = 0.01
END = 258  # of text, in the small vocabulary
FILES = ("train.bin", "val.bin", "meta.json")
needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")


def byte_symbols() -> dict[int, str]:
    """Byte -> the character GPT-2's files write it as, in the order of the ids 0 to 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}


def write_vocabulary(folder: Path, merges: tuple[str, ...] = ("e r", "t h")) -> Path:
    folder.mkdir()
    tokens = [*byte_symbols().values(), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


def make_texts(count: int) -> list[str]:
    random = np.random.default_rng(0)
    words = np.array(["the", "weather", "there", "other", "é", "😀", "\n", "<|endoftext|>", "12", "it's"])
    return [" ".join(random.choice(words, random.integers(0, 120))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def read_documents(path: Path) -> list[str]:
    """The texts in a .bin file of the small vocabulary, decoded."""
    byte_of = [bytes([b]) for b in byte_symbols()] + [b"er", b"th", b"\xff"]
    assert len(byte_of) - 1 == END
    content = b"".join(byte_of[token] for token in np.fromfile(path, "<u2").tolist())
    documents = content.split(b"\xff")  # a byte that UTF-8 never uses
    assert documents.pop() == b""
    return [document.decode() for document in documents]


def hashes(out: Path) -> dict[str, str]:
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}


def committed(out: Path) -> int:
    """Documents that progress.json counts."""
    try:
        return json.loads((out / "progress.json").read_text())["documents"]
    except FileNotFoundError:
        return 0


class Command:
    """The command as a user starts it, with the small vocabulary."""

    def __init__(self, folder: Path):
        self.vocabulary = write_vocabulary(folder / "vocabulary")
        self.texts = make_texts(DOCUMENTS)
        self.source = write_jsonl(folder / "docs.jsonl", self.texts)
        self.environment = os.environ | {
            "PYTHONPATH": str(Path(lawa_exp.__file__).parents[1]),
            "LAWA_TOKENIZER": str(self.vocabulary),
            "HF_HOME": str(folder / "hf_home"),
            "HF_HUB_OFFLINE": "1",
        }
        self.environment.pop("LAWA_DATA", None)
        self.finished = folder / "out"  # what an undisturbed run gives
        self.expected: dict[str, str] = {}

    def start(
        self,
        out: Path,
        *options: str,
        source: Path | str | None = None,
        limit: Callable[[], None] | None = None,
        corpus: str = "openwebtext",
    ) -> subprocess.Popen[str]:
        words = ["--out", str(out), "--source", str(source or self.source), "--val-fraction", str(VAL_FRACTION)]
        return subprocess.Popen(
            [sys.executable, "-m", "lawa_exp.data", "prepare", corpus, *words, *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )

    def run(
        self, out: Path, *options: str, source: Path | str | None = None, limit: Callable[[], None] | None = None
    ) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        process = self.start(out, *options, source=source, limit=limit)
        stdout, stderr = process.communicate(timeout=120)
        return process.returncode, stdout, stderr

    def begin(
        self, out: Path, documents: int, number: signal.Signals = signal.SIGKILL, source: Path | None = None
    ) -> tuple[int, str]:
        """Start it and signal it once that many documents are committed; returns (exit code, standard error)."""
        for _ in range(5):  # on a busy machine it may be finished before the signal comes
            process = self.start(out, "--workers", "1", source=source)
            wait_for(process, out, documents)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
            if not (out / "meta.json").exists():
                return process.returncode, stderr
            shutil.rmtree(out)
        raise AssertionError("it was always finished before the signal")

    def resume(self, out: Path) -> None:
        """Start it once more, and compare with the undisturbed result."""
        code, _, stderr = self.run(out)
        assert code == 0, stderr
        assert hashes(out) == self.expected
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def wait_for(process: subprocess.Popen[str], out: Path, documents: int) -> None:
    deadline = time.monotonic() + 60
    while committed(out) < documents and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    command = Command(tmp_path_factory.mktemp("prepare"))
    code, stdout, stderr = command.run(command.finished)
    assert code == 0, stderr
    assert "done" in stdout
    assert "tokens/s" in stderr
    command.expected = hashes(command.finished)
    return command


def test_val_rule() -> None:
    """hash_of (splitmix64) against the published first outputs of its reference implementation; the share comes out."""
    assert hash_of(0) == 0xE220A8397B1DCDAF
    assert hash_of(1234567) == 6457827717110365317
    assert sum(goes_to_val(n, 0.0005) for n in range(100_000)) == pytest.approx(50, abs=22)  # three sigma
    assert not any(goes_to_val(n, 0) for n in range(1000))


def test_files(command: Command) -> None:
    out = command.finished
    splits = {True: "val", False: "train"}
    expected: dict[str, list[str]] = {"train": [], "val": []}
    for number, text in enumerate(command.texts):
        expected[splits[goes_to_val(number, VAL_FRACTION)]].append(text)
    meta = json.loads((out / "meta.json").read_text())
    for split in ("train", "val"):
        assert expected[split]
        assert read_documents(out / f"{split}.bin") == expected[split]
        assert meta["documents"][split] == len(expected[split])
        assert meta["tokens"][split] == (out / f"{split}.bin").stat().st_size // 2
    assert (meta["tokenizer"], meta["vocab_size"], meta["end_of_text"]) == ("gpt2", 259, END)
    assert (meta["source"], meta["val_fraction"], meta["format_version"]) == ("docs.jsonl", VAL_FRACTION, 1)
    assert "splitmix64" in meta["val_rule"]
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_workers_do_not_change_the_bytes(command: Command, tmp_path: Path) -> None:
    prepare(tmp_path / "out", str(command.source), str(command.vocabulary), VAL_FRACTION, workers=3)
    assert hashes(tmp_path / "out") == command.expected


def test_other_sources_give_the_same_tokens(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "gz"
    folder.mkdir()
    for number, part in enumerate((command.texts[:5000], command.texts[5000:])):
        lines = "".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n\n" for text in part)
        (folder / f"part{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    prepare(tmp_path / "out", str(folder), str(command.vocabulary), VAL_FRACTION, workers=2)
    for name in ("train.bin", "val.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (command.finished / name).read_bytes()


def test_txt_folder(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name, text in {"a.txt": "the\r\nother", "b.txt": "", "sub/c.txt": "é\n", ".hidden/d.txt": "no"}.items():
        (folder / name).write_bytes(text.encode())
    message = prepare(tmp_path / "out", str(folder), str(command.vocabulary), 0, workers=1)
    assert read_documents(tmp_path / "out" / "train.bin") == ["the\r\nother", "", "é\n"]
    assert "--val-fraction" in message, "an empty val.bin is said"


@needs_datasets
def test_parquet(command: Command, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "parquet").mkdir()
    for number, first in enumerate(range(0, DOCUMENTS, 3500)):
        part = command.texts[first : first + 3500]
        table = pyarrow.table({"text": part, "other": [0] * len(part)})
        parquet.write_table(table, tmp_path / "parquet" / f"train-{number}.parquet", row_group_size=900)
    for target in (1, 6000):
        process = command.start(tmp_path / "out", "--workers", "1", source=tmp_path / "parquet")
        wait_for(process, tmp_path / "out", target)
        process.kill()
        process.communicate()
    code, _, stderr = command.run(tmp_path / "out", source=tmp_path / "parquet")
    assert code == 0, stderr
    for name in ("train.bin", "val.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (command.finished / name).read_bytes()


@needs_datasets
def test_parquet_position_of_another_version(command: Command, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    source = tmp_path / "docs.parquet"
    parquet.write_table(pyarrow.table({"text": command.texts}), source, row_group_size=900)
    out = tmp_path / "out"
    command.begin(out, 4000, source=source)
    progress = json.loads((out / "progress.json").read_text())
    progress["position"] = {"version": "0.0.1", "state": {"another": "format"}}
    (out / "progress.json").write_text(json.dumps(progress))
    code, _, stderr = command.run(out, source=source)
    assert code == 0, stderr
    assert (out / "train.bin").read_bytes() == (command.finished / "train.bin").read_bytes()


@pytest.mark.parametrize("targets", [(1,), (4000,), (8000,), (1, 2001, 4001, 6001, 8001)])
def test_killed_after_commits(command: Command, tmp_path: Path, targets: tuple[int, ...]) -> None:
    for documents in targets:
        process = command.start(tmp_path / "out", "--workers", "1")
        wait_for(process, tmp_path / "out", documents)
        process.kill()
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    command.resume(tmp_path / "out")


def test_killed_at_any_moment(command: Command, tmp_path: Path) -> None:
    """Kills spread over the run's whole time, the first ones before anything is written."""
    random = np.random.default_rng(1)
    for _ in range(8):
        process = command.start(tmp_path / "out", "--workers", "1")
        time.sleep(random.uniform(0.02, 0.6))
        process.kill()
        process.communicate()
    command.resume(tmp_path / "out")


def test_what_is_not_committed_is_cut_off(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command.begin(out, 2000)
    for split in ("train", "val"):
        with (out / f"{split}.bin.partial").open("ab") as file:
            file.write(bytes((command.finished / f"{split}.bin").stat().st_size))  # more than will still be written
    with subprocess.Popen(["true"]) as gone:
        partial = f".partial-{gone.pid}@{platform.node()}@progress.json"
    (out / partial).write_text('{"documents": 40')
    command.resume(out)


@pytest.mark.parametrize(
    ("renamed", "meta"), [((), False), (("train",), False), (("train", "val"), False), (("train", "val"), True)]
)
def test_killed_while_finishing(command: Command, tmp_path: Path, renamed: tuple[str, ...], meta: bool) -> None:
    """Every state between the last commit and the end, rebuilt from a finished folder."""
    content = json.loads((command.finished / "meta.json").read_text())
    keys = ("source", "val_fraction", "tokenizer_fingerprint", "source_fingerprint")
    progress = {
        "format_version": 1,
        "settings": {key: content[key] for key in keys},
        "documents": DOCUMENTS,
        "val_documents": content["documents"]["val"],
        "bytes": {split: 2 * content["tokens"][split] for split in ("train", "val")},
        "position": None,
        "complete": True,
    }
    shutil.copytree(command.finished, tmp_path / "out")
    (tmp_path / "out" / "progress.json").write_text(json.dumps(progress))
    (tmp_path / "out" / "prepare.lock").touch()
    if not meta:
        (tmp_path / "out" / "meta.json").unlink()
    for split in {"train", "val"} - set(renamed):
        (tmp_path / "out" / f"{split}.bin").rename(tmp_path / "out" / f"{split}.bin.partial")
    command.resume(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(command: Command, tmp_path: Path, number: signal.Signals) -> None:
    code, stderr = command.begin(tmp_path / "out", 2000, number)
    assert code == 75, stderr
    assert "the same command goes on" in stderr.splitlines()[-1]
    assert number.name in stderr
    assert "Traceback" not in stderr
    command.resume(tmp_path / "out")


def test_no_space_left(command: Command, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the same kind of error, at the same call."""
    size = (command.finished / "train.bin").stat().st_size // 2
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    for _ in range(2):
        code, _, stderr = command.run(tmp_path / "out", limit=limit)
        assert code == 1
        assert stderr.splitlines()[-1].startswith("error: ")
        assert "no space left" in stderr.splitlines()[-1]
        assert "Traceback" not in stderr
        assert 0 < committed(tmp_path / "out") < DOCUMENTS
    command.resume(tmp_path / "out")


def test_finished_again(command: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "docs.jsonl", ["the other"] * 10)
    for expected in ("done", "was done already"):
        code, stdout, stderr = command.run(tmp_path / "out", source=source)
        assert (code, expected in stdout) == (0, True), stderr
    source.unlink()
    code, stdout, _ = command.run(tmp_path / "out", source=source)
    assert (code, f"was done already, {source} was not read; " in stdout) == (0, True), "it is no longer needed"
    (tmp_path / "out" / "val.bin").write_bytes(b"xx")
    code, _, stderr = command.run(tmp_path / "out", source=source)
    assert (code, "val.bin has 2 bytes" in stderr) == (1, True)


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings(command: Command, tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "out"
    if finished:
        shutil.copytree(command.finished, out)
    else:
        command.begin(out, 2000)
    vocabulary = write_vocabulary(tmp_path / "vocabulary", ("t h", "e r"))
    other = write_jsonl(tmp_path / "other.jsonl", command.texts)
    (tmp_path / "changed").mkdir()
    changed = write_jsonl(tmp_path / "changed" / "docs.jsonl", command.texts[::-1])
    before = {path.name: path.stat().st_size for path in out.iterdir()}
    for options, source, part in (
        (("--val-fraction", "0.5"), None, "--val-fraction was 0.01, now it is 0.5"),
        (("--tokenizer-path", str(vocabulary)), None, "--tokenizer-path has changed"),
        ((), other, "--source was docs.jsonl, now it is other.jsonl"),
        ((), changed, "the content of --source has changed"),
    ):
        code, _, stderr = command.run(out, *options, source=source)
        assert code == 2
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
        assert part in stderr
    assert {path.name: path.stat().st_size for path in out.iterdir()} == before
    if not finished:
        command.resume(out)


def test_damaged_folder(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command.begin(out, 4000)
    arguments = (out, str(command.source), str(command.vocabulary), VAL_FRACTION, 1)
    partial, progress = out / "train.bin.partial", out / "progress.json"
    content, saved = partial.read_bytes(), progress.read_bytes()
    partial.write_bytes(content[:100])
    with pytest.raises(Failed, match=r"has 100 bytes where progress.json says"):
        prepare(*arguments)
    partial.unlink()
    with pytest.raises(Failed, match=r"train.bin.partial is missing"):
        prepare(*arguments)
    partial.write_bytes(content)
    progress.write_bytes(saved[:50])
    with pytest.raises(Failed, match=r"progress.json is damaged"):
        prepare(*arguments)
    progress.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        prepare(*arguments)
    progress.write_bytes(saved)
    command.resume(out)


def test_the_pile(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code with GPT-NeoX's tokenizer: killed, gone on with, read back, opened as dataset=pile."""
    tokenizers = pytest.importorskip("tokenizers")
    trainer = {"vocab_size": 300, "special_tokens": [END_OF_TEXT], "show_progress": False}
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(command.texts[:500], **trainer)
    folder = tmp_path / "neox_tokenizer"
    folder.mkdir()
    bpe.save(str(folder / "20B_tokenizer.json"))
    out, words = tmp_path / "data" / "pile", ("--tokenizer-path", str(folder), "--workers", "1")
    process = command.start(out, *words, corpus="pile")
    wait_for(process, out, 2000)
    process.kill()
    process.communicate()
    process = command.start(out, *words, corpus="pile")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    meta = json.loads((out / "meta.json").read_text())
    assert (meta["dataset"], meta["tokenizer"], meta["end_of_text"]) == ("pile", "neox", bpe.token_to_id(END_OF_TEXT))
    for split, held_out in (("train", False), ("val", True)):
        expected = [text for n, text in enumerate(command.texts) if goes_to_val(n, VAL_FRACTION) is held_out]
        tokens = np.fromfile(out / f"{split}.bin", "<u2")
        ends = np.flatnonzero(tokens == meta["end_of_text"])
        found = [bpe.decode(part[:-1].tolist()) for part in np.split(tokens, ends + 1)[: len(ends)]]
        assert found == expected
    with pytest.raises(UserError, match="holds pile: choose another folder for openwebtext"):
        prepare(out, str(command.source), str(command.vocabulary), VAL_FRACTION, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWA_DATA", raising=False)
    data = TokensSettings("pile", None, 50277, "uint16").open(128)  # in data/pile
    assert data.vocab_size == meta["vocab_size"] and data.sizes["train"] == meta["tokens"]["train"] // 128 - 1
    shutil.rmtree(out)
    with pytest.raises(UserError, match=r"python -m lawa_exp\.data prepare pile --out data/pile"):
        TokensSettings("pile", None, 50277, "uint16").open(128)


def test_files_of_unknown_origin_are_left_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"precious")
    with pytest.raises(UserError, match="choose another --out"):
        prepare(tmp_path, str(command.source), str(command.vocabulary), VAL_FRACTION, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["train.bin"]


def test_one_process_per_folder(command: Command, tmp_path: Path) -> None:
    with (tmp_path / "prepare.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, stderr = command.run(tmp_path)
    assert (code, "another process" in stderr) == (2, True)
    command.resume(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line at byte 14"),
        ("a.jsonl", b'{"content": "x"}\n', "field `text`"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', "document 1 has no text"),
        ("a.jsonl", b"", "no document"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.csv", b"x", "expected files of one kind"),
    ],
)
def test_bad_sources(command: Command, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=message):
            prepare(tmp_path / "out", str(source), str(command.vocabulary), VAL_FRACTION, 1)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_mixed_and_missing_sources(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    for source, message in ((tmp_path, "jsonl and txt"), (tmp_path / "c.jsonl", "no such file"), ("c.txt", "no such")):
        with pytest.raises(UserError, match=message):
            prepare(tmp_path / "out", str(source), str(command.vocabulary), VAL_FRACTION, 1)
        assert not (tmp_path / "out").exists()


def test_truncated_gzip(command: Command, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(command.source.read_bytes())[:-5000])
    code, _, stderr = command.run(tmp_path / "out", source=source)
    assert code == 1
    assert stderr.splitlines()[-1].startswith("error: ")
    assert "a.jsonl.gz is damaged" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--val-fraction", "1"), "at least 0 and below 1"),
        (("--val-fraction", "nan"), "at least 0 and below 1"),
        (("--val-fraction", "few"), "invalid float"),
        (("--workers", "0"), "from 1 to 1,024"),
        (("--tokenizer-path", "nowhere"), "encoder.json and vocab.bpe not found; looked in nowhere"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_wrong_options(command: Command, tmp_path: Path, options: tuple[str, ...], part: str) -> None:
    code, stdout, stderr = command.run(tmp_path / "out", *options)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert part in stderr
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    code, _, stderr = command.run(tmp_path / "out")
    assert (code, "expected a folder" in stderr) == (2, True)


def test_datasets_not_installed(command: Command, tmp_path: Path) -> None:
    """A module that cannot be imported, found before the real one if there is a real one."""
    (tmp_path / "datasets.py").write_text("raise ImportError('not here')\n")
    environment = command.environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{command.environment['PYTHONPATH']}"}
    words = [sys.executable, "-m", "lawa_exp.data", "prepare", "openwebtext", "--out", str(tmp_path / "out")]
    result = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "pip install 'lawa_exp[prepare]'" in result.stderr


@needs_datasets
def test_no_network(command: Command, tmp_path: Path) -> None:
    code, _, stderr = command.run(tmp_path / "out", source="Skylion007/openwebtext")
    assert code == 1
    assert stderr.startswith("error: cannot read Skylion007/openwebtext from the Hugging Face hub")
    assert stderr.count("\n") == 1


def test_help_is_quick(command: Command) -> None:
    """No heavy package is imported for it."""
    words = [sys.executable, "-X", "importtime", "-m", "lawa_exp.data", "prepare", "openwebtext", "--help"]
    result = subprocess.run(words, env=command.environment, capture_output=True, text=True)
    assert result.returncode == 0
    assert "--val-fraction" in result.stdout
    imported = {line.rsplit("|", 1)[1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert "yaml" in imported
    assert not imported & {"torch", "numpy", "datasets", "tiktoken", "tqdm", "pyarrow"}
