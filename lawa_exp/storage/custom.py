"""Code of the user's own, `package.module:name`: when it may run, and that what was hashed is what runs.

Importing a module is running it. `load` alone does: what the user named on this command line (`allow`), and of a run
directory that is read what `admit` lets through. It imports from the bytes that `fingerprint` read (`use`). Every
choice from outside calls its builder through `made`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Protocol

from lawa_exp.system.errors import UserError
from lawa_exp.system.fingerprint import (
    Code,
    add_current_folder,
    digest_of,
    file_of,
    fingerprint,
    hash_of,
    installed_folders,
    is_pythons_or_ours,
    merged,
)

COPIES = "code"  # the folder of a run that holds the sources
SHOWN, SHOWN_FILES = 80, 3  # characters of the arguments in a message, and files


@dataclass(frozen=True)
class Builder:
    """A builder that a training names. key: of its settings, such as `layers.custom`. digest: of the sources that it
    must have (`digest_of`); None: any."""

    key: str
    address: str
    args: Mapping[str, object] | None
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.key}.builder={self.address}"

    @property
    def request(self) -> str:
        return _request(self.address, self.args)


def write_copies(code: Code, folder: Path) -> None:
    """The sources, as `folder` of PYTHONPATH takes them; those of earlier starts stay."""
    partial = folder.with_name(f".partial-{folder.name}")
    for name, content in code.files.items():
        path = folder / name if folder.exists() else partial / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    if partial.exists():
        partial.rename(folder)


@dataclass(frozen=True)
class _Allowed:
    """What this process may run: the key that named it, and the sources that it must have (None: any)."""

    key: str
    sources: dict[str, str] | None = None


_allowed: dict[str, _Allowed] = {}  # by request
_compiled: dict[str, str] = {}  # {module: hash} of extension modules, which a process imports once
_code = Code()  # what is imported


class _FromBytes(SourceFileLoader):
    """Imports the modules of `_code` from the bytes that were hashed; no .pyc is read or written for them."""

    def __init__(self, module: str, file: Path, code: Code, content: bytes) -> None:
        super().__init__(module, str(file))
        self.code, self.content = code, content

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.content, self.path)

    def get_data(self, path: str) -> bytes:
        return self.content if path == self.path else super().get_data(path)

    @classmethod
    def find_spec(
        cls, module: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file, base = _code.origins.get(module), module.replace(".", "/")
        if file is None:
            return None
        for name, folders in ((f"{base}.py", None), (f"{base}/__init__.py", [str(file.parent)])):
            if name in _code.files:
                loader = cls(module, file, _code, _code.files[name])
                return spec_from_file_location(module, file, loader=loader, submodule_search_locations=folders)
        return None


def use(code: Code) -> None:
    """What is imported from now on is this code. Python forgets what it imported of another, or from a file."""
    global _code
    if _FromBytes not in sys.meta_path:
        sys.meta_path.insert(0, _FromBytes)
    for name, module in list(sys.modules.items()):
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        if loader.code.sources != code.sources if isinstance(loader, _FromBytes) else _is_python(name, code):
            del sys.modules[name]
    _code = code


def _is_python(module: str, code: Code) -> bool:
    return module in code.origins and code.origins[module].suffix == ".py"


def load(address: str, arguments: Mapping[str, object], key: str) -> Any:
    """The object at `package.module:name`, to be called with the arguments. UserError: it may not run, or is missing.

    The only place that imports such code: that of the last `use`, where it was of this address.
    """
    request = _request(address, arguments)
    if request not in _allowed:
        raise UserError(f"{key}={address}: not named on this command line")
    if address not in _code.addresses:
        use(fingerprint(address, key))
    sources = _code.addresses[address]
    if _allowed[request].sources not in (None, sources):
        raise UserError(f"{key}={address}: its sources have changed since this command began; give it again")
    for module, hash in sources.items():
        file = _code.origins[module]
        if not _is_python(module, _code) and {_compiled.setdefault(module, hash), hash_of(file.read_bytes())} != {hash}:
            raise UserError(f"{key}={address}: {file} has changed since it was imported in this process; start another")
    add_current_folder()
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={address}: expected package.module:function ({error})") from None


@contextlib.contextmanager
def imports_checked(address: str, key: str) -> Iterator[None]:
    """UserError where what runs in it imports a source that is not in the id."""
    before = set(sys.modules)
    yield
    unknown = {}
    folders = installed_folders()
    for name in [name for name in sys.modules if name not in before]:
        spec: ModuleSpec | None = getattr(sys.modules[name], "__spec__", None)
        file = file_of(spec)
        if not (spec and file) or isinstance(spec.loader, _FromBytes) or _code.origins.get(name) == file:
            continue
        place = file.resolve()
        if not (is_pythons_or_ours(place) or any(place.is_relative_to(folder) for folder in folders)):
            unknown[name] = file
    for name in unknown:  # the next call in this process is to see them as well
        del sys.modules[name]
    if unknown:
        files = ", ".join(str(file) for file in list(unknown.values())[:SHOWN_FILES])
        raise UserError(
            f"{key}={address}: it imports {files}, which its import statements do not lead to; "
            "import it by name, from a folder of PYTHONPATH, so that it is part of the run's id"
        )


class Settings(Protocol):
    """Those of a choice from outside: `builder`, to be called with `args`."""

    @property
    def builder(self) -> str: ...

    @property
    def args(self) -> Mapping[str, object] | None: ...


def made(
    settings: Settings, group: str, *first: object, expected: str, fits: Callable[[Any], bool], **named: object
) -> Any:
    """What the builder of a choice gives, called as `builder(*first, **named, **args)`.

    UserError names the key: it may not run, does not take these arguments, or gives what does not fit. expected: what
    it is to give.
    """
    address, arguments = settings.builder, settings.args or {}
    allowed = _allowed.get(_request(address, arguments))
    place = allowed.key if allowed else group
    key = f"{place}.builder"
    with imports_checked(address, key):
        builder = load(address, arguments, key)
        try:
            inspect.signature(builder).bind(*first, **named, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"{place}.args={arguments}: {address} does not take them ({error})") from None
        result = builder(*first, **named, **arguments)
    if not fits(result):
        raise UserError(f"{key}={address}: expected {expected}, got {type(result).__name__}")
    return result


def digest(address: str) -> str:
    """Of the sources of a builder that is in use."""
    return digest_of(_code.addresses[address])


def allow(builders: Iterable[Builder]) -> None:
    """Lets them run: the user named them, and their arguments."""
    global _code
    for builder in builders:
        _allowed[builder.request] = _Allowed(builder.key)
        _code = Code()  # the sources are read anew


def read(builders: Mapping[str, Builder]) -> dict[str, Code]:
    """The code of those that may run, by their places, from here on what is imported."""
    codes = {
        place: fingerprint(builder.address, f"{builder.key}.builder")
        for place, builder in builders.items()
        if builder.request in _allowed
    }
    if codes:
        use(merged(codes.values()))
    return codes


def admit(builders: Mapping[str, Builder], written: Mapping[str, object], folder: Path, trust: bool) -> None:
    """Lets builders run that the config.yaml (`written`) of a run directory names, each by its place there.

    UserError unless the user trusts them, or trained with the very same (`record`), which a folder from elsewhere
    cannot bring about; and where their sources have changed since the run was trained.
    """
    for place, builder in builders.items():
        _admit(builder, _written_code(written, place), folder, trust)


def _admit(builder: Builder, then: dict[str, dict[str, str]], folder: Path, trust: bool) -> None:
    copies = (folder / COPIES).resolve()
    more = f"; to read the run, put its copies in place: {copies}" if copies.is_dir() else ""
    try:
        now = fingerprint(builder.address, f"{builder.key}.builder")
    except UserError:
        if not then["sources"]:
            raise
        now = Code()  # a module of the run is named below
    if builder.digest is not None:  # the run has no more of it
        if digest_of(now.sources) != builder.digest:
            raise UserError(f"{builder}: its sources are not what {folder} was trained with{more}")
        then = now.identity
    if not trust and not _is_recorded(builder, then["sources"]):
        text = json.dumps(builder.args or {}, default=str)
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise UserError(
            f"{builder} with {shown} would be run by {folder / 'config.yaml'}, and no training of yours with it is on "
            f"record; --trust runs it{_without_record()}"
        )
    modules = sorted(now.sources.keys() | then["sources"].keys())
    changed = [module for module in modules if now.sources.get(module) != then["sources"].get(module)]
    if changed and (then["sources"] or not trust):
        file = now.origins.get(changed[0])
        what = f"{file} is not what {folder} was trained with" if file else f"{changed[0]}, of {folder}, is not found"
        raise UserError(f"{builder}: {what}{more}")
    other = [
        f"{name} {version}, this environment has {now.packages.get(name, 'none')}"
        for name, version in then["packages"].items()
        if now.packages.get(name) != version
    ]
    if other and os.environ.get("RANK", "0") == "0":
        print(f"warning: {builder}: the run was trained with {'; with '.join(other)}", file=sys.stderr)
    _allowed[builder.request] = _Allowed(builder.key, now.sources)


def _written_code(written: Mapping[str, object], place: str) -> dict[str, dict[str, str]]:
    """The `Code.identity` in a config.yaml of the builder at a place; that of no code where there is none."""
    code: Any = written
    for key in ("identity", *place.split("."), "code"):
        if isinstance(code, list):
            code = code[int(key)] if key.isdigit() and int(key) < len(code) else None
        else:
            code = code.get(key) if isinstance(code, Mapping) else None
    parts = {}
    for key in ("sources", "packages"):
        part = code.get(key) if isinstance(code, Mapping) else {}
        if not isinstance(part, dict) or not all(isinstance(text, str) for item in part.items() for text in item):
            return Code().identity
        parts[key] = part
    return parts


def _request(address: str, arguments: Mapping[str, object] | None) -> str:
    return json.dumps([address, dict(arguments or {})], default=str)


# What the user trained with is on record in a folder of the user's own, an empty file for each.


def record(builder: Builder, code: Code) -> str | None:
    """Puts on record that the user trains with it, which is a part of `code`; else a line that tells why not."""
    entry = _entry(builder, code.addresses[builder.address])
    try:
        if entry is None:
            raise OSError("no home directory")
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.touch()
    except OSError as error:
        return f"{builder.address} is not on record ({error}): reading this run takes --trust"
    return None


def _is_recorded(builder: Builder, sources: Mapping[str, str]) -> bool:
    entry = _entry(builder, sources)
    return entry is not None and entry.is_file()


def _entry(builder: Builder, sources: Mapping[str, str]) -> Path | None:
    words = json.dumps([builder.request, dict(sources)], sort_keys=True)
    root = _record_folder()
    return root / hashlib.sha256(words.encode()).hexdigest() if root else None


def _record_folder() -> Path | None:
    """XDG_STATE_HOME or ~/.local/state; a relative one would be the current folder's, which may be from elsewhere."""
    root = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not root.is_absolute():
        with contextlib.suppress(RuntimeError):  # no home
            root = Path.home() / ".local" / "state"
    return root / "lawa_exp" / "builders" if root.is_absolute() else None


def _without_record() -> str:
    """For a message: why nothing can be on record."""
    folder = _record_folder()
    existing = next((p for p in (folder, *folder.parents) if p.exists()), None) if folder else None
    if existing and existing.is_dir() and os.access(existing, os.W_OK):
        return ""
    return f", the only way, as {folder or 'a home directory'} cannot be written"
