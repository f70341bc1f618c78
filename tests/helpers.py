"""The real command as a subprocess, struck by a signal at a named point, and run directories compared byte for byte.

Run as a script, this file is the command with a strike armed: `python tests/helpers.py STRIKE MODULE ARGUMENT...`;
`python tests/helpers.py serve` forks one for each line of standard input, from a process that has imported torch.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from lawa_exp.system import signals

# 60 steps of a 21,600-parameter GPT on pydocs. Snapshots: 5, 10, ... 60. States: 15, 30, 45, 60. Evaluations:
# 0 (live), 20 (live, ema, swa), 40 and 60 (live, lawa, ema, swa), in the order of IDS. The LAWA window is full at 30.
TINY = [
    "dataset=pydocs",
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.context=32",
    "batch.size=4",
    "steps=60",
    "k=3",
    "spacing=10",
    "averagers.ema.decay=0.9",
    "averagers.swa.start=20",
    "evaluate.every=20",
    "evaluate.samples=32",
    "save.every=15",
    "trajectory.every=5",
    "lr.warmup_steps=5",
    "trainer.threads=1",
]
IDS = ["lawa-k3-s10", "ema-d0.9-e1", "swa-e10-from20"]  # the averagers of TINY
COMPARED = ("metrics.jsonl", "trajectory", "averages", "resume", "states", "readouts")
MARKERS = ("DONE", "FAILED", "DIVERGED", "STOPPED")
LIMIT = 300  # seconds that a process may take
LOST = "Connection closed by peer"  # gloo's, at the end of another rank

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Strike:
    """A signal that the process sends itself at the n-th call of a function whose first path ends with `of`.

    at: "module:name" or "module:Class.name"; "files": the n-th change of a file or folder under `of`, as Python's audit
    events tell. when: before or after the call; half: after it, with only half of the file that it wrote (a folder,
    which it was to remove, loses one file instead of the call). rank: the only one that strikes (None: each). whom: the
    process itself; all ranks, and torchrun if there is one; or torchrun alone, which asks its ranks to stop, and this
    one waits.
    """

    at: str
    when: str = "before"
    of: str = ""
    n: int = 1
    signal: str = "SIGKILL"
    rank: int | None = None
    whom: str = "self"  # or everyone, torchrun


UPDATE = "lawa_exp.training.update:take_step"  # a point for strikes


def tiny(*overrides: str) -> list[str]:
    """TINY with these in place of its own."""
    keys = {o.split("=")[0] for o in overrides}
    return [*(o for o in TINY if o.split("=")[0] not in keys), *overrides]


def run(
    *arguments: str,
    strike: Strike | None = None,
    warm: bool | None = None,
    module: str = "lawa_exp",
    ranks: int = 1,
    **options: Any,
) -> Done:
    """`python -m MODULE ARGUMENT...` to its end, under torchrun if there are several ranks.

    warm: forked, every rank, from a process that has imported what a run imports, which saves seconds of each; so is
    all of one rank unless said otherwise. Then `cwd` is the only option, in which `{rank}` is the rank's number, and
    there is no torchrun.
    """
    if warm is None:
        warm = ranks == 1 and options.keys() <= {"cwd"}
    if warm or (strike and ranks == 1):
        done = _forked(strike, module, arguments, ranks, **options)
        if ranks > 1 and not strike and done.returncode == 1 and LOST in done.stderr:
            # Once in some thousand starts on busy cores, and why is not known. The same command goes on.
            warnings.warn(f"a rank was lost, and the command is run again: {done.stderr}", stacklevel=2)
            done = _forked(strike, module, arguments, ranks, **options)
        return done
    launch = command(*arguments, strike=strike, module=module, ranks=ranks)
    return subprocess.run(launch, capture_output=True, text=True, timeout=LIMIT, **options)


def held(strike: Strike, *arguments: str, module: str) -> subprocess.Popen[str]:
    """The command as a process that has stopped itself at the strike, a SIGSTOP, until it gets a SIGCONT."""
    pipe = subprocess.PIPE
    launch = command(*arguments, strike=replace(strike, signal="SIGSTOP"), module=module)
    process = subprocess.Popen(launch, stdout=pipe, stderr=pipe, text=True)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"{strike} did not hit"
    return process


def go_on(process: subprocess.Popen[str]) -> Done:
    """Lets a `held` command run to its end."""
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=LIMIT)
    return Done(process.args, process.returncode, out, err)


def run_all(folder: Path, ranks: int, commands: dict[str, list[str]]) -> dict[str, Done]:
    """One after another on so many ranks, forked; run_dir of each is FOLDER/NAME, up to a `+` in the name."""
    return {
        name: run(*asked, f"run_dir={folder / name.partition('+')[0]}", ranks=ranks, warm=True)
        for name, asked in commands.items()
    }


def command(*arguments: str, strike: Strike | None = None, module: str = "lawa_exp", ranks: int = 1) -> list[str]:
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    if strike:
        return [*launch, __file__, json.dumps(asdict(strike)), module, *arguments]
    return [*launch, "-m", module, *arguments]


def run_module(strike: dict[str, Any] | None, module: str, arguments: list[str]) -> None:
    """The command, in this process."""
    if strike:
        arm(Strike(**strike))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _forked(
    strike: Strike | None, module: str, arguments: tuple[str, ...], ranks: int, cwd: str | Path | None = None
) -> Done:
    request = [ranks, str(cwd or Path.cwd()), asdict(strike) if strike else None, module, arguments]
    return Done([module, *arguments], *answer((__file__, "serve"), request))


def answer(script: tuple[str, ...], request: list[Any]) -> tuple[Any, str, str]:
    """What a server says of a request, and what the command has written to stdout and stderr."""
    server = _server(script)
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        server.stdin.write(json.dumps([*request, str(out), str(err)]) + "\n")
        server.stdin.flush()
        said = json.loads(server.stdout.readline())
        return said, out.read_text(errors="replace"), err.read_text(errors="replace")


@cache
def _server(script: tuple[str, ...]) -> subprocess.Popen[str]:
    """It ends when its standard input does, with this process."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *script], stdin=pipe, stdout=pipe, text=True)


IMPORTED = (
    "torch._dynamo",
    "lawa_exp.runs.execute",
    "lawa_exp.runs.sweep",
    "lawa_exp.readout.command",
    "matplotlib.pyplot",
)


def warm_up(*more: str) -> None:
    """Imports what commands import."""
    for module in (*IMPORTED, *more):
        importlib.import_module(module)
    importlib.import_module("lawa_exp.launch.compose").compose([])  # Hydra's plugins and parser


def serve() -> None:
    sys.path.append(str(Path(__file__).parent / "distributed"))
    warm_up()
    for line in sys.stdin:
        ranks, *request = json.loads(line)
        print(_serve_ranks(ranks, request), flush=True)


def _serve_ranks(ranks: int, request: list[Any]) -> int:
    """Its exit code; of several ranks the largest. One that fails asks the others to end, as torchrun does."""
    import torch.distributed

    if ranks > 1:
        importlib.import_module(request[2])  # what it imports, once for all
    # As torchrun's agent does, this process has the port; nobody has to guess a free one.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if ranks > 1 else None
    running = {}
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if store:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
                place |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
                os.environ.update({name: str(value) for name, value in place.items()})
            serve_one(*request)
        running[child] = rank
    codes = []
    while running:
        ended, status = os.waitpid(-1, 0)
        rank = running.pop(ended)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1]:
            if running and codes[-1] != 2 and not request[1]:  # what is refused says so
                with Path(request[-1]).open("a") as err:
                    err.write(
                        f"rank {rank} ended with {codes[-1]}, before rank {', '.join(map(str, running.values()))}\n"
                    )
            for other in running:
                os.kill(other, signal.SIGTERM)
    return max(codes)


def serve_one(
    cwd: str, strike: dict[str, Any] | None, module: str, arguments: list[str], out: str, err: str, limit: int = LIMIT
) -> NoReturn:
    """The command in this process, a fork of a server. limit: seconds."""
    signal.alarm(limit)
    faulthandler.enable()
    for number, path in (1, out), (2, err):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    cwd = cwd.replace("{rank}", os.environ.get("RANK", "0"))
    os.chdir(cwd)
    sys.path.insert(0, cwd)  # as `python -m` does
    code = 0
    try:
        run_module(strike, module, arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def arm(strike: Strike) -> None:
    """Puts the strike in place, in this process."""
    if strike.rank is not None and strike.rank != int(os.environ.get("RANK", "0")):
        return
    if strike.at == "files":
        sys.addaudithook(_count_file_changes(strike))
        return
    module, _, names = strike.at.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for attribute in outer:
        owner = getattr(owner, attribute)
    setattr(owner, name, _struck(getattr(owner, name), strike))


def _struck(original: Callable[..., Any], strike: Strike) -> Callable[..., Any]:
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        path = next((a for a in args if isinstance(a, Path)), None)
        counts = str(path).endswith(strike.of)
        calls += counts
        if calls != strike.n or not counts:
            return original(*args, **kwargs)
        if strike.when == "before":
            _hit(strike)
        if strike.when == "half" and path is not None and path.is_dir():
            next(p for p in sorted(path.rglob("*")) if p.is_file()).unlink()
            _hit(strike)
        result = original(*args, **kwargs)
        if strike.when == "half":
            assert path is not None
            os.truncate(path, path.stat().st_size // 2)
        if strike.when != "before":
            _hit(strike)
        return result

    return call


def _count_file_changes(strike: Strike) -> Callable[[str, tuple[Any, ...]], None]:
    left = strike.n

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            path, _, flags = args
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            path = args[0]
        else:
            return
        if strike.of in str(path) or not str(path).startswith("/"):  # rmtree names files relative to a folder
            left -= 1
            if left == 0:
                _hit(strike)

    return hook


def _settle() -> None:
    """What the training has queued is on the disk: where a process dies is then the same each time."""
    if "lawa_exp.system.background" in sys.modules and threading.current_thread() is threading.main_thread():
        from lawa_exp.system.background import Background

        for background in (o for o in gc.get_objects() if type(o) is Background):
            background.drain()


def _hit(strike: Strike) -> None:
    _settle()
    number, torchrun = signal.Signals[strike.signal], os.getppid()
    if strike.whom == "torchrun":
        os.kill(torchrun, number)
        while not signals.stop_requested():
            time.sleep(0.01)
        return
    if strike.whom == "everyone":
        listed = " ".join(p.read_text() for p in Path(f"/proc/{torchrun}/task").glob("*/children"))
        above = set() if "serve" in sys.orig_argv else {torchrun}  # which is not to end with the ranks that it forked
        for process in (above | set(map(int, listed.split()))) - {os.getpid()}:
            os.kill(process, number)
    os.kill(os.getpid(), number)


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file that must be the same in a run that was disturbed, by its path in the run directory.

    Not of checksums: killed behind a file and before its checksum, it is taken as it is.
    """
    files = [p for name in COMPARED for p in [folder / name, *sorted((folder / name).rglob("[!.]*"))] if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_same_run(folder: Path, twin: Path) -> None:
    """Metrics, snapshots, averages, states and read-outs are byte-equal, and nothing else lies beside them."""
    mine, others = contents(folder), contents(twin)
    assert "metrics.jsonl" in others, f"{twin} holds no run"
    different = sorted(f for f in mine.keys() | others.keys() if mine.get(f) != others.get(f))
    assert not different, f"not the same bytes as the undisturbed run: {different}"


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def lines_of(folder: Path, *ids: str, name: str = "metrics.jsonl", split: str = "val") -> list[str]:
    """The rows of these weights as they stand in the file, byte for byte, sorted."""
    found = (folder / name).read_text().splitlines()
    return sorted(line for line in found if json.loads(line)["weights"] in ids and json.loads(line)["split"] == split)


def states(folder: Path) -> list[int]:
    """The steps of the committed states, ascending."""
    return sorted(int(p.parent.name[5:]) for p in (folder / "resume").glob("step_*/manifest.json"))


def markers(folder: Path) -> list[str]:
    return [name for name in MARKERS if (folder / name).exists()]


def assert_whole(folder: Path) -> None:
    """A finished run of TINY that is worth comparing with: it learned, and every average has rows and weights."""
    found = rows(folder)
    live = {r["step"]: r["loss"] for r in found if r["split"] == "val" and r["weights"] == "live"}
    assert list(live) == [0, 20, 40, 60] and live[60] < live[0] - 1
    assert [r["step"] for r in found if r["split"] == "train"], "no training rows"
    evaluated = {id: [r["step"] for r in found if r["weights"] == id] for id in IDS}
    assert evaluated == {"lawa-k3-s10": [40, 60], "ema-d0.9-e1": [20, 40, 60], "swa-e10-from20": [20, 40, 60]}
    assert len({r["loss"] for r in found if r["step"] == 60 and r["split"] == "val"}) == 4, "averages equal to live"
    for id in IDS:
        assert (folder / "averages" / id / "step_00000060" / "model.safetensors").is_file()
    assert sorted(p.name for p in (folder / "trajectory").iterdir()) == [f"step_{s:08d}" for s in range(5, 61, 5)]
    assert states(folder) == [45, 60] and markers(folder) == ["DONE"]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        run_module(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])
