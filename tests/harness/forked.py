"""One command each in a process forked from one that has imported what commands import: seconds and memory bounded.

`python tests/harness/forked.py` is that process. A child may take so many seconds, and so much memory beyond what it
began with; what ended it is told.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SECONDS = 120  # of a command: generous, a hang is a hang
MEMORY = 1 << 30  # bytes beyond what the process began with
ADDRESSES = 4 << 30  # bytes of addresses beyond it: a bomb ends before the machine does


@dataclass(frozen=True)
class Ended:
    """code: the exit code, of a signal negative. memory: bytes, the most beyond what it began with."""

    code: int
    out: str
    err: str
    memory: int

    @property
    def lines(self) -> list[str]:
        """Of stderr, but for warnings."""
        return [line for line in self.err.splitlines() if line.strip() and not line.startswith("warning: ")]

    @property
    def wrong(self) -> str | None:
        """How it ended otherwise than with code 2 and one line; None: it did that."""
        if self.code == -signal.SIGALRM:
            return "hang"
        if self.code < 0:
            return f"signal {-self.code}"
        if "Traceback (most recent call last)" in self.err + self.out:
            return "traceback"
        if self.memory > MEMORY:
            return "memory"
        if self.code != 2:
            return "accepted" if self.code == 0 else f"code {self.code}"
        return None if len(self.lines) == 1 else f"{len(self.lines)} lines"


def run(module: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Ended:
    """`python -m MODULE ARGUMENT...` in `cwd`; env is added to the environment."""
    server = _server()
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = [module, list(arguments), str(cwd), env or {}, str(out), str(err)]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code, memory = json.loads(server.stdout.readline())
        return Ended(code, out.read_text(errors="replace"), err.read_text(errors="replace"), memory)


@cache
def _server() -> subprocess.Popen[str]:
    """It ends when its standard input does, with this process."""
    launch = [sys.executable, __file__]
    return subprocess.Popen(launch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


IMPORTED = (
    *("torch._dynamo", "matplotlib.pyplot", "torch.distributed.checkpoint", "lawa_exp.runs.execute"),
    *("lawa_exp.runs.sweep", "lawa_exp.readout.command", "lawa_exp.formats.dcp", "lawa_exp.formats.stream"),
)


def serve() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers.py
    for module in IMPORTED:
        importlib.import_module(module)
    importlib.import_module("lawa_exp.launch.compose").compose([])  # Hydra's plugins and parser
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _command(*json.loads(line))
        _, status, used = os.wait4(child, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ended = [os.waitstatus_to_exitcode(status), max(0, used.ru_maxrss - before) * 1024]
        print(json.dumps(ended), flush=True)


def _command(module: str, arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    from helpers import run_module

    signal.alarm(SECONDS)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    for number, path in (1, out), (2, err):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)  # as `python -m` does
    code = 0
    try:
        run_module(None, module, arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
