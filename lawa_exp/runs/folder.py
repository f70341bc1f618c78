"""Whether a run directory may be used for a training: its lock, its content, the ranks' agreement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lawa_exp.axes.dataset.content import content_digest
from lawa_exp.config.rules import flat
from lawa_exp.runs.prepare import Prepared
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import ELSEWHERE


@contextmanager
def locked_folder(run: RunDir, p: Prepared) -> Iterator[None]:
    """The run's lock, once the folder is known to be this training's own or new."""
    check_folder(run, p)
    with run.locked():
        yield


def check_content(run: RunDir, p: Prepared, ranks: Ranks) -> str | None:
    """The content of the data set beyond its fingerprint, on every rank; None where that covers it.

    UserError where its files were edited in place since the run began.
    """
    content = content_digest(p.data.sampled, ranks)
    before = ranks.from_main(run.data_content() if ranks.is_main else None)
    if content and before and content != before:
        raise UserError(
            f"dataset={p.config.dataset.name}: its files were edited in place since {run.path} began (their sizes and "
            "names are the same, their content is not); put them back, or choose another run_dir"
        )
    return content


def check_ranks(p: Prepared, ranks: Ranks) -> None:
    """UserError, on every rank, where one has another trajectory than rank 0: each has read its own files."""
    first, *others = (flat(identity) for identity in ranks.all_of(p.identity))
    for rank, other in enumerate(others, 1):
        if keys := sorted(k for k in first.keys() | other.keys() if first.get(k) != other.get(k)):
            raise UserError(
                f"rank {rank} has another trajectory than rank 0 ({', '.join(keys[:3])} differ): "
                "its copy of the data or of the code is not the same; give all nodes the same files"
            )


def check_folder(run: RunDir, p: Prepared) -> None:
    """UserError where the folder holds something else than this training."""
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"run_dir={run.path}: expected a folder, this is a file")
    existing = run.read_config()
    files = [f for f in run.path.iterdir() if not f.name.startswith(".")] if run.path.is_dir() else []
    if existing is None and any(f.name not in ELSEWHERE or not f.is_symlink() for f in files):
        raise UserError(f"run_dir={run.path} is not empty and holds no run; choose another run_dir")
    if existing is not None and existing.get("trajectory_id") != p.trajectory:
        there, here = flat(existing.get("identity", {})), flat(p.identity)
        keys = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
        named = "; ".join(f"the run has {k}={there.get(k)}, this command {here.get(k)}" for k in keys[:3])
        if "batch.norm_samples" in keys[:3]:
            named += ": samples that share BatchNorm statistics, by the ranks and micro-batches"
        raise UserError(f"run_dir={run.path} holds another trajectory ({named}); choose another run_dir")
