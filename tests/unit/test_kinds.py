"""What steers and trains asks no choice of what kind it is: that is a method of the choice (`lawa_exp.axes.choice`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lawa_exp"
AXES = "lawa_exp.axes"
FOLDERS = ("runs", "training")


def imported_from_axes(tree: ast.AST) -> set[str]:
    """The names that stand for a module of lawa_exp.axes, or for what one holds."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{AXES}."):
            names |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "lawa_exp":
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "axes"}
        if isinstance(node, ast.Import):
            names |= {alias.asname or "lawa_exp" for alias in node.names if f"{alias.name}.".startswith(f"{AXES}.")}
    return names


def is_class(node: ast.AST) -> bool:
    """Whether it asks for a class: `type(x)`, `x.cls`, `x.__class__`."""
    is_type = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"
    return is_type or (isinstance(node, ast.Attribute) and node.attr in ("cls", "__class__"))


def asks_of_kind(tree: ast.AST) -> Iterator[str]:
    """The expressions that ask whether something is of a class of lawa_exp.axes."""
    names = imported_from_axes(tree)

    def of_axes(*nodes: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id in names for node in nodes for n in ast.walk(node))

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            yield from [ast.unparse(node)] if of_axes(node.args[1]) else []
        if isinstance(node, ast.Compare | ast.BinOp):  # with `is`, ==, in; of sets of classes
            sides = (node.left, *(node.comparators if isinstance(node, ast.Compare) else [node.right]))
            if any(is_class(n) for side in sides for n in ast.walk(side)) and of_axes(*sides):
                yield ast.unparse(node)
        if isinstance(node, ast.MatchClass) and of_axes(node.cls):
            yield ast.unparse(node)


def choices() -> dict[str, str]:
    """Every class in a table of choices: its address, and the table's package."""
    found = {}
    for path in PACKAGE.glob("axes/*/__init__.py"):
        package = f"{AXES}.{path.parent.name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Table":
                addresses = [k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)]
                found |= {f"{package}.{a.replace(':', '.')}": package for a in addresses}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_asks_a_choice_of_what_kind_it_is(folder: str) -> None:
    asking = {
        path.name: tests
        for path in (PACKAGE / folder).rglob("*.py")
        if (tests := list(asks_of_kind(ast.parse(path.read_text()))))
    }
    assert asking == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_a_choice(folder: str) -> None:
    """But base classes, and the tables that look one up by its name."""
    known = choices()
    assert f"{AXES}.lr.wsd.WSD" in known and f"{AXES}.optimizer.sgd.SGD" in known and len(known) > 30
    imported = [
        f"{path.name}: {address}"
        for path in (PACKAGE / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (address := f"{node.module}.{alias.name}") in known
    ]
    assert imported == []


@pytest.mark.parametrize(
    "code",
    [
        "from lawa_exp.axes.lr.wsd import WSD as W\nisinstance(x, (int, W))",
        "from lawa_exp.axes.lr.wsd import WSD\nif x.cls is not WSD: pass",
        "from lawa_exp.axes.lr import wsd\nassert type(x) == wsd.WSD",
        "import lawa_exp.axes.lr.wsd\nissubclass(x, lawa_exp.axes.lr.wsd.WSD)",
        "from lawa_exp.axes.lr.wsd import WSD\n{type(x) for x in y} - {WSD}",
        "from lawa_exp.axes.lr.wsd import WSD\nmatch x:\n    case WSD(peak=1): pass",
        "from lawa_exp.axes.lr.wsd import WSD\ntype(x) in (int, WSD)",
    ],
)
def test_a_test_of_kind_is_seen(code: str) -> None:
    assert list(asks_of_kind(ast.parse(code)))


def test_other_tests_are_none() -> None:
    code = (
        "from lawa_exp.axes.lr import SCHEDULES\nisinstance(x, int)\nx in SCHEDULES\ntype(x) is int\ntype(x).__name__"
    )
    assert not list(asks_of_kind(ast.parse(code)))
