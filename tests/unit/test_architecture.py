"""The house, from syntax alone: which folder imports which, how long files and functions are, what a stranger reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from sys import stdlib_module_names as STANDARD

from language import private_words

PACKAGE = Path(__file__).parents[2] / "lawa_exp"
FLOORS = (  # from the top; a file imports from its own floor and from lower ones
    {"api"},
    {"commands"},
    {"launch"},
    {"runs"},
    {"training"},
    {"parallel"},
    {"convert"},
    {"evaluation"},
    {"axes"},
    {"averaging"},
    {"results", "storage", "formats"},
    {"config"},
    {"seams"},
    {"system"},
)
COMMANDS = {  # what lies at the top
    *("__init__", "__main__", "average", "readout", "suggest", "reproduce", "status", "dashboard", "summary", "export"),
    *("push", "published", "data", "curvature", "critical_batch", "draw_schedules"),
    *("console", "help", "completion"),
}
LINES, FUNCTION, SHARE_OF_ANY = 400, 90, 0.03
KNOWING = ("alike", "compose", "entries", "job", "mistakes", "recipes")
HYDRA = {f"launch/{name}.py" for name in KNOWING}  # and hydra_plugins/


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {name: ast.parse(path.read_text()) for name, path in modules().items()}


def when_imported(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not those of functions, or for types alone."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if isinstance(node, ast.stmt) and not for_types:
                yield node
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    waiting.append(node)


def imports(name: str, at_once: bool = False) -> Iterator[tuple[str, int]]:
    """(imported module, line), also inside functions and for types alone; at_once: when the module is imported."""
    for node in when_imported(TREES[name]) if at_once else ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield (whole if whole in TREES else module), node.lineno


def floor(name: str) -> int:
    folder = [*name.split("."), ""][1]
    return next((i for i, names in enumerate(FLOORS) if folder in names), 0)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield str(modules()[name].relative_to(PACKAGE)), node


def test_what_lies_at_the_top_is_a_command_and_every_folder_has_a_floor():
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert top == COMMANDS | set().union(*FLOORS) - {"commands"}


def test_imports_go_down_only():
    up = [
        f"{name}:{line} imports {imported}"
        for name in TREES
        for imported, line in imports(name)
        if imported.startswith("lawa_exp.") and floor(imported) < floor(name)
    ]
    assert up == []


def test_no_import_circle():
    """Of modules that are imported at once; settings import the torch code that they build, and that imports them.

    A package's `__init__` counts where it is named itself.
    """
    edges = {name: {i for i, _ in imports(name, at_once=True) if i in TREES and i != name} for name in TREES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in TREES:
        visit(name, ())


def test_only_launch_knows_hydra():
    knowing = {
        str(modules()[name].relative_to(PACKAGE))
        for name in TREES
        for imported, _ in imports(name)
        if imported.split(".")[0] in ("hydra", "omegaconf", "hydra_plugins")
    }
    assert knowing <= HYDRA


def test_the_averagers_import_nothing_that_their_users_may_not_have():
    """transformers or Lightning is asked of who imports the callback for it."""
    for name in TREES:
        if name.startswith("lawa_exp.averaging") and name.split(".")[-1] not in ("hf", "lightning"):
            outside = {imported.split(".")[0] for imported, _ in imports(name)} - set(STANDARD)
            assert outside <= {"torch", "numpy", "lawa_exp"}, name


def test_no_file_is_long():
    long = {
        str(p.relative_to(PACKAGE)): n for p in modules().values() if (n := len(p.read_text().splitlines())) > LINES
    }
    assert long == {}


def test_no_function_is_long():
    lengths = {f"{path}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 for path, f in functions()}
    assert [name for name, lines in lengths.items() if lines > FUNCTION] == []


def test_the_loop_is_short_and_knows_no_choice():
    """train.py and update.py together under 200 lines, no function of theirs over 60, all of training/ under 900."""
    lines = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE / "training").glob("*.py")}
    assert lines["train.py"] + lines["update.py"] < 200 and sum(lines.values()) < 900, lines
    own = [f for path, f in functions() if path in ("training/train.py", "training/update.py")]
    assert own and all((f.end_lineno or 0) - f.lineno < 60 for f in own)
    for name in ("train", "update", "state"):
        found = [imported for imported, _ in imports(f"lawa_exp.training.{name}") if ".axes" in imported]
        assert found == [], f"{name}.py imports {found}"


def test_arguments_have_types():
    arguments = [
        (f"{path}:{f.name}({a.arg})", a.annotation)
        for path, f in functions()
        for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg)
        if a and a.arg not in ("self", "cls")
    ]
    assert [name for name, annotation in arguments if annotation is None] == []
    untyped = [
        name
        for name, a in arguments
        if any(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(a or ast.Pass()))
    ]
    assert len(untyped) <= SHARE_OF_ANY * len(arguments), "\n".join(untyped)


ADDRESS = re.compile(r"\blawa_exp((?:\.[A-Za-z_]\w*)+)|\bfrom lawa_exp import (\w+)")
PLACES = (
    *("lawa_exp", "tests", "benchmarks", "hydra_plugins", "notebooks", "docs", "conf", "examples", "launch"),
    "README.md",
)


def addresses(root: Path) -> Iterator[tuple[Path, str]]:
    """Every address of a module or of what it holds, in code, strings and pages."""
    for place in PLACES:
        for path in [root / place] if (root / place).is_file() else sorted((root / place).rglob("*")):
            if path.suffix in (".py", ".md", ".yaml", ".sh", ".ipynb", ".js", ".html"):
                for found in ADDRESS.finditer(path.read_text()):
                    yield path, f"lawa_exp{found[1] or f'.{found[2]}'}"


def test_every_address_of_a_module_is_one():
    """Also those in strings, which no import checks: programs of subprocesses, places where a test strikes."""
    root = PACKAGE.parent
    wrong = []
    for path, address in addresses(root):
        parts = address.split(".")
        module = next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in TREES)
        rest = parts[module.count(".") + 1 :]
        named = rest and rest[0].strip("_") != "file"  # a module's own place
        if named and not re.search(rf"\b{rest[0]}\b", modules()[module].read_text()):
            wrong.append(f"{path.relative_to(root)}: {address}")
    assert wrong == []


def test_a_stranger_reads_no_private_words():
    assert private_words() == []
