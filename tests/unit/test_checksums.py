"""What the small files of a run were when they were written, and what is said of one that is something else."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from lawa_exp.results import statistics
from lawa_exp.results.statistics import Indexed, curve
from lawa_exp.results.summary import Group, table
from lawa_exp.storage import checksums
from lawa_exp.storage.checksums import Changed
from lawa_exp.storage.rows import append_line, each_row, read_lines, read_rows, write_rows
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system import files, heartbeat
from lawa_exp.system.errors import Failed, InUse
from lawa_exp.system.files import locked
from lawa_exp.system.seal import sealed, unsealed

ROW = {"step": 1, "split": "val", "weights": "live", "loss": 2.5}


def test_rows_that_were_changed_are_named_and_rows_by_hand_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [ROW, {**ROW, "step": 2}])
    assert [r["step"] for r in read_rows(path)] == [1, 2]
    whole = path.read_text()
    for damaged in (whole.replace("2.5", "2.4", 1), whole.splitlines(keepends=True)[0], ""):
        path.write_text(damaged)
        with pytest.raises(Failed, match=f"{path} is damaged"):
            read_rows(path)
    path.unlink()
    with pytest.raises(Failed, match="is missing"):
        read_rows(path)
    path.write_text(whole.replace("2.5", "2.4", 1))
    (tmp_path / checksums.NAME).unlink()
    assert read_rows(path)[0]["loss"] == 2.4


def test_a_kill_between_the_checksum_and_the_file_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    checksums.write_text(path, "old")

    def killed(target: Path, text: str) -> None:
        if target == path:
            raise KeyboardInterrupt
        files.write_text_atomically(target, text)

    monkeypatch.setattr(checksums, "write_text_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        checksums.write_text(path, "new")
    with pytest.raises(KeyboardInterrupt):
        path = tmp_path / "metrics.jsonl"
        checksums.write_text(path, "{}")
    assert read_lines(path) == []  # it was not there before, and nobody misses it
    path = tmp_path / "config.yaml"
    assert checksums.read_bytes(path) == b"old"
    monkeypatch.undo()
    checksums.write_text(path, "new")
    path.write_text("old")  # not what was written last
    with pytest.raises(Changed):
        checksums.read_bytes(path)


def test_writers_of_one_folder_keep_each_others_entries_and_readers_see_whole_files(tmp_path: Path) -> None:
    """Two processes, each with its own file; one reads both."""
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        checksums.write_text(path, "0")
    child = os.fork()
    if not child:
        try:
            for i in range(15):
                checksums.write_text(paths[1], "b" * i)
        finally:
            os._exit(0)
    while not os.waitpid(child, os.WNOHANG)[0]:
        for i in (1, 2, 3):
            checksums.write_text(paths[0], "a" * i)
            assert [len(checksums.read_bytes(path)) > 14 for path in paths] == [False, False]
    assert [checksums.read_bytes(path).decode() for path in paths] == ["aaa", "b" * 14]
    assert [checksums.known_sums(path)[-1][0] for path in paths] == [3, 14]
    assert sorted(path.name for path in tmp_path.iterdir()) == [checksums.NAME, "a", "b"]


def test_a_reader_between_the_entry_and_the_file_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    checksums.write_text(path, "old")
    read, texts = checksums.known_sums, ["newer", "newest"]

    def then_written(of: Path) -> list[checksums.Sum]:
        sums = read(of)
        if texts:
            checksums.write_text(path, texts.pop(0))
        return sums

    monkeypatch.setattr(checksums, "known_sums", then_written)
    assert checksums.read_bytes(path) == b"newest"


def test_what_is_appended_to_is_forgotten_until_it_ends(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_rows(run.metrics, [ROW])
    run.begin()
    append_line(run.metrics, {**ROW, "step": 2})
    assert len(read_rows(run.metrics)) == 2
    run.remember()
    append_line(run.metrics, {**ROW, "step": 3})
    with pytest.raises(Failed, match="damaged"):
        read_rows(run.metrics)


@pytest.mark.parametrize(
    "line", ["5", "{}", '{"step": "1", "split": "val", "weights": "live", "loss": 1}', '{"a', "\xff"]
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{line}\n{json.dumps(ROW)}\n", encoding="latin-1")
    with pytest.raises(Failed, match=rf"{path}: (line|row) 2 is damaged"):
        read_rows(path)


def test_half_a_line_is_never_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "provenance.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "b')
    append_line(path, {"a": 3})
    assert [line["a"] for line in read_lines(path)] == [1, 3]


def test_training_rows_stay_on_the_disk_where_nobody_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [ROW, *({**ROW, "split": "train", "step": s} for s in range(50))])
    assert len(list(each_row(path, trained=False))) == 1 and len(read_rows(path)) == 51


def test_a_sealed_object_says_what_it_is_not() -> None:
    content = sealed({"command": "x", "entries": [1.5]})
    assert (
        unsealed(json.dumps(content, indent=1))
        == {"command": "x", "entries": [1.5]}
        == unsealed('{"command": "x", "entries": [1.5]}')
    )
    for damaged in (json.dumps({**content, "command": "y"}), "[1, 2]", "{"):
        with pytest.raises(ValueError):
            unsealed(damaged)


def rows_looked_at(seeds: int, averages: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a row's name or metric was read for the whole table of a group of so many seeds."""
    looked = 0

    def counted(original):
        def call(*arguments):
            nonlocal looked
            looked += 1
            return original(*arguments)

        return call

    ids = [f"lawa-k{k}-s10" for k in range(1, averages + 1)]
    rows = [
        {**ROW, "step": step, "weights": weights, "averager": "lawa"}
        for step in range(1, 9)
        for weights in ("live", *ids)
    ]
    with monkeypatch.context() as patched:
        for name in ("name_of", "metric_in"):
            patched.setattr(statistics, name, counted(getattr(statistics, name)))
        group = Group("one", [list(rows) for _ in range(seeds)], [[] for _ in range(seeds)])
        assert table(group).count("\n| ") == averages + 1
        group.best(), [group.mean_curve(id) for id in group.ids()]
    return looked


def test_a_table_looks_at_each_row_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    few = rows_looked_at(5, 3, monkeypatch)
    assert rows_looked_at(40, 3, monkeypatch) == 8 * few
    assert rows_looked_at(5, 31, monkeypatch) == 8 * few  # live and 31 are eight times live and three


def test_indexed_rows_give_the_curves_of_a_list() -> None:
    rows = [{**ROW, "step": s, "weights": w, "loss": s / 7} for s in (3, 1, 2) for w in ("live", "ema-d0.9-e1")]
    for weights in ("live", "ema-d0.9-e1", "none"):
        assert curve(Indexed(rows), weights) == curve(rows, weights)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with (
        pytest.raises(Failed, match=rf"{tmp_path / '.lock'} cannot be locked"),
        locked(tmp_path / ".lock", "run_dir=x"),
    ):
        pass


def beat(path: Path, at: float, host: str = "elsewhere") -> None:
    partial = path.with_name(".beat")
    partial.write_text(json.dumps(sealed({"time": at, "host": host, "process": 1, "job": None})))
    partial.replace(path)


def test_a_process_of_another_machine_holds_the_run_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lock is local to a machine both get it; the heartbeat tells."""
    monkeypatch.setattr(heartbeat, "WAIT", 0.01)
    run = RunDir(tmp_path)
    beat(run.heartbeat.path, time.time() - heartbeat.LOST + 0.05)  # killed: no new one comes
    with run.locked():
        pass
    beat(run.heartbeat.path, time.time())
    ended = threading.Event()

    def lives() -> None:
        while not ended.wait(0.02):
            beat(run.heartbeat.path, time.time())

    thread = threading.Thread(target=lives)
    thread.start()
    with pytest.raises(InUse, match="in use by process 1 on elsewhere"), run.locked():
        pass
    ended.set()
    thread.join()


def test_a_heartbeat_of_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    beat(tmp_path / "beat", time.time() + 86_400)
    found = heartbeat.read(tmp_path / "beat")
    assert found and not heartbeat.is_alive(found, time.time())


def test_a_run_that_was_removed_is_not_taken_for_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.locked():
        shutil.rmtree(run.path)
        with pytest.raises(Failed, match="was removed"):
            run.remove_old_states(20)
