"""Counts private words in what a stranger reads: public names, messages, help, docstrings and pages.

    python tests/language.py [FILE ...]

A word that the project once used for everything ("found", "asked", ...) says nothing of what it stands for. Names must
say what they hold (rows, steps, requested), and sentences what is done to what.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = {"found", "asked", "told", "mine", "beside", "held", "here", "given"}  # as a part of a public name
OUT = re.compile(r"found_inf|held[- _]out|hold[- _]out|not here to|mine:\w+")
TEXT = re.compile(  # in a sentence: never, or where it stands for a thing
    r"\b(?:asked|told|mine|beside|held)\b"
    r"|\b(?:what|all|the|those|of|as|is what) (?:is )?(?:found|given|here)\b"
    r"|\b(?:found|given) (?:of|by|in) it\b"
)
PAGES = ("README.md", "docs/**/*.md", "launch/**/*.md", "examples/**/*.md", "conf/**/*.yaml")


def public_names(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """(line, name) of modules, functions, classes, parameters, fields and attributes without a leading underscore."""
    yield from ((1, part) for part in module.split("/"))
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    while scopes:
        for node in scopes.pop().body:
            if isinstance(node, ast.ClassDef):
                scopes.append(node)
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.lineno, node.name
            if (isinstance(node, ast.FunctionDef) and not node.name.startswith("_")) or is_init(node):
                arguments = node.args  # type: ignore[union-attr]
                yield from ((a.lineno, a.arg) for a in (*arguments.args, *arguments.kwonlyargs, *arguments.posonlyargs))
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.lineno, node.target.id
            if isinstance(node, ast.Assign):
                yield from ((node.lineno, t.id) for t in node.targets if isinstance(t, ast.Name))
    for node in ast.walk(tree):  # attributes of objects
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def words_of(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, in small letters."""
    return set(OUT.sub("", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).split("_"))


def is_init(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "__init__"


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every string: messages, help and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for number, line in enumerate(node.value.splitlines()):
                yield node.lineno + number, line


def in_code(path: Path) -> Iterator[tuple[int, str]]:
    """(line, what is said) of each private word in a file of Python."""
    tree = ast.parse(path.read_text())
    for line, name in public_names(tree, path.with_suffix("").name):
        if not name.startswith("_") and NAMES & words_of(name):
            yield line, name
    for line, text in texts(tree):
        if match := TEXT.search(OUT.sub("", text)):
            yield line, f"{match[0]!r} in {text.strip()!r}"


def in_page(path: Path) -> Iterator[tuple[int, str]]:
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if match := TEXT.search(OUT.sub("", text)):
            yield number, f"{match[0]!r} in {text.strip()!r}"


def private_words(root: Path = ROOT) -> list[str]:
    """`file:line: what is said`, of the package, its pages and its configurations."""
    lines = []
    for path in sorted((root / "lawa_exp").rglob("*.py")):
        lines += [f"{path.relative_to(root)}:{number}: {said}" for number, said in in_code(path)]
    for pattern in PAGES:
        for path in sorted(root.glob(pattern)):
            lines += [f"{path.relative_to(root)}:{number}: {said}" for number, said in in_page(path)]
    return lines


if __name__ == "__main__":
    lines = private_words()
    wanted = tuple(sys.argv[1:])
    lines = [line for line in lines if not wanted or line.startswith(wanted)]
    print(*lines, f"{len(lines)} private words", sep="\n")
