"""Sends a run's rows to W&B while it trains, from a process of its own that reads its files.

Training only starts this process and, when it ends, waits for it for a bounded time: whatever happens in W&B (no
network, a crash, a hang, a full disk) happens here. Standard input is the line to the training: its end, for whatever
reason, is the training's end. Standard output carries the lines for the user. After a failure the process starts itself
anew and sends what W&B lacks; the JSONL files have everything.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lawa_exp.axes.logger.wandb.settings import WandbLogger, mode_of, project_of
from lawa_exp.config.shared import Logger
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import locked

POLL = 1.0  # seconds between two looks at the files
AGAIN = 30.0  # seconds from a failure to the next attempt
GRACE = 2.0  # seconds that a training which was stopped waits
CHANNEL = 1  # standard output


@contextmanager
def following(settings: Logger | None, run: RunDir, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Gives the function that starts the process (once the run's files are as the training goes on from them).

    Leaving the context waits for it, see `finish`. Any other logger: nothing is done.
    UserError where logger=wandb and wandb is not installed; later nothing raises.
    """
    if not isinstance(settings, WandbLogger) or mode_of(settings.mode) == "off":
        yield lambda: None
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError("logger=wandb: the package wandb is missing; pip install 'lawa_exp[wandb]', or logger=jsonl")
    follower: list[tuple[subprocess.Popen, threading.Thread]] = []

    def start() -> None:
        try:
            process = launch(settings, run)
        except OSError as error:
            say(f"warning: W&B: {error}; training goes on, {later(run)}")
            return
        listener = threading.Thread(target=tell, args=(process, say), daemon=True)
        listener.start()
        follower.append((process, listener))

    try:
        yield start
    finally:
        for process, listener in follower:
            finish(process, listener, settings.finish_timeout, run, say)


def finish(
    process: subprocess.Popen, listener: threading.Thread, timeout: float, run: RunDir, say: Callable[[str], None]
) -> None:
    """Tells the process that the training has ended, and waits for it.

    A training that was stopped has no time, and one that failed has other things to say: the process is left to its
    end, which is `timeout` seconds away at most, and the next start sends what is missing.
    """
    with suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    over = (run.marker() or ("", {}))[0] in ("DONE", "DIVERGED")
    try:
        code = process.wait(timeout if over else min(timeout, GRACE))
        listener.join(1)
    except subprocess.TimeoutExpired:
        code = -1
        if over:
            with suppress(OSError):
                process.kill()
    if code and over:
        say(f"warning: W&B does not have everything; {later(run)}")


def later(run: RunDir) -> str:
    return f"python -m lawa_exp.push {run.path} sends it later"


def launch(settings: WandbLogger, run: RunDir) -> subprocess.Popen:
    (run.path / "wandb").mkdir(exist_ok=True)
    package = str(Path(__file__).parents[4])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    inherited = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # another program's
    words = [sys.executable, "-m", "lawa_exp.axes.logger.wandb.follow", str(run.path), "--watch", str(os.getpid())]
    words += ["--mode", mode_of(settings.mode), "--project", project_of(settings.project)]
    words += ["--timeout", str(settings.finish_timeout)]
    words += ["--entity", settings.entity] if settings.entity else []
    with (run.path / "wandb" / "log.txt").open("a") as log:
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
    parser = argparse.ArgumentParser(prog="python -m lawa_exp.axes.logger.wandb.follow", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mode", choices=("online", "offline"), required=True)
    parser.add_argument("--project", required=True)
    parser.add_argument("--entity")
    parser.add_argument("--watch", type=int, help="the process that trains")
    parser.add_argument("--timeout", type=float, required=True, help="seconds to go on after the training's end")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--last", action="store_true", help="the training has ended: no attempt after this one")
    args = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if args.attempt == 1:
        os.nice(10)  # training comes first
    channel = os.dup(CHANNEL)
    os.dup2(2, CHANNEL)  # what wandb prints goes to the log

    def say(line: str) -> None:
        with suppress(OSError):
            os.write(channel, f"{line}\n".encode())

    ended = threading.Event()
    threading.Thread(target=watch_the_end, args=(ended, args.timeout), daemon=True).start()
    run = RunDir(args.run)
    try:
        follow(run, args, ended, say)
        return 0
    except Exception as error:  # whatever it is, it is W&B's or ours, and training must not know
        import traceback

        traceback.print_exc()
        if args.attempt == 1:
            reason = str(error).strip().splitlines()
            say(
                f"warning: W&B: {type(error).__name__}: {reason[0] if reason else ''}; training goes on, "
                f"tried again every {AGAIN:.0f} s (details: {run.path / 'wandb' / 'log.txt'})"
            )
        if args.last:
            os._exit(1)  # without the clean-up of a library that has failed
        ended.wait(AGAIN)
        sys.stderr.flush()
        os.dup2(channel, CHANNEL)
        os.environ.pop("WANDB_SERVICE", None)  # the failed one's
        rest = [*arguments, "--attempt", str(args.attempt + 1), *(["--last"] if ended.is_set() else [])]
        os.execv(sys.executable, [sys.executable, "-m", "lawa_exp.axes.logger.wandb.follow", *rest])


def watch_the_end(ended: threading.Event, timeout: float) -> None:
    """Waits for the end of standard input, then at most `timeout` seconds; then this process is no more."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    ended.set()
    time.sleep(timeout)
    os._exit(1)


def follow(run: RunDir, args: argparse.Namespace, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Sends rows until the training has ended, then the rest."""
    from lawa_exp.axes.logger.wandb.send import Differs, Place, Sender

    with waiting_lock(run, args.timeout):
        sender = Sender(run, Place(args.project, args.entity, args.mode), watch=args.watch)
        if sender.url:
            say(f"W&B: {sender.url}")
        elif args.attempt > 1:
            say("W&B: connected")
        while not ended.is_set():
            try:
                sender.send(whole=False)
            except Differs as error:
                say(f"warning: W&B: {error}; {later(run)} as a run of its own")
                sender.known = (None, None)
            ended.wait(POLL)
        sender.finish()


@contextmanager
def waiting_lock(run: RunDir, timeout: float) -> Iterator[None]:
    """One sender for a run: that of a training that ended a moment ago may still be at its end."""
    (run.path / "wandb").mkdir(exist_ok=True)
    with ExitStack() as stack:
        for left in range(int(timeout) + 5, -1, -1):
            try:
                stack.enter_context(locked(run.path / "wandb" / ".lock", f"{run.path / 'wandb'}"))
                break
            except UserError:
                if not left:
                    raise
                time.sleep(1)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
