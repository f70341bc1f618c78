"""One command each in a process forked from one that has imported what commands import: seconds and memory bounded.

`python tests/harness/forked.py` is that process. A child may take so many seconds, and so much memory beyond what it
began with; what ended it is told.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, too

from helpers import answer, serve_one, warm_up

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
    (code, memory), out, err = answer((__file__,), [env or {}, str(cwd), None, module, arguments])
    return Ended(code, out, err, memory)


def serve() -> None:
    warm_up("torch.distributed.checkpoint", "lawa_exp.formats.dcp", "lawa_exp.formats.stream")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            env, *request = json.loads(line)
            os.environ.update(env)
            addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES
            resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
            serve_one(*request, limit=SECONDS)
        _, status, used = os.wait4(child, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ended = [os.waitstatus_to_exitcode(status), max(0, used.ru_maxrss - before) * 1024]
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    serve()
