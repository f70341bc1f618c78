"""Code of the user's own, `package.module:name`: what it consists of, and when it may run.

`fingerprint` reads the sources and runs nothing, and importing a module is running it. `load` alone runs them: what the
user named on this command line (`allow`), and of a run directory that is read what `admit` lets through.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import json
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lawa_exp.config import UserError

PACKAGE = Path(__file__).resolve().parent  # this package is in no id
STDLIB = tuple(Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}
COPIES = "code"  # the folder of a run that holds the sources
SHOWN = 80  # characters of the arguments in a message


@dataclass(frozen=True)
class Code:
    """What some code consists of; `origins` are the files of its modules.

    sources: {module: hash of its syntax tree} of what is neither installed nor Python's. packages: {name: version} of
    the installed ones that these import. files: {path under a folder of sys.path: content} of the sources.
    """

    sources: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    origins: dict[str, Path] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, dict[str, str]]:
        return {"sources": dict(sorted(self.sources.items())), "packages": dict(sorted(self.packages.items()))}


def fingerprint(address: str, key: str) -> Code:
    """The code of `package.module:name`, with all that it imports; nothing of it runs.

    Imports count wherever they stand, also `import_module("name")`; names that are computed are not followed.
    UserError names the setting `key`: no such module, or a source that cannot be read.
    """
    module, _, name = address.partition(":")
    if not (module and name) or ":" in name or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{key}={address}: expected package.module:function")
    importlib.invalidate_caches()
    with _current_folder():
        try:
            found = _Walk()
            if found.visit(module) is MISSING:
                raise UserError(f"{key}={address}: expected package.module:function (No module named {module!r})")
            found.follow()
        except (SyntaxError, OSError) as error:
            raise UserError(f"{key}={address}: its source cannot be read ({error})") from None
    return found.code


def _add_current_folder() -> None:
    """As `python -m` does, first of all; last where the user wants it not to (PYTHONSAFEPATH)."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(len(sys.path) if sys.flags.safe_path else 0, str(Path.cwd()))


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    before = list(sys.path)
    _add_current_folder()
    try:
        yield
    finally:
        sys.path[:] = before


MISSING, ELSEWHERE = "missing", "elsewhere"  # ELSEWHERE: installed, Python's, or ours


class _Walk:
    """Modules by name, each looked for without importing the packages that it is in."""

    def __init__(self) -> None:
        self.code = Code()
        self.found: dict[str, list[str] | str] = {}  # the folders that hold its submodules, MISSING or ELSEWHERE
        self.imports: list[str] = []  # of the sources, still to be looked for
        folders = {Path(folder).resolve() for folder in sys.path} - {Path.cwd()}  # which may have any name
        self.installed = [folder for folder in folders if folder.name in INSTALLED]

    def follow(self) -> None:
        while self.imports:
            name = self.imports.pop()
            if not name.endswith(".*"):
                self.visit(name)
            elif isinstance(folders := self.visit(name[:-2]), list):
                self.imports += [f"{name[:-2]}.{module.name}" for module in pkgutil.iter_modules(folders)]

    def visit(self, module: str) -> list[str] | str:
        """Adds it and the packages that it is in; of what is elsewhere only the first name is looked for."""
        if module not in self.found:
            package, _, name = module.rpartition(".")
            within = self.visit(package) if package else None
            self.found[module] = within if isinstance(within, str) else self._look(module, name, within)
        return self.found[module]

    def _look(self, module: str, name: str, folders: list[str] | None) -> list[str] | str:
        try:
            spec = PathFinder.find_spec(name, folders) if folders is not None else find_spec(name)
        except ValueError:  # a module in this process that came from nowhere
            spec = None
        if spec is None:
            return MISSING
        inside = list(spec.submodule_search_locations or [])
        file = Path(spec.origin) if spec.origin and spec.has_location else None
        places = [file] if file else [Path(folder) for folder in inside]
        if all([self._is_elsewhere(module, place.resolve()) for place in places]):
            return ELSEWHERE
        if file:
            self._add(module, file, bool(inside))
        return inside

    def _is_elsewhere(self, module: str, place: Path) -> bool:
        if place.is_relative_to(PACKAGE):
            return True
        if not any(place.is_relative_to(folder) for folder in self.installed):
            return any(place.is_relative_to(folder) for folder in STDLIB) and not INSTALLED & set(place.parts)
        versions = installed(module.partition(".")[0])
        self.code.packages.update(versions)
        return bool(versions)  # without: a file that somebody put there

    def _add(self, module: str, file: Path, is_package: bool) -> None:
        content = file.read_bytes()
        stem = "__init__" if is_package else module.rpartition(".")[2]
        suffix = file.name.removeprefix(stem)
        self.code.files[module.replace(".", "/") + ("/__init__" if is_package else "") + suffix] = content
        self.code.origins[module] = file
        if suffix != ".py":
            self.code.sources[module] = hashlib.sha256(content).hexdigest()[:32]
            return
        try:
            self.code.sources[module], more = _parsed(content, module if is_package else module.rpartition(".")[0])
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte
            raise SyntaxError(f"{file}: {error}") from None
        self.imports += more


@functools.lru_cache(maxsize=4096)
def _parsed(content: bytes, package: str) -> tuple[str, list[str]]:
    """The hash of a source, and what it imports. A sweep asks for each of its entries."""
    tree = ast.parse(content)
    return tree_hash(tree), list(imported(tree, package))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that it may import; of `from a import b` also a.b, which may be none, of `from a import *` a.*"""

    def absolute(level: int, name: str) -> str:
        above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        return ".".join([*above, *([name] if name else [])])

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if base := absolute(node.level, node.module or ""):
                yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function, name = node.func, node.args[0].value
            called = getattr(function, "attr", getattr(function, "id", ""))
            if called in ("import_module", "__import__") and isinstance(name, str) and name.strip("."):
                rest = name.lstrip(".")
                yield absolute(len(name) - len(rest), rest)


def tree_hash(tree: ast.AST) -> str:
    """Of what a source does: without comments, docstrings and its layout, the same in every version of Python."""
    digest = hashlib.sha256()
    left: list[Any] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Constant):
            value = f"{node.value:x}" if type(node.value) is int else ascii(node.value)  # of any length
            digest.update(f"{type(node.value).__name__} {value};".encode())
        elif isinstance(node, ast.AST):
            given = [(name, getattr(node, name, None)) for name in sorted(node._fields)]
            given = [(name, value) for name, value in given if value not in (None, []) and name != "type_comment"]
            digest.update(f"{type(node).__name__}({','.join(name for name, _ in given)};".encode())
            left += [value for _, value in reversed(given)]
        elif isinstance(node, list):
            kept = [part for part in node if not _is_text(part)]
            digest.update(f"[{len(kept)};".encode())
            left += reversed(kept)
        else:
            digest.update(f"{node!a};".encode())
    return digest.hexdigest()[:32]


def _is_text(statement: Any) -> bool:
    """A docstring, or another text that stands alone."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@functools.cache
def installed(module: str) -> dict[str, str]:
    """{name: version} of the installed packages that a module of this name belongs to."""
    from importlib import metadata  # takes 0.1 s

    with contextlib.suppress(metadata.PackageNotFoundError):
        return {module: metadata.version(module)}
    return {name: metadata.version(name) for name in metadata.packages_distributions().get(module, [])}


def write_copies(code: Code, folder: Path) -> None:
    """The sources, as `folder` of PYTHONPATH takes them; those of the first start stay."""
    if folder.exists() or not code.files:
        return
    partial = folder.with_name(f".partial-{folder.name}")
    for name, content in code.files.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    partial.rename(folder)


_named: set[str] = set()  # what this process may run
_running: dict[str, str] = {}  # module: the hash of what this process imported


def load(address: str, arguments: Mapping[str, Any], key: str) -> Any:
    """The object at `package.module:name`, to be called with the arguments. UserError: it may not run, or is missing.

    The only place that imports such code.
    """
    if _words(address, arguments) not in _named:
        raise UserError(f"{key}={address}: not named on this command line")
    code = fingerprint(address, key)
    for module, file in code.origins.items():
        if _running.get(module, code.sources[module]) != code.sources[module]:
            raise UserError(f"{key}={address}: {file} has changed since it was imported here; start another process")
    _add_current_folder()
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={address}: expected package.module:function ({error})") from None
    finally:
        _running.update({module: hash for module, hash in code.sources.items() if module in sys.modules})


def allow(model: Any) -> None:
    """Lets the builder of these settings run, if they have one: the user named it, and its arguments."""
    if hasattr(model, "builder"):
        _named.add(_words(model.builder, model.args))


def admit(model: Any, written: Mapping[str, Any], folder: Path, trust: bool) -> None:
    """Lets the builder run that the config.yaml (`written`) of a run directory names.

    UserError unless the user trusts it, or trained with the very same (`record`), which a folder from elsewhere cannot
    bring about; and where its sources have changed since the run was trained.
    """
    if not hasattr(model, "builder"):
        return
    then, named = _written_code(written), f"model.builder={model.builder}"
    try:
        now = fingerprint(model.builder, "model.builder")
    except UserError:
        if not then["sources"]:
            raise
        now = Code()  # told below
    if not trust and not _is_recorded(model.builder, model.args, then["sources"]):
        text = json.dumps(model.args or {}, default=str)
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise UserError(
            f"{named} with {shown} would be run by {folder / 'config.yaml'}, and no training of yours with it is on "
            f"record; --trust runs it{_without_record()}"
        )
    for module in sorted(now.sources.keys() | then["sources"].keys()):
        if now.sources.get(module) != then["sources"].get(module):
            copies = (folder / COPIES).resolve()
            more = f"; {copies} has it: PYTHONSAFEPATH=1 PYTHONPATH={copies} takes that" if copies.is_dir() else ""
            changed = now.origins.get(module, f"module {module}")
            raise UserError(f"{named}: {changed} is not what {folder} was trained with{more}")
    other = [
        f"{name} {version}, which is {now.packages.get(name, 'missing')} now"
        for name, version in then["packages"].items()
        if now.packages.get(name) != version
    ]
    if other and os.environ.get("RANK", "0") == "0":
        print(f"warning: {named} was trained with other packages: {'; '.join(other)}", file=sys.stderr)
    _named.add(_words(model.builder, model.args))


def _written_code(written: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The `Code.identity` in a config.yaml; what it does not have is empty."""
    code: Any = written
    for key in ("identity", "model", "code"):
        code = code.get(key) if isinstance(code, Mapping) else None
    return {key: _texts(code.get(key) if isinstance(code, Mapping) else None) for key in ("sources", "packages")}


def _texts(part: Any) -> dict[str, str]:
    if isinstance(part, dict) and all(isinstance(text, str) for item in part.items() for text in item):
        return part
    return {}


def _words(address: str, arguments: Mapping[str, Any] | None) -> str:
    return json.dumps([address, dict(arguments or {})], default=str)


# What the user trained with is on record in a folder of the user's own, an empty file for each.


def record(model: Any, code: Code) -> str | None:
    """Puts on record that the user trains with it; else a line that tells why not."""
    entry = _entry(model.builder, model.args, code.sources)
    try:
        if entry is None:
            raise OSError("no home directory")
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.touch()
    except OSError as error:
        return f"{model.builder} is not on record ({error}): reading this run takes --trust"
    return None


def _is_recorded(address: str, arguments: Mapping[str, Any] | None, sources: Mapping[str, str]) -> bool:
    entry = _entry(address, arguments, sources)
    return entry is not None and entry.is_file()


def _entry(address: str, arguments: Mapping[str, Any] | None, sources: Mapping[str, str]) -> Path | None:
    words = json.dumps([_words(address, arguments), dict(sources)], sort_keys=True)
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
