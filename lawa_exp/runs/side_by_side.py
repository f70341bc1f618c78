"""`sweep.jobs=N`: N trainings of a multirun at a time on this machine, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from lawa_exp.config.shared import Options
from lawa_exp.runs.builders import builders
from lawa_exp.runs.choices import config_to, unresolved_from
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.runs.turns import MISTAKE, PUT_OFF, Ended, Training, attempt
from lawa_exp.storage import custom
from lawa_exp.storage.rundir import EXIT
from lawa_exp.system import signals
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import Failed, InUse, UserError
from lawa_exp.system.machine import usable_cores
from lawa_exp.system.prefixed import prefixed

LOOK = 0.2  # seconds between two looks at whether a signal came
Report = tuple[int, str] | None  # what a process says at its end: code and reason; None: another has the run


@dataclass
class Started:
    """A training's process. slot: 0 to jobs - 1, no two at a time the same."""

    training: Training
    process: Any
    report: connection.Connection
    slot: int


def side_by_side(
    trainings: Sequence[Training], options: Options, device: torch.device, say: Callable[[str], None]
) -> dict[int, Ended]:
    """How each ended, by its number; one that fails, or whose process is lost, does not stop the others.

    A training starts when those before it that it goes on from have ended: of its own run, or of one that it names.
    A stop signal stops all of them, saved.
    """
    jobs = min(options.sweep.jobs, len(trainings))
    gpus = visible_gpus(device)
    say(shares(trainings, jobs, gpus))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    waiting, running, ended, put_off = list(trainings), list[Started](), dict[int, Ended](), set[int]()
    stopped = False
    try:
        while running or (waiting and not signals.stop_requested()):
            if signals.stop_requested() and not stopped:
                stopped = True
                for started in running:
                    started.process.terminate()
            while not signals.stop_requested() and len(running) < jobs:
                ready = next((t for t in waiting if not needs(t, trainings, ended)), None)
                if ready is None:
                    break
                waiting.remove(ready)
                slot = min(set(range(jobs)) - {started.slot for started in running})
                say(f"\n[{ready.number}] training {ready.number} of {len(trainings)}: {ready.title}")
                gpu = gpus[slot % len(gpus)] if gpus else None
                try:
                    running.append(start(context, ready, options, gpu, ready.number in put_off, slot))
                except Failed as error:
                    ended[ready.number] = failed(ready, str(error))
            connection.wait([started.process.sentinel for started in running], timeout=LOOK)
            for started in [s for s in running if not s.process.is_alive()]:
                running.remove(started)
                number = started.training.number
                how = end_of(started)
                if how is None:
                    say(f"[{number}] {PUT_OFF}")
                    put_off.add(number)
                    waiting.append(started.training)
                else:
                    ended[number] = how
    finally:
        for started in running:  # a second Ctrl-C
            started.process.kill()
    return ended | {training.number: Ended(EXIT["stopped"]) for training in waiting}


def shares(trainings: Sequence[Training], jobs: int, gpus: Sequence[str]) -> str:
    """A line on what each training has of the machine."""
    threads = sorted({training.prepared.config.trainer.threads for training in trainings})
    cores = usable_cores()
    each = f"{threads[0]}" if len(threads) == 1 else f"{threads[0]} to {threads[-1]}"
    said = f"{jobs} trainings at a time, each with trainer.threads={each} of {cores} cores"
    if jobs * threads[-1] > cores:
        said += f" (more threads than cores: {jobs} times {threads[-1]})"
    if gpus:
        several = " and shares its memory with others" if jobs > len(gpus) else ""
        said += f"; each has one of {len(gpus)} GPUs{several}"
    return said


def visible_gpus(device: torch.device) -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them, that of `trainer.device=cuda:1` alone; none on a CPU."""
    if device.type != "cuda":
        return []
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = given or [str(i) for i in range(torch.cuda.device_count())]
    return [names[device.index]] if device.index else names


def needs(training: Training, trainings: Sequence[Training], ended: dict[int, Ended]) -> bool:
    """Whether a training before it that has not ended is of its run, or of one that it goes on or learns from."""
    config = training.prepared.config
    named = {Path(place).resolve() for place in (config.init.from_, config.teacher.from_) if place}
    named.add(training.prepared.run_dir.resolve())
    before = (other for other in trainings if other.number < training.number and other.number not in ended)
    return any(other.prepared.run_dir.resolve() in named for other in before)


def start(context: Any, training: Training, options: Options, gpu: str | None, wait: bool, slot: int) -> Started:
    """Failed: no process could be started."""
    report, tell = context.Pipe(duplex=False)
    prepared = training.prepared
    content = {
        "number": training.number,
        "trajectory": prepared.trajectory,
        "config": config_to(prepared.config),
        "options": replace(options, run_dir=str(prepared.run_dir)),
        "folder": str(Path.cwd()),
        "arguments": sys.argv,
        "gpu": gpu,
        "wait": wait,
    }
    process = context.Process(target=work, args=(content, tell))
    with tell:
        begin(process)
    return Started(training, process, report, slot)


def begin(process: Any) -> None:
    """Failed: the forkserver, Python's process that starts the others, was lost; the next start has a new one."""
    try:
        process.start()
    except (EOFError, OSError) as error:
        raise Failed(f"its process could not be started ({type(error).__name__}: {error})") from None


def end_of(started: Started) -> Ended | None:
    """What the process said at its end; None: another process has the run."""
    started.process.join()
    with contextlib.suppress(EOFError), started.report:
        report: Report = started.report.recv()
        return None if report is None else Ended(*report)
    code = started.process.exitcode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return failed(started.training, f"its process {how}")


def failed(training: Training, how: str) -> Ended:
    """Said on stderr."""
    reason = f"{training.prepared.run_dir}: {how}; the same command goes on"
    print(f"[{training.number}] error: {reason}", file=sys.stderr)
    return Ended(EXIT["failed"], reason)


def work(content: dict[str, Any], tell: connection.Connection) -> None:
    """The process of one training."""
    os.chdir(content["folder"])
    sys.argv = content["arguments"]
    if content["gpu"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = content["gpu"]
    signals.listen()
    threading.Thread(target=end_with_parent, daemon=True).start()
    with prefixed(f"[{content['number']}] "):
        try:
            ended = train(content)
        except InUse:
            tell.send(None)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            tell.send((MISTAKE, str(error)))
        else:
            tell.send((ended.code, ended.reason))


def train(content: dict[str, Any]) -> Ended:
    unresolved = unresolved_from(content["config"])
    custom.allow(builders(unresolved).values())  # the words of the command line
    options: Options = content["options"]
    device, ranks = start_device(unresolved.device)
    prepared: Prepared = prepare(unresolved, options, device, ranks)
    if prepared.trajectory != content["trajectory"]:
        raise UserError(f"run_dir={options.run_dir}: its data, its code or what it goes on from changed a moment ago")

    def say(text: str) -> None:
        print(text, flush=True)

    return attempt(prepared, options, device, ranks, say, wait=content["wait"])


def end_with_parent() -> None:
    """Stops the training, saved, when the multirun's own process is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)
