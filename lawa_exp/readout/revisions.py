"""Trajectories whose checkpoints are revisions: of a model on the Hugging Face hub, or folders on the disk.

Those of the hub are fetched when they are read and removed when no window needs them any more.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lawa_exp.formats.choice import Choice
from lawa_exp.formats.folders import INDEX, WHOLE
from lawa_exp.formats.names import step_in
from lawa_exp.formats.steps import find_checkpoints, summary
from lawa_exp.readout.request import HUB
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import locked, read_json

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

T = TypeVar("T")
COMPANIONS = ("config.json", "tokenizer.json")  # fetched with the weights
GOES_ON = "the same command goes on"


class Source(Protocol):
    """Where checkpoints come from. paths: by step, ascending, where each is or will be."""

    name: str
    paths: dict[int, Path]
    identity: dict[str, Any]  # of the checkpoints, as far as it is known without reading them
    notes: list[str]  # which of the checkpoints are taken, and which are left out
    unit: str  # what a step counts, for messages
    unreadable: list[tuple[str, str]]  # names of checkpoints that are left out for that, and why

    def folder_of(self, step: int) -> Path:
        """The folder that has the checkpoint's configuration and tokenizer, if there are any."""
        ...

    def fetch(self, step: int) -> Path:
        """The whole checkpoint, on the disk."""
        ...

    def forget(self, step: int) -> None:
        """Nobody reads this step again."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """InUse while another process removes what it has read."""
        ...


class Folder:
    """Checkpoints on the disk: nothing is fetched, and nothing removed."""

    def __init__(self, root: Path, choice: Choice, verbose: bool, only_readable: bool = True) -> None:
        series = find_checkpoints(root, "RUN", choice, only_readable)
        self.name, self.paths, self.unit = root.resolve().name, series.paths, series.unit
        self.unreadable = series.unreadable
        self.notes = summary(series, list(series.paths.values()), verbose)
        self.identity = {"folder": str(root.resolve()), "checkpoints": {s: _stamp(p) for s, p in self.paths.items()}}

    def folder_of(self, step: int) -> Path:
        path = self.paths[step]
        return path if path.is_dir() else path.parent

    def fetch(self, step: int) -> Path:
        return self.paths[step]

    def forget(self, step: int) -> None:
        pass

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a checkpoint's files: written anew, it is another one."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [(str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


class Hub:
    """The revisions of `owner/name` whose names end with a step. UserError, Failed: it cannot be had, and why."""

    def __init__(self, repository: str, root: Path) -> None:
        """root: a folder of its own for what is fetched."""
        self.repository, self.root, self.name = repository, root, repository.split("/")[-1]
        refs = self._ask(lambda hub, endpoint: hub.HfApi(endpoint).list_repo_refs(repository))
        commits = {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}
        named: dict[int, str] = {}
        for revision in sorted(commits):
            if (step := step_in(revision)) is not None and revision.lower().startswith("step"):
                named[step] = revision
        if not named:
            raise UserError(
                f"RUN={HUB}{repository}: none of its revisions ({', '.join(sorted(commits))}) is named stepN"
            )
        self.commits = {step: commits[revision] for step, revision in named.items()}
        self.paths = {step: root / named[step] for step in sorted(named)}
        self.identity = {"repository": repository, "commits": self.commits}
        self.notes: list[str] = []
        self.unit = "step"
        self.unreadable: list[tuple[str, str]] = []
        self._whole: set[int] = set()

    def folder_of(self, step: int) -> Path:
        sizes = self._listed(step)
        for name in COMPANIONS:
            if name in sizes:
                self._download(step, name)
        return self.paths[step]

    def fetch(self, step: int) -> Path:
        """Every file is checked against the size, and where there is one the SHA-256, that the hub states."""
        path = self.paths[step]
        if step in self._whole:
            return path
        listed = self._listed(step)
        for name in self._weights(step, listed):
            for attempt in (1, 2):
                problem = self._problem(self._download(step, name), listed[name])
                if problem is None:
                    break
                (path / name).unlink()
                if attempt == 2:
                    raise Failed(f"{HUB}{self.repository} {path.name}/{name}, fetched twice, {problem}; {GOES_ON}")
        self.folder_of(step)
        self._whole.add(step)
        return path

    def forget(self, step: int) -> None:
        self._whole.discard(step)
        shutil.rmtree(self.paths[step], ignore_errors=True)
        with suppress(OSError):
            self.root.rmdir()  # when it is empty

    def locked(self) -> AbstractContextManager[None]:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        return locked(self.root.with_name(f"{self.root.name}.lock"), f"{self.root} of RUN={HUB}{self.repository}")

    def _weights(self, step: int, listed: dict[str, RepoSibling]) -> list[str]:
        """The files of weights, an index before its shards."""
        for name in WHOLE:
            if name in listed:
                return [name]
            if name + INDEX in listed:
                index = self._download(step, name + INDEX)
                try:
                    shards = sorted(set(read_json(index)["weight_map"].values()))
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise UserError(f"{index} is damaged: it is no index of shards") from None
                if lacking := [shard for shard in shards if shard not in listed]:
                    raise UserError(
                        f"{HUB}{self.repository} {self.paths[step].name}: {lacking[0]}, which its index names, is not "
                        "there; choose other --revisions"
                    )
                return [name + INDEX, *shards]
        raise UserError(
            f"{HUB}{self.repository} {self.paths[step].name}: no weights there ({' or '.join(WHOLE)}, or their shards)"
        )

    def _listed(self, step: int) -> dict[str, RepoSibling]:
        commit = self.commits[step]
        where = {"revision": commit, "files_metadata": True}
        info = self._ask(lambda hub, endpoint: hub.HfApi(endpoint).model_info(self.repository, **where))
        return {file.rfilename: file for file in info.siblings or []}

    def _download(self, step: int, name: str) -> Path:
        where = {"revision": self.commits[step], "local_dir": self.paths[step]}
        got = self._ask(lambda hub, endpoint: hub.hf_hub_download(self.repository, name, endpoint=endpoint, **where))
        return Path(got)

    @staticmethod
    def _problem(path: Path, listed: RepoSibling) -> str | None:
        size = path.stat().st_size
        if listed.size is not None and size != listed.size:
            return f"has {size:,} bytes in place of {listed.size:,}"
        if listed.lfs is None or not listed.lfs.sha256:
            return None
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == listed.lfs.sha256
        return None if same else "does not have the SHA-256 that the hub states"

    def _ask(self, call: Callable[[ModuleType, str | None], T]) -> T:
        try:
            import huggingface_hub
            import huggingface_hub.utils
        except ImportError:
            raise UserError(
                f"RUN={HUB}{self.repository} needs huggingface_hub: pip install 'lawa_exp[transformers]'"
            ) from None
        if not sys.stderr.isatty():
            huggingface_hub.utils.disable_progress_bars()
        with _hub_errors(self.repository):
            return call(huggingface_hub, os.environ.get("HF_ENDPOINT"))  # the package has it as it was when imported


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the hub, or the way to it, can raise, as one line."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (UserError, Failed):
        raise
    except (HFValidationError, GatedRepoError, RepositoryNotFoundError) as error:
        if isinstance(error, GatedRepoError):
            raise UserError(f"RUN={HUB}{repository}: the hub asks for an accepted licence, and a token") from None
        raise UserError(f"RUN={HUB}{repository}: no such model on the Hugging Face hub (expected OWNER/NAME)") from None
    except RevisionNotFoundError:
        raise UserError(f"{HUB}{repository}: a revision is no longer there") from None
    except LocalEntryNotFoundError as error:
        raise Failed(f"{HUB}{repository}: the hub cannot be reached ({_first_line(error)}); {GOES_ON}") from None
    except EntryNotFoundError as error:
        raise UserError(f"{HUB}{repository}: a file is not there ({_first_line(error)})") from None
    except Exception as error:  # of the network: several packages' own kinds
        raise Failed(f"{HUB}{repository}: {_first_line(error)}; {GOES_ON}") from None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def revision_steps(source: Source, revisions: str | None) -> list[int]:
    """The steps that `--revisions` names: `step1000..step143000`, single ones, or several with commas; None: all.

    UserError names one that is missing, and its neighbours.
    """
    if revisions is None:
        return list(source.paths)
    steps: set[int] = set()
    for part in revisions.split(","):
        first, dots, last = part.strip().partition("..")
        ends = [_step(end, revisions) for end in ([first, last] if dots else [first])]
        for end, named in zip(ends, (first, last), strict=False):
            if end not in source.paths:
                raise UserError(f"--revisions={revisions}: {source.name} has no {named}; {_neighbours(source, end)}")
        if ends[0] > ends[-1]:
            raise UserError(f"--revisions={revisions}: {first} is later than {last}")
        steps |= {s for s in source.paths if ends[0] <= s <= ends[-1]}
    return sorted(steps)


def _step(name: str, revisions: str) -> int:
    if not re.fullmatch(r"(step[-_]?)?\d+", name):
        raise UserError(f"--revisions={revisions}: expected step1000..step143000, or single ones with commas")
    return int(re.findall(r"\d+", name)[0])


def _neighbours(source: Source, step: int) -> str:
    before = max((s for s in source.paths if s < step), default=None)
    after = min((s for s in source.paths if s > step), default=None)
    return "it has " + " and ".join(source.paths[s].name for s in (before, after) if s is not None)
