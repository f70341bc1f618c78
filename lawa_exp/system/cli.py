"""Ordinary command lines: one line for a mistake, one line for a failure, the exit codes of the project."""

from __future__ import annotations

import argparse
import atexit
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.slurm_step import join_ranks


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The flag of every command that may run what a run directory names."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the builders that RUN names; without, only what you have trained with yourself",
    )


def exit_code(command: Callable[[], int]) -> int:
    """Runs `command`; UserError becomes 2, and a failure that needs no traceback 1, each with one line on stderr."""
    code = _exit_code(command)
    told = os.environ.get("LAWA_EXP_EXIT_CODE")  # of launch/torchrun.sh: torchrun does not hand it on
    if told and os.environ.get("LOCAL_RANK", "0") == "0":
        Path(told).write_text(str(code))
    return code


def _exit_code(command: Callable[[], int]) -> int:
    try:
        join_ranks()
        return command()
    except UserError as error:
        code, line = 2, str(error)
    except (Failed, OSError) as error:
        code, line = 1, str(error)
    except KeyboardInterrupt:
        code, line = 1, "interrupted"
    if code != 2 or os.environ.get("RANK", "0") == "0":  # every rank makes the same mistake
        print(f"error: {line}", file=sys.stderr)
    return code


def leave(code: int) -> NoReturn:
    """Ends the process; at once where all went well: taking numpy apart takes as long as averaging 100 MB."""
    if code == 0:
        atexit._run_exitfuncs()  # temporary folders are removed there
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream:  # none: it was closed
                    stream.flush()
        except OSError:  # told by Python, in its way
            sys.exit(code)
        os._exit(code)
    sys.exit(code)


def command() -> str:
    """The command line of this process, to be run again."""
    return shlex.join(["python", "-m", "lawa_exp", *sys.argv[1:]])
