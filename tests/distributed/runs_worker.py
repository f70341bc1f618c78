"""Several commands one after another on the ranks of one launch, which saves the start of each.

`run_all(folder, ranks, {name: arguments})` starts this file under torchrun. The process group stays from one command to
the next; each command's output on rank 0 and its exit code are what it returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import LIMIT, Done


def run_all(folder: Path, ranks: int, commands: dict[str, list[str]]) -> dict[str, Done]:
    """run_dir of each is FOLDER/NAME, up to a `+` in the name; AssertionError where the launch itself failed."""
    folder.mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    launch += [__file__, str(folder), json.dumps(commands)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=LIMIT, env=environment)
    assert done.returncode == 0, done.stderr
    return {
        name: Done(arguments, int((folder / f"{name}.code").read_text()), (folder / f"{name}.out").read_text(), "")
        for name, arguments in commands.items()
    }


def main() -> None:
    from torch import distributed as dist

    from lawa_exp import distributed
    from lawa_exp.compose import main as command

    finish, distributed.finish = distributed.finish, lambda: None
    folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
    is_main = os.environ["RANK"] == "0"
    for name, arguments in commands.items():
        told = folder / f"{name}.out" if is_main else Path(os.devnull)
        with told.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = command([*arguments, f"run_dir={folder / name.partition('+')[0]}"])
        if is_main:
            (folder / f"{name}.code").write_text(str(code))
        if dist.is_initialized():
            dist.barrier()
    finish()


if __name__ == "__main__":
    main()
