"""`python -m lawa_exp.average` as a process and with several: what is stopped leaves nothing behind."""

from __future__ import annotations

import math
import os
import resource
import shlex
import signal as signals
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from averaged_files import (
    assert_same,
    average,
    expected,
    make,
    refused,
    safetensors,
    state,
)
from helpers import Strike, go_on, held, run

from lawa_exp.average import main
from lawa_exp.formats.blocks import Work


def test_torch_is_not_imported_and_help_is_quick_to_import(tmp_path):
    inputs = [*make(tmp_path, lambda i: {"model": state(i)}, steps=[1, 2]), *safetensors(tmp_path, [3])]
    code = (
        "import sys; from lawa_exp.average import main\nassert main(sys.argv[1:]) == 0 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *inputs, "--out", str(tmp_path / "out")], check=True)


def test_several_processes_make_the_same_bytes(tmp_path, monkeypatch):
    """Every tensor is cut into many parts; sums that slide, checksums of parts, tensors that share memory."""
    monkeypatch.setattr("lawa_exp.formats.blocks.WORKING_SET", 0)  # the smallest chunks
    monkeypatch.setattr("lawa_exp.formats.blocks.CHUNKS", 2)

    def weights(i: int) -> dict:
        torch.manual_seed(i)
        large = torch.randn(70_001)
        return {"large": large, "half": large[1000:40_000], "turned": torch.randn(100, 90).T, "n": torch.tensor(i)}

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    make(inputs, weights, steps=range(1, 8))
    made = []
    for share, processes in ((1, 1), (1, 2), (1, 5)):
        monkeypatch.setattr("lawa_exp.formats.stream.SHARE", share)
        monkeypatch.setattr("lawa_exp.average.processes", lambda n=processes: n)
        out = tmp_path / f"{share}-{processes}"
        average("--trajectory", inputs, "--k", 4, "--out", out)
        made.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*.pt")})
        loaded = [torch.load(p, weights_only=True) for p in sorted(out.rglob("*.pt"))]  # checks the CRCs
        assert len(loaded) == 4
        assert torch.equal(loaded[0]["half"], loaded[0]["large"][1000:40_000])
    assert made[0] == made[1] == made[2]


def test_a_failure_in_one_process_ends_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: 3)
    inputs = make(tmp_path, lambda i: {"a": torch.ones(10), "b": torch.full((10,), math.nan if i == 2 else 1.0)})
    assert f"{inputs[1]}: b holds NaN" in refused(capsys, *inputs, "--out", tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(TypeError) as raised:
        patch.setattr("lawa_exp.formats.blocks.crc32", None)  # as a programming error
        main([*inputs, "--out", str(tmp_path / "out")])
    assert "blocks.py" in "".join(raised.value.__notes__)  # the worker's traceback
    parent = os.getpid()

    def killed(self, block, first, last):
        assert os.getpid() != parent
        os.kill(os.getpid(), signals.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("lawa_exp.formats.blocks.Work.do", killed)
        assert main([*map(str, inputs), "--out", str(tmp_path / "out")]) == 1
    assert "a worker process was killed" in capsys.readouterr().err
    write = os.write

    def half(fd: int, data: bytes) -> int:  # of the answer, which is longer than a number
        if os.getpid() != parent and len(data) > 8:
            write(fd, data[: len(data) // 2])
            os.kill(os.getpid(), signals.SIGKILL)
        return write(fd, data)

    monkeypatch.setattr(os, "write", half)
    assert main([*map(str, inputs), "--out", str(tmp_path / "out")]) == 1
    assert "a worker process was killed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_end_with_a_parent_that_is_killed():
    """In the midst of an answer that is longer than a pipe holds too."""
    code = """if True:
        import os, signal
        from lawa_exp.formats.workers import shared

        def work(claim, tell):
            claim()
            return bytes(1 << 22)

        shared(work, 3, lambda done: os.kill(os.getpid(), signal.SIGKILL), 0.1)
    """
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60)  # open in the workers too
    assert done.returncode == -signals.SIGKILL and done.stdout == b""


@pytest.mark.parametrize("of", ["files", "children"])
def test_workers_beside_many_open_files_and_with_children_ignored(of, tmp_path, monkeypatch):
    """More files than `select` can count; a parent that leaves it to the system to wait for its children."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("no more than 1,024 files may be open")
    inputs, fds = make(tmp_path, state), []
    before = signals.getsignal(signals.SIGCHLD)
    try:
        if of == "files":
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            fds += [os.dup(0) for _ in range(1030)]
        else:
            signals.signal(signals.SIGCHLD, signals.SIG_IGN)
        average(*inputs, "--out", tmp_path / "out")
    finally:
        signals.signal(signals.SIGCHLD, before)
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_same(torch.load(tmp_path / "out" / "in_3.pt", weights_only=True), expected())


def test_a_command_that_ends_well_leaves_no_temporary_folder_and_needs_no_terminal(tmp_path):
    code = """if True:
        import tempfile
        from lawa_exp.system.cli import leave

        folder = tempfile.TemporaryDirectory()
        print(folder.name)
        leave(0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout and not Path(done.stdout.strip()).exists()
    words = [sys.executable, "-m", "lawa_exp.average", *make(tmp_path, state), "--out", str(tmp_path / "out")]
    done = subprocess.run(["bash", "-c", f"{shlex.join(words)} >&- 2>&-"])
    assert done.returncode == 0 and (tmp_path / "out" / "in_3.pt").is_file()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_bar_counts_all_that_is_read(processes, tmp_path, monkeypatch):
    """What lies beneath tensors with gaps too."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: processes)
    totals, shown = [], []
    monkeypatch.setattr("lawa_exp.system.bar.Bar.__init__", lambda self, total: totals.append(total))
    monkeypatch.setattr("lawa_exp.system.bar.Bar.show", lambda self, done: shown.append(done))
    monkeypatch.setattr("lawa_exp.system.bar.Bar.__exit__", lambda self, *error: None)
    average(*make(tmp_path, lambda i: {"a": torch.randn(50), "holes": torch.randn(3000)[::2]}), "--out", tmp_path / "o")
    assert shown == sorted(shown) and shown[-1] == totals[0] > 0


def test_workers_leave_signals_to_the_parent(tmp_path, capsys, monkeypatch):
    """A closed terminal tells all processes of a command under nohup; and one may come while they are forked."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: 3)
    inputs, parent, do, fork = make(tmp_path, state), os.getpid(), Work.do, os.fork

    def told(self, block, first, last):
        for number in (signals.SIGHUP, signals.SIGTERM, signals.SIGINT) if os.getpid() != parent else ():
            os.kill(os.getpid(), number)
        do(self, block, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "do", told)
        average(*inputs, "--out", tmp_path / "out")
    assert_same(torch.load(tmp_path / "out" / "in_3.pt", weights_only=True), expected())
    forked = []

    def interrupted():
        if pid := fork():
            forked.append(pid)
            os.kill(parent, signals.SIGTERM)
        return pid

    monkeypatch.setattr("os.fork", interrupted)
    capsys.readouterr()
    assert main([*inputs, "--out", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err == "error: interrupted\n"
    for pid in forked:
        with pytest.raises(ChildProcessError):  # none is left
            os.waitpid(pid, os.WNOHANG)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
@pytest.mark.parametrize("at", ["lawa_exp.formats.output:Output.finish", "lawa_exp.formats.stream:Stream.run"])
def test_what_is_stopped_leaves_no_output(signal, at, tmp_path):
    inputs = make(tmp_path, state)
    out = tmp_path / "some" / "out"
    done = run(*inputs, "--out", str(out), module="lawa_exp.average", strike=Strike(at, signal=signal))
    assert done.returncode == (-9 if signal == "SIGKILL" else 1)
    assert not out.exists()
    if signal != "SIGKILL":
        assert not out.parent.exists() and done.stderr.count("\n") == 1
    done = run(*inputs, "--out", str(out), module="lawa_exp.average", warm=True)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in out.iterdir()] == ["in_3.pt"] and [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("killed", [True, False])
def test_two_processes_of_the_same_command(killed, tmp_path):
    """The first has written everything and given nothing its name when the second begins, and is killed or ends."""
    (tmp_path / "in").mkdir()
    make(tmp_path / "in", state, steps=range(1, 6))
    asked, module = ["--trajectory", str(tmp_path / "in"), "--k", "2", "--out"], "lawa_exp.average"
    assert run(*asked, str(tmp_path / "alone"), module=module).returncode == 0
    asked.append(str(tmp_path / "out"))
    first = held(Strike("pathlib:Path.rename"), *asked, module=module)
    try:
        second = run(*asked, module=module, strike=Strike("lawa_exp.formats.stream:Stream.run") if killed else None)
        assert second.returncode == (-signals.SIGKILL if killed else 0), second.stderr
        done = go_on(first)
    finally:
        first.kill()
    assert done.returncode == 0 and ("the same as was there already" in done.stdout) != killed, done.stderr
    again = run(*asked, module=module)
    assert again.returncode == 0 and "the same as was there already" in again.stdout, again.stderr
    made, alone = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.pt")} for f in tmp_path.glob("[ao]*"))
    assert made == alone and len(made) == 4 and len(list((tmp_path / "out").iterdir())) == 4


def test_a_background_job_of_a_shell_is_interrupted_too(tmp_path):
    """A shell without job control starts those with SIGINT ignored."""
    inputs = make(tmp_path, state)
    before = {number: signals.getsignal(number) for number in (signals.SIGINT, signals.SIGTERM, signals.SIGHUP)}
    try:
        for number in before:
            signals.signal(number, signals.SIG_IGN)
        average(*inputs, "--out", tmp_path / "out")
        ignored = {number for number in before if signals.getsignal(number) == signals.SIG_IGN}
    finally:
        for number, handler in before.items():
            signals.signal(number, handler)
    assert ignored == {signals.SIGHUP}
