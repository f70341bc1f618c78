"""The corpora that can be made from their public sources: corpora.yaml."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_suffix(".yaml")
MANY = "train"  # a folder of images has its files below this


@dataclass(frozen=True)
class Written:
    """A file of a corpus. names: patterns of what the source calls it; sha256, md5, words, bytes (size): of it."""

    name: str
    names: Sequence[str]
    sha256: str | None = None
    md5: str | None = None
    words: int | None = None
    size: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Corpus:
    """See corpora.yaml. tree: sha256 over all files of a folder of images; else its `files`."""

    name: str
    use: str
    folder: str
    source: str
    licence: str
    rule: str
    kind: str = "files"
    files: tuple[Written, ...] = ()
    tree: str | None = None

    @property
    def how(self) -> str:
        """The command that makes it."""
        if self.kind == "tokens":
            return f"`python -m lawa_exp.data prepare {self.name} --out data/{self.folder}`, from {self.source}"
        return f"`python -m lawa_exp.data prepare {self.name} --from SOURCE`, a copy of {self.source}"

    def places(self) -> Iterator[Path]:
        """Where it may lie: below LAWA_DATA, then below data/."""
        yield from (Path(root).expanduser() / self.folder for root in (os.environ.get("LAWA_DATA"), "data") if root)

    def is_in(self, place: Path) -> bool:
        return (
            all((place / file.name).is_file() for file in self.files) and (place / (MANY if self.tree else "")).is_dir()
        )

    def damage(self, place: Path) -> str | None:
        """The first file there that has another size than it should, and both sizes; None: none has."""
        for file in self.files:
            size = (place / file.name).stat().st_size
            if file.size not in (None, size):
                return f"{place / file.name} has {size:,} bytes, expected {file.size:,}"
        return None


def corpora() -> Mapping[str, Corpus]:
    """All of them by name."""
    import yaml

    content = yaml.safe_load(FACTS.read_text())
    return {name: _corpus(name, entry) for name, entry in content.items()}


def corpus_in(folder: str | None) -> Corpus | None:
    """The one that lies in a folder of this name."""
    return next((corpus for corpus in corpora().values() if corpus.folder == folder), None) if folder else None


def _corpus(name: str, entry: dict[str, Any]) -> Corpus:
    files = [
        Written(**({"name": file, "names": [Path(file).name]} | facts))
        for file, facts in entry.pop("files", {}).items()
    ]
    return Corpus(name, source=entry.pop("from"), files=tuple(files), **entry)
