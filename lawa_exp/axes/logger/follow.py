"""Sends a run's rows to a logger while it trains, from a process of its own that reads the run's files.

Training only starts this process and, when it ends, waits for it for a bounded time: whatever happens in a logger (no
network, a crash, a hang, a full disk) happens here. Standard input is the line to the training: its end, for whatever
reason, is the training's end. Standard output carries the lines for the user. After a failure the process starts itself
anew and sends what the logger lacks; the JSONL files have everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lawa_exp.axes.logger import LOGGERS
from lawa_exp.axes.logger.settings import Differs, LoggerSettings
from lawa_exp.config.rules import build
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import locked

POLL = 1.0  # seconds between two looks at the files
AGAIN = 30.0  # seconds from a failure to the next attempt
GRACE = 2.0  # seconds that a training which was stopped waits
CHANNEL = 1  # standard output


@contextmanager
def following(
    loggers: Sequence[LoggerSettings], run: RunDir, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Gives the function that starts a process for each (once the run's files are as the training goes on from them).

    Leaving the context waits for them, see `finish`.
    UserError where a logger's package is not installed; later nothing raises.
    """
    wanted = [settings for settings in loggers if not settings.off()]
    for settings in wanted:
        check_installed(settings)
    followers: list[tuple[LoggerSettings, subprocess.Popen, threading.Thread]] = []

    def start() -> None:
        for settings in wanted:
            try:
                process = launch(settings, run)
            except OSError as error:
                say(f"warning: {settings.title}: {error}; training goes on, {later(settings, run)}")
                continue
            listener = threading.Thread(target=tell, args=(process, say), daemon=True)
            listener.start()
            followers.append((settings, process, listener))

    try:
        yield start
    finally:
        for _, process, _ in followers:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        for settings, process, listener in followers:
            finish(settings, process, listener, run, say)


def check_installed(settings: LoggerSettings) -> None:
    kind = LOGGERS.kind_of(settings)
    if settings.package and importlib.util.find_spec(settings.package) is None:
        raise UserError(
            f"logger={kind}: the package {settings.package} is missing; pip install 'lawa_exp[{kind}]', or logger=jsonl"
        )


def finish(
    settings: LoggerSettings,
    process: subprocess.Popen,
    listener: threading.Thread,
    run: RunDir,
    say: Callable[[str], None],
) -> None:
    """Waits for the process, which knows that the training has ended.

    A training that was stopped has no time, and one that failed has other things to say: the process is left to its
    end, which is `finish_timeout` seconds away at most, and the next start sends what is missing.
    """
    over = (run.marker() or ("", {}))[0] in ("DONE", "DIVERGED")
    try:
        code = process.wait(settings.finish_timeout if over else min(settings.finish_timeout, GRACE))
        listener.join(1)
    except subprocess.TimeoutExpired:
        code = -1
        if over:
            with suppress(OSError):
                process.kill()
    if code and over:
        say(f"warning: {settings.title} does not have everything; {later(settings, run)}")


def later(settings: LoggerSettings, run: RunDir) -> str:
    kind = LOGGERS.kind_of(settings)
    return f"python -m lawa_exp.push {run.path}{'' if kind == 'wandb' else f' --to {kind}'} sends it later"


def launch(settings: LoggerSettings, run: RunDir) -> subprocess.Popen:
    kind = LOGGERS.kind_of(settings)
    (run.path / kind).mkdir(exist_ok=True)
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    inherited = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # another program's
    words = [sys.executable, "-m", "lawa_exp.axes.logger.follow", str(run.path), "--watch", str(os.getpid())]
    words += ["--kind", kind, "--settings", json.dumps(dataclasses.asdict(settings))]
    with (run.path / kind / "log.txt").open("a") as log:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**inherited, "PYTHONPATH": path},
            start_new_session=True,  # signals are for the training, which tells this process
        )


def tell(process: subprocess.Popen, say: Callable[[str], None]) -> None:
    for line in process.stdout:  # type: ignore[union-attr]
        say(line.rstrip())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m lawa_exp.axes.logger.follow", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--kind", choices=list(LOGGERS), required=True)
    parser.add_argument("--settings", type=json.loads, required=True, help="of the logger, as JSON")
    parser.add_argument("--watch", type=int, help="the process that trains")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--last", action="store_true", help="the training has ended: no attempt after this one")
    args = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    settings = build(LOGGERS[args.kind], args.settings, f"loggers.{args.kind}")
    if args.attempt == 1:
        os.nice(10)  # training comes first
    channel = os.dup(CHANNEL)
    os.dup2(2, CHANNEL)  # what the logger's package prints goes to the log

    def say(line: str) -> None:
        with suppress(OSError):
            os.write(channel, f"{line}\n".encode())

    ended = threading.Event()
    threading.Thread(target=watch_the_end, args=(ended, settings.finish_timeout), daemon=True).start()
    run = RunDir(args.run)
    try:
        follow(settings, run, args, ended, say)
        return 0
    except Exception as error:  # whatever it is, it is the logger's or ours, and training must not know
        import traceback

        traceback.print_exc()
        if args.attempt == 1:
            reason = str(error).strip().splitlines()
            say(
                f"warning: {settings.title}: {type(error).__name__}: {reason[0] if reason else ''}; training goes on, "
                f"tried again every {AGAIN:.0f} s (details: {run.path / args.kind / 'log.txt'})"
            )
        if args.last:
            os._exit(1)  # without the clean-up of a library that has failed
        ended.wait(AGAIN)
        sys.stderr.flush()
        os.dup2(channel, CHANNEL)
        os.environ.pop("WANDB_SERVICE", None)  # the failed one's
        rest = [*arguments, "--attempt", str(args.attempt + 1), *(["--last"] if ended.is_set() else [])]
        os.execv(sys.executable, [sys.executable, "-m", "lawa_exp.axes.logger.follow", *rest])


def watch_the_end(ended: threading.Event, timeout: float) -> None:
    """Waits for the end of standard input, then at most `timeout` seconds; then this process is no more."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    ended.set()
    time.sleep(timeout)
    os._exit(1)


def follow(
    settings: LoggerSettings, run: RunDir, args: argparse.Namespace, ended: threading.Event, say: Callable[[str], None]
) -> None:
    """Sends rows until the training has ended, then the rest."""
    with waiting_lock(run, args.kind, settings.finish_timeout):
        sender = settings.sender(run, args.watch)
        if sender.url:
            say(f"{settings.title}: {sender.url}")
        elif args.attempt > 1:
            say(f"{settings.title}: connected")
        while not ended.is_set():
            try:
                sender.send(whole=False)
            except Differs as error:
                say(f"warning: {settings.title}: {error}; {later(settings, run)} as a run of its own")
            ended.wait(POLL)
        sender.finish()


@contextmanager
def waiting_lock(run: RunDir, kind: str, timeout: float) -> Iterator[None]:
    """One sender for a run: that of a training that ended a moment ago may still be at its end."""
    folder = run.path / kind
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for left in range(int(timeout) + 5, -1, -1):
            try:
                stack.enter_context(locked(folder / ".lock", f"{folder}"))
                break
            except UserError:
                if not left:
                    raise
                time.sleep(1)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
