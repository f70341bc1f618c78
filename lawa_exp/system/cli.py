"""Ordinary command lines: one line for a mistake, one line for a failure, the exit codes of the project."""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NoReturn

from lawa_exp.system.errors import Failed, UserError, one_line
from lawa_exp.system.limits import MOST_THREADS, PLAIN_NAME, is_plain_name
from lawa_exp.system.slurm_step import join_ranks

MODULES = "python -m lawa_exp."
OF_A_PATH = {  # mistakes in a path, where others are failures of the disk
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO, errno.EINVAL),
}
NO_TEMPORARY = "No usable temporary directory"  # of the tempfile module, with the errno of a missing path


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line. prefix: what users write before the name of a command."""

    prefix: ClassVar[str] = MODULES

    def __init__(self, *, prog: str, **options: Any) -> None:
        formatter = partial(options.pop("formatter_class", argparse.HelpFormatter), width=_columns() - 2)
        super().__init__(prog=prog.replace(MODULES, self.prefix), formatter_class=formatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """An empty argument is what an unset variable of the shell gives, and would be the current folder."""
        words = sys.argv[1:] if args is None else list(args)
        for before, word in zip(["", *words], words, strict=False):
            if word == "" or (word.startswith("--") and word.endswith("=")):
                name = word[:-1] or (before if before.startswith("-") else "an argument")
                self.error(f"{name} is empty: is a variable of the shell not set?")
        return super().parse_known_args(words, namespace)


def _columns() -> int:
    """The width of the terminal, as shutil has it, whose import would take a twentieth of the time of --help."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return (os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ else 0) or 80
    except (ValueError, OSError):  # a closed stream, no terminal
        return 80


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The flag of every command that may run what a run directory names."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the builders that RUN names; without, only what you have trained with yourself",
    )


def threads(text: str) -> int:
    """argparse's error for what is no number of threads."""
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 0 < int(text) <= MOST_THREADS):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1 to {MOST_THREADS:,}")
    return int(text)


def plain_name(flag: str, name: str) -> str:
    """The name of a folder of results. UserError: it would lead elsewhere."""
    if not is_plain_name(name):
        raise UserError(f"{flag}={name}: expected {PLAIN_NAME}")
    return name


def exit_code(command: Callable[[], int]) -> int:
    """Runs `command`; UserError becomes 2, and a failure that needs no traceback 1, each with one line on stderr."""
    code = _exit_code(command)
    told = os.environ.get("LAWA_EXP_EXIT_CODE")  # of launch/torchrun.sh: torchrun does not hand it on
    if told and os.environ.get("LOCAL_RANK", "0") == "0":
        from pathlib import Path

        Path(told).write_text(str(code))
    return code


def _exit_code(command: Callable[[], int]) -> int:
    try:
        join_ranks()
        return command()
    except UserError as error:
        code, line = 2, str(error)
    except OSError as error:
        code, line = 2 if error.errno in OF_A_PATH else 1, str(error)
        if error.strerror and error.strerror.startswith(NO_TEMPORARY):
            code, line = (
                1,
                f"no temporary file can be written ({error.strerror}): is the disk full? TMPDIR is the place",
            )
    except Failed as error:
        code, line = 1, str(error)
    except KeyboardInterrupt:
        code, line = 1, "interrupted"
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # of Path.resolve
            raise
        code, line = 2, str(error)
    if code != 2 or os.environ.get("RANK", "0") == "0":  # every rank makes the same mistake
        print(f"error: {one_line(line)}", file=sys.stderr)
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
    import shlex

    return shlex.join(["python", "-m", "lawa_exp", *sys.argv[1:]])
