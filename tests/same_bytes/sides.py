"""A side: a copy of a commit or of this checkout, and what its commands leave in a folder."""

from __future__ import annotations

import io
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NoReturn

from .compare import Facts, contents
from .configured import Command, Configuration, Renamed

PATH = Path(__file__).parent / "path"  # sitecustomize.py and a model from outside
WARM = ("torch._dynamo", "torch.distributed.run", "hydra", "matplotlib.pyplot")  # imported once, before commands fork
LIMIT = 600  # seconds that a command may take
# What is in our environment and not a command's.
OURS = (
    *("LAWA_", "SLURM_", "SBATCH_", "WANDB_", "HF_", "OMP_", "MKL_", "TORCH", "PYTHON", "SAME_BYTES_", "CUDA_"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_"),
)


def export(repository: Path, commit: str | None, to: Path) -> Path:
    """A copy of a commit, or (None) of what lies in the checkout, with new files that are not ignored."""
    git = ["git", "-C", str(repository)]
    to.mkdir(parents=True)
    if commit:
        packed = subprocess.run([*git, "archive", commit], capture_output=True)
        if packed.returncode:
            raise ValueError(f"{commit}: {packed.stderr.decode().strip()} (a shallow clone lacks older commits)")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
            files.extractall(to, filter="tar")
        return to
    listed = subprocess.run([*git, "ls-files", "-coz", "--exclude-standard"], capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (repository / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, to / name)
    return to


def run_side(configuration: Configuration, side: Path, cwd: Path, log: Path, renamed: list[Renamed]) -> Facts:
    """Runs its commands on the code of `side` in the new folder `cwd`; how each ended, and the facts that they left."""
    for folder in (cwd, log):
        folder.mkdir(parents=True)
    facts: Facts = {}
    for number, command in enumerate(configuration.commands, 1):
        words = shlex.split(command.run)
        for rename in renamed:
            words = rename.spelled(words) if rename.on(side) else words
        out = log / f"{number}.out"
        facts[f"command {number}:exit code"] = str(run(words, command, side, cwd, out))
        first = out.read_text().partition("\n")[0]
        facts |= {f"command {number}:first line": first} if first.startswith(("run_dir=", "sweep_dir=")) else {}
    return facts | contents(cwd, {r.new: r.old for r in renamed})


def run(words: list[str], command: Command, side: Path, cwd: Path, out: Path) -> int:
    """The exit code of a command; minus its number where a signal ended it. Its errors lie in `out` with .err."""
    child = os.fork()
    if child == 0:
        _become(words, command, side, cwd, out)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(words: list[str], command: Command, side: Path, cwd: Path, out: Path) -> NoReturn:
    """The command, in this process, which has imported what takes long."""
    code = 1
    try:
        for number, path in enumerate((Path(os.devnull), out, out.with_suffix(".err"))):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), number)
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(LIMIT)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
        environment |= {"PYTHONPATH": f"{PATH}:{side}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "SAME_BYTES_SIDE": str(side)}
        environment |= {"LAWA_CACHE": str(out.parent / "cache"), "XDG_STATE_HOME": str(out.parent / "state")}
        environment |= {"SAME_BYTES_SIGNAL": command.signal, "SAME_BYTES_AT": command.at}
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        sys.path[:1] = [str(cwd), str(PATH), str(side)]  # in place of the folder of this runner
        runpy.run_path(str(PATH / "sitecustomize.py"))
        module, *arguments = ["torch.distributed.run", *words[1:]] if words[0] == "torchrun" else words[2:]
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _late(number: int, frame: object) -> None:
    raise TimeoutError(f"not done after {LIMIT} seconds")
