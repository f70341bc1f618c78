"""The tensor files and the commit of folders."""

import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import zlib
from typing import Any

import pytest
import torch

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.config.shared import Init
from lawa_exp.convert.weights import load_weights
from lawa_exp.storage.commit import MANIFEST, Damaged, commit, remove, same_content, step_name, steps_in, tidy, verify
from lawa_exp.storage.origin import find_origin
from lawa_exp.storage.safetensors import read_tensors, write_tensors
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import locked, temporary, write_text_atomically

TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.randn(4).to(torch.bfloat16),
    "half": torch.randn(2, 2).to(torch.float16),
    "double": torch.randn(2).double(),
    "scalar": torch.tensor(7.5),
    "count": torch.tensor([1, 2, 3]),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "strided": torch.randn(6, 4).t(),
}


def test_tensor_files_open_in_the_safetensors_library_and_back(tmp_path):
    from safetensors.torch import load_file, save_file

    write_tensors(tmp_path / "ours", TENSORS)
    theirs = load_file(tmp_path / "ours")
    save_file({n: t.contiguous() for n, t in TENSORS.items()}, tmp_path / "theirs")
    ours = read_tensors(tmp_path / "theirs")
    for read in (theirs, ours, read_tensors(tmp_path / "ours")):
        assert read.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
            assert torch.equal(read[name], tensor)


def test_the_same_tensors_make_the_same_bytes_in_any_order(tmp_path):
    write_tensors(tmp_path / "one", TENSORS)
    write_tensors(tmp_path / "two", dict(reversed(TENSORS.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_file_cut_short_is_named(tmp_path, length):
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: .*cut short"):
        read_tensors(path)


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
ODD = [
    0,
    1,
    -1,
    2,
    3,
    6,
    24,
    28,
    -24,
    2**62,
    2**63,
    2**70,
    1.5,
    True,
    None,
    "F32",
    "F64",
    "I32",
    "F3",
    "",
    [],
    {},
    [0],
    [3, 2],
]


def mutated(rng: random.Random) -> bytes:
    """A safetensors file whose header has been changed in one to three places: values, keys, bytes, length or data."""
    header: Any = {"a": {**ENTRY, "shape": list(ENTRY["shape"]), "data_offsets": [0, 24]}, "__metadata__": {"k": "v"}}
    header["b"] = {"dtype": "I64", "shape": [], "data_offsets": [24, 32]}
    for _ in range(rng.randint(1, 2)):
        value = rng.choice(ODD)
        entry = header[rng.choice(list(header))]
        if not isinstance(entry, dict) or not entry or rng.random() < 0.1:
            header[rng.choice([*header, "c", "\ud800", "__metadata__"])] = value
            continue
        inner = entry[key := rng.choice(list(entry))]
        if isinstance(inner, list) and inner and rng.random() < 0.7:
            inner[rng.randrange(len(inner))] = value
        elif rng.random() < 0.2:
            del entry[key]
        else:
            entry[key] = value
    text = bytearray(json.dumps(header).encode())
    if rng.random() < 0.3:
        text[rng.randrange(len(text))] = rng.choice(b'{}[]",:0-9x\xff\0')
    if rng.random() < 0.05:
        text = bytearray(b"[" * 100_000)
    length = len(text) + rng.choice([0] * 20 + [1, -1, 2**40, 2**63])
    data = torch.arange(6.0).numpy().tobytes() + torch.tensor(7).numpy().tobytes()
    return length.to_bytes(8, "little") + text + data[: len(data) - rng.choice([0] * 10 + [1])]


def test_a_mutated_header_reads_right_or_is_one_refusal(tmp_path):
    """Right: as the safetensors library reads it, which refuses what is malformed, but for types that torch lacks."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, rng, refused = tmp_path / "model.safetensors", random.Random(0), 0
    for _ in range(1500):
        path.write_bytes(content := mutated(rng))
        try:
            ours = read_tensors(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error), content
            continue
        try:
            theirs = load_file(path)
        except SafetensorError as error:
            pytest.fail(f"read, and refused by safetensors ({error}): {content!r}")
        assert ours.keys() == theirs.keys()
        assert all(ours[n].dtype == t.dtype and torch.equal(ours[n], t) for n, t in theirs.items()), content
    assert 1000 < refused < 1500


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**ENTRY, "data_offsets": [-24, 0]}},
        {"a": {**ENTRY, "shape": [-2, -3]}},
        {"a": {**ENTRY, "shape": "23"}},
        {"a": {**ENTRY, "shape": [2, 4]}},
        {"a": {**ENTRY, "data_offsets": [0, 24, 24]}},
        {"a": {**ENTRY, "dtype": []}},
        {"a": {**ENTRY, "dtype": "C64"}},
        {"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}, "b": ENTRY},
        {"a": 5},
        [],
        "[" * 100_000,
    ],
)
def test_malformed_weights_to_begin_from_are_one_line(header, tmp_path):
    """As `init.from=FILE`, which takes the weights over a model's."""
    text = header if isinstance(header, str) else json.dumps(header)
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(24))
    model = torch.nn.Linear(3, 2, bias=False)
    with pytest.raises(UserError, match=r"x\.safetensors") as refused:
        load_weights(model, live_tensors(model), path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "index.json is damaged"),
        ("{}", "index.json is damaged"),
        ('{"weight_map": {"a": 5}}', "index.json is damaged"),
        ('{"weight_map": {"weight": "../x.safetensors"}}', "names a file outside its folder"),
        ('{"weight_map": {"weight": "x.safetensors"}}', "x.safetensors, which it names, is not there"),
    ],
)
def test_a_malformed_index_to_begin_from_is_one_line(index, words, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=re.escape(words)):
        find_origin(Init(str(tmp_path), None, None))


def files(content: str):
    return {"a.txt": lambda path: path.write_text(content), "sub/b.txt": lambda path: path.write_text("b")}


def test_commit_verify_replace_remove(tmp_path):
    target = tmp_path / step_name(10)
    commit(target, files("one"))
    verify(target)
    assert steps_in(tmp_path) == {10: target}
    before = (target / "a.txt").stat().st_ino
    commit(target, files("one"))  # the same content: left alone
    assert (target / "a.txt").stat().st_ino == before
    commit(target, files("two"))
    assert (target / "a.txt").read_text() == "two"
    verify(target)
    remove(target)
    assert steps_in(tmp_path) == {} and list(tmp_path.iterdir()) == []


def test_damage_is_named(tmp_path):
    for damage, message in (
        (lambda t: (t / "a.txt").write_text("onX"), "checksum"),
        (lambda t: (t / "a.txt").write_text("on"), "has 2 bytes, expected 3"),
        (lambda t: (t / "a.txt").unlink(), "a.txt is missing"),
        (lambda t: (t / MANIFEST).write_text("{"), "missing or unreadable"),
    ):
        target = tmp_path / step_name(10)
        commit(target, files("one"))
        damage(target)
        with pytest.raises(Damaged, match=message):
            verify(target)
        commit(target, files("one"))  # a damaged folder is written anew
        verify(target)


def test_a_failing_writer_leaves_what_was_there(tmp_path):
    target = tmp_path / step_name(10)
    commit(target, files("one"))

    def fail(path):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        commit(target, {"a.txt": fail})
    verify(target)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_folders_are_compared_by_their_bytes(tmp_path):
    one, same, another = tmp_path / "one", tmp_path / "same", tmp_path / "another"
    manifest = commit(one, files("one"))
    for name, entry in manifest.items():
        assert entry["crc32"] == zlib.crc32((one / name).read_bytes())
    assert manifest == commit(same, files("one")) and manifest.keys() == commit(another, files("two")).keys()
    assert same_content(one, same) and not same_content(one, another) and not same_content(another, one)


def test_what_a_kill_leaves_is_tidied(tmp_path):
    target = tmp_path / "run" / step_name(10)
    commit(target, files("one"))
    manifest = json.loads((target / MANIFEST).read_text())
    target.rename(target.with_name(".replaced-" + target.name))  # killed between the two renames
    (target.parent / ".partial-step_00000010").mkdir()
    assert steps_in(target.parent) == {}
    tidy(tmp_path)
    verify(target)
    assert json.loads((target / MANIFEST).read_text()) == manifest
    assert sorted(p.name for p in target.parent.iterdir()) == [target.name]


def test_what_other_processes_write_is_not_tidied(tmp_path, monkeypatch):
    """By the names that they give it: of this machine those of processes that are gone are cleared."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = platform.node()
    kept = [f".partial-{os.getppid()}@{host}@x", f".partial-{gone.pid}@another-{host}@x", f".replaced-1@{host}@x"]
    left = [f".partial-{gone.pid}@{host}@x", ".partial-x", f".partial-{gone.pid}@{host}@metrics.jsonl"]
    for name in (*kept, *left, f".replaced-{gone.pid}@{host}@back"):
        (tmp_path / "sub" / name).mkdir(parents=True)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / ".lock").touch()  # of a read-out
    (tmp_path / "inner" / ".partial-y").touch()
    tidy(tmp_path)
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == sorted([*kept, "back"])
    assert (tmp_path / "inner" / ".partial-y").exists()
    (tmp_path / "sub" / left[0]).mkdir()
    commit(tmp_path / "sub" / "x", files("one"))  # clears what was left of the same folder
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == sorted([*kept, "back", "x"])
    monkeypatch.setattr("lawa_exp.system.files.ABANDONED", 0)  # what another machine left long ago
    tidy(tmp_path)
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == sorted([kept[0], kept[2], "back", "x"])


def test_two_processes_write_one_file(tmp_path):
    """The first is stopped before it renames what it wrote; under a lock the names are plain."""
    path = tmp_path / "manifest.json"
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from lawa_exp.system import files
        sync = files.sync
        files.sync = lambda path: (os.kill(os.getpid(), signal.SIGSTOP), sync(path))
        files.write_text_atomically(Path(sys.argv[1]), "first")
    """
    first = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        os.waitpid(first.pid, os.WUNTRACED)
        write_text_atomically(path, "second")
        assert path.read_text() == "second"
        while first.poll() is None:  # at the file, then at its folder
            first.send_signal(signal.SIGCONT)
        assert first.returncode == 0 and path.read_text() == "first"
    finally:
        first.kill()
    assert list(tmp_path.iterdir()) == [path]
    with locked(tmp_path / ".lock", "x"):
        assert temporary(tmp_path / "sub" / "x").name == ".partial-x"
    assert temporary(tmp_path / "sub" / "x").name == f".partial-{os.getpid()}@{platform.node()}@x"
