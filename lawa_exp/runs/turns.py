"""The trainings of a multirun one after another: what another process has in use is put off to the end."""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lawa_exp.config.shared import Options
from lawa_exp.runs.execute import execute
from lawa_exp.runs.prepare import Prepared
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system import distributed, signals
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import Failed, InUse, UserError

MISTAKE = 2
PUT_OFF = "in use by another process: it is tried again after the others"


@dataclass(frozen=True)
class Ended:
    """How a training ended. code: the command's exit code for it. reason: of a failure, one line."""

    code: int
    reason: str = ""


@dataclass(frozen=True)
class Training:
    """One of a multirun's. title: the overrides of its entries."""

    number: int
    prepared: Prepared
    title: str


def wait_for(run: RunDir, ranks: Ranks) -> None:
    """Until no other process holds the run, or a stop signal."""
    while not distributed.Agreement(ranks).now(signals.stop_requested()):
        try:
            with distributed.on_main(ranks, run.locked()):
                return
        except InUse:
            time.sleep(1)


def attempt(
    prepared: Prepared,
    options: Options,
    device: torch.device,
    ranks: Ranks,
    say: Callable[[str], None],
    wait: bool = False,
) -> Ended:
    """Trains, and says on stderr how it failed. wait: until no other process has the run. InUse: another has it."""
    try:
        if wait:
            say(f"waiting for {prepared.run_dir}, which another process has in use")
            wait_for(RunDir(prepared.run_dir), ranks)
        return Ended(execute(prepared, options, device, ranks))
    except InUse:
        raise
    except UserError as error:
        if ranks.is_main:  # every rank makes the same mistake
            print(f"error: {error}", file=sys.stderr)
        return Ended(MISTAKE, str(error))
    except Failed as error:
        if ranks.world > 1:  # the others are elsewhere
            raise
        print(f"error: {error}", file=sys.stderr)
        return Ended(EXIT["failed"], str(error))
    except Exception as error:
        if ranks.world > 1:
            raise
        traceback.print_exc()
        return Ended(EXIT["failed"], f"{type(error).__name__}: {error}")


def in_turn(
    trainings: Sequence[Training], options: Options, device: torch.device, ranks: Ranks, say: Callable[[str], None]
) -> dict[int, Ended]:
    """How each ended, by its number; one that fails does not stop the others, a stop signal does."""
    ended: dict[int, Ended] = {}
    left = deque(trainings)
    put_off: set[int] = set()
    while left:
        if distributed.Agreement(ranks).now(signals.stop_requested()):
            return {**ended, left[0].number: Ended(EXIT["stopped"])}
        training = left.popleft()
        number = training.number
        say(f"\ntraining {number} of {len(trainings)}: {training.title}")
        try:
            ended[number] = attempt(training.prepared, options, device, ranks, say, wait=number in put_off)
        except InUse:
            say(PUT_OFF)
            put_off.add(number)
            left.append(training)
            continue
        if ended[number].code == EXIT["stopped"]:
            break
    return ended
