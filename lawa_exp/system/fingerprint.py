"""What code of the user's own, `package.module:name`, consists of: it is read, and nothing of it runs."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import json
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from lawa_exp.system.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]  # this package is in no id
STDLIB = tuple(Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Code:
    """What the code at one address, or at several, consists of; `origins` are the files of its modules.

    sources: {module: hash of its syntax tree} of what is neither installed nor Python's. packages: {name: version} of
    the installed ones that these import. files: {path under a folder of sys.path: content} of the sources. addresses:
    {address: its own `sources`}.
    """

    sources: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    origins: dict[str, Path] = field(default_factory=dict)
    addresses: dict[str, dict[str, str]] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> dict[str, dict[str, str]]:
        return {"sources": dict(sorted(self.sources.items())), "packages": dict(sorted(self.packages.items()))}


def merged(codes: Iterable[Code]) -> Code:
    """The code of all of them. UserError where a source changed while they were read."""
    whole = Code()
    for code in codes:
        for module, hash in code.sources.items():
            if whole.sources.setdefault(module, hash) != hash:
                raise UserError(f"{code.origins[module]} has changed while it was read; give the command again")
        whole.packages.update(code.packages)
        whole.files.update({name: content for name, content in code.files.items() if name not in whole.files})
        whole.origins.update(code.origins)
        whole.addresses.update(code.addresses)
    return whole


def digest_of(sources: Mapping[str, str]) -> str:
    """One hash of the sources of an address."""
    return hashlib.sha256(json.dumps(dict(sorted(sources.items()))).encode()).hexdigest()[:16]


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
            walk = _Walk(address)
            if walk.visit(module) is MISSING:
                raise UserError(f"{key}={address}: expected package.module:function (No module named {module!r})")
            walk.follow()
        except (SyntaxError, OSError) as error:
            raise UserError(f"{key}={address}: its source cannot be read ({error})") from None
    return walk.code


def add_current_folder() -> None:
    """As `python -m` does, first of all; last where the user wants it not to (PYTHONSAFEPATH)."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(len(sys.path) if sys.flags.safe_path else 0, str(Path.cwd()))


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    before = list(sys.path)
    add_current_folder()
    try:
        yield
    finally:
        sys.path[:] = before


MISSING, ELSEWHERE = "missing", "elsewhere"  # ELSEWHERE: installed, Python's, or ours


class _Walk:
    """Modules by name, each looked for without importing the packages that it is in."""

    def __init__(self, address: str) -> None:
        self.code = Code()
        self.code.addresses[address] = self.code.sources
        self.folders: dict[str, list[str] | str] = {}  # that hold its submodules; or MISSING or ELSEWHERE
        self.imports: list[str] = []  # of the sources, still to be looked for
        self.installed = installed_folders()

    def follow(self) -> None:
        while self.imports:
            name = self.imports.pop()
            if not name.endswith(".*"):
                self.visit(name)
            elif isinstance(folders := self.visit(name[:-2]), list):
                self.imports += [f"{name[:-2]}.{module.name}" for module in pkgutil.iter_modules(folders)]

    def visit(self, module: str) -> list[str] | str:
        """Adds it and the packages that it is in; of what is elsewhere only the first name is looked for."""
        if module not in self.folders:
            package, _, name = module.rpartition(".")
            within = self.visit(package) if package else None
            self.folders[module] = within if isinstance(within, str) else self._look(module, name, within)
        return self.folders[module]

    def _look(self, module: str, name: str, folders: list[str] | None) -> list[str] | str:
        try:
            spec = PathFinder.find_spec(name, folders) if folders is not None else find_spec(name)
        except ValueError:  # a module in this process that came from nowhere
            spec = None
        if spec is None:
            return MISSING
        inside = list(spec.submodule_search_locations or [])
        file = file_of(spec)
        places = [file] if file else [Path(folder) for folder in inside]
        if all([self._is_elsewhere(module, place.resolve()) for place in places]):
            return ELSEWHERE
        if file:
            self._add(module, file, bool(inside))
        return inside

    def _is_elsewhere(self, module: str, place: Path) -> bool:
        if not any(place.is_relative_to(folder) for folder in self.installed):
            return is_pythons_or_ours(place)
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
            self.code.sources[module] = hash_of(content)
            return
        try:
            self.code.sources[module], more = _parsed(content, module if is_package else module.rpartition(".")[0])
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte
            raise SyntaxError(f"{file}: {error}") from None
        self.imports += more


def file_of(spec: ModuleSpec | None) -> Path | None:
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def installed_folders() -> list[Path]:
    folders = {Path(folder).resolve() for folder in sys.path} - {Path.cwd()}  # which may have any name
    return [folder for folder in folders if folder.name in INSTALLED]


def is_pythons_or_ours(place: Path) -> bool:
    pythons = any(place.is_relative_to(folder) for folder in STDLIB) and not INSTALLED & set(place.parts)
    return pythons or place.is_relative_to(PACKAGE)


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
    left: list[object] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Constant):
            value = f"{node.value:x}" if type(node.value) is int else ascii(node.value)  # of any length
            digest.update(f"{type(node.value).__name__} {value};".encode())
        elif isinstance(node, ast.AST):
            given = [(name, getattr(node, name, None)) for name in sorted(node._fields)]
            if isinstance(node, ast.JoinedStr):  # Python 3.12.0 has empty texts in it
                given = [("values", [value for value in node.values if getattr(value, "value", None) != ""])]
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


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _is_text(statement: object) -> bool:
    """A docstring, or another text that stands alone."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@functools.cache
def installed(module: str) -> dict[str, str]:
    """{name: version} of the installed packages that a module of this name belongs to; +cu126 and the like are cut."""
    from importlib import metadata  # takes 0.1 s

    try:
        versions = {module: metadata.version(module)}
    except metadata.PackageNotFoundError:
        versions = {name: metadata.version(name) for name in metadata.packages_distributions().get(module, [])}
    return {name: version.partition("+")[0] for name, version in versions.items()}
