"""Code of the user's own: what is in the id of it, and that looking at a run directory runs none."""

import ast
import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import rows, run

from lawa_exp.axes.model.custom import CustomSettings
from lawa_exp.storage import custom
from lawa_exp.storage.custom import Builder
from lawa_exp.system.errors import UserError
from lawa_exp.system.fingerprint import Code, fingerprint, installed, tree_hash

ROOT = Path(__file__).parents[2]
TREE = {  # `custom_tree.model:build`, with a mark in each file that is part of it
    "custom_tree/__init__.py": '"""A package."""\nFIRST = 1\n',
    "custom_tree/model.py": """
import os
import yaml
import custom_alone as alone
from torch import nn
from . import sibling
from .deep import part
from custom_tree.deep.inner import value

def build(width):
    import custom_late
    return nn.Linear(width + 1, width)
""",
    "custom_tree/sibling.py": "import importlib\nlater = importlib.import_module('custom_named')\nA = 1\n",
    "custom_tree/deep/part.py": "from .star import *\nA = 1\n",  # deep has no __init__.py
    "custom_tree/deep/inner.py": "value = 1\n",
    "custom_tree/deep/star/__init__.py": "A = 1\n",
    "custom_tree/deep/star/one.py": "A = 1\n",
    "custom_alone.py": "A = 1\n",
    "custom_late.py": "try:\n    import custom_absent\nexcept ImportError:\n    A = 1\n",
    "custom_named.py": "A = 1\n",
}
UNUSED = {"custom_tree/unused.py": "A = 1\n", "custom_other.py": "A = 1\n"}
MODEL = "custom_tree/model.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with TREE in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, TREE | UNUSED)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def of(address: str) -> Code:
    return fingerprint(address, "model.builder")


def version(package: str) -> str:
    return metadata.version(package).partition("+")[0]


def test_the_sources_of_a_builder_and_the_packages_that_they_import(folder: Path) -> None:
    code = of("custom_tree.model:build")
    assert {name: content.decode() for name, content in code.files.items()} == TREE
    assert code.packages == {name: version(name) for name in ("torch", "PyYAML")}
    assert code.sources.keys() == {
        *("custom_tree", "custom_tree.model", "custom_tree.sibling", "custom_tree.deep.part", "custom_tree.deep.inner"),
        *("custom_tree.deep.star", "custom_tree.deep.star.one", "custom_alone", "custom_late", "custom_named"),
    }
    assert not any(name.startswith("custom_") for name in sys.modules)


def test_it_is_a_function_of_what_the_sources_do_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of("custom_tree.model:build").identity
    text = TREE[MODEL].replace("def build(width):", 'def build(\n    width,  # [features]\n):\n    """Builds."""')
    moved = folder / "elsewhere" / "deeper"
    write(moved, TREE | {MODEL: f'"""A model."""\n# of ours\n{text}\n"A remark."\n', "custom_tree/unused.py": "A = 2"})
    monkeypatch.chdir(moved)
    assert of("custom_tree.model:build").identity == before
    for name, text in TREE.items():  # of every file that is part of it
        write(moved, {name: text.replace("1", "2")})
        assert of("custom_tree.model:build").identity != before, name
        write(moved, {name: text})
    assert of("custom_tree.model:build").identity == before
    write(moved, {"custom_absent.py": "A = 1\n"})  # what could not be imported before
    assert of("custom_tree.model:build").identity != before


@pytest.mark.parametrize("one, two", [("1", "1.0"), ("1", "True"), ("'a'", "b'a'"), ("{**x, 1: 2}", "{1: 2, **x}"),
                                      ("x[1:]", "x[:1]"), ("a, b", "a"), ("lambda: None", "lambda: 0")])  # fmt: skip
def test_sources_that_differ_little(folder: Path, one: str, two: str) -> None:
    write(folder, {"custom_one.py": f"y = {one}\n", "custom_two.py": f"y = {two}\n"})
    (first,), (second,) = (of(f"custom_{name}:y").sources.values() for name in ("one", "two"))
    assert first != second


def test_nothing_of_it_runs(folder: Path) -> None:
    touch = f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n"
    files = {name: touch + text for name, text in TREE.items()}
    write(folder, files)
    assert of("custom_tree.model:build").files == {name: text.encode() for name, text in files.items()}
    assert not (folder / "ran").exists()


def test_a_folder_cannot_pass_itself_off_as_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "site-packages"
    write(
        here, {"custom_fake.py": "A = 1\n", "custom_fake-1.0.dist-info/METADATA": "Name: custom_fake\nVersion: 1.0\n"}
    )
    monkeypatch.chdir(here)
    assert of("custom_fake:A").sources.keys() == {"custom_fake"}


def test_another_build_of_a_package_is_the_same_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"custom_label-1.0+cu126.dist-info/METADATA": "Name: custom_label\nVersion: 1.0+cu126\n"})
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("custom_label") == {"custom_label": "1.0"}


def test_empty_texts_that_one_python_has_in_formatted_ones() -> None:
    """3.12.0 in the format of `f"{x:{y}}"` (gh-110309)."""
    tree = ast.parse('f"{x:{y}}"')
    before = tree_hash(tree)
    (format,) = (
        node.format_spec for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec
    )
    assert isinstance(format, ast.JoinedStr)
    format.values.append(ast.Constant(""))
    assert tree_hash(tree) == before
    format.values.append(ast.Constant(" "))
    assert tree_hash(tree) != before


@pytest.fixture
def modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, where this process may import."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("custom_")]:
        del sys.modules[name]


def load(address: str) -> Any:
    return custom.load(address, {}, "model.builder")


def test_what_is_hashed_is_what_runs(modules: Path) -> None:
    """Each code is imported from what was read of it, with all that it imports, whatever the files are by then."""
    write(modules, {"custom_a.py": "from custom_b import A\n", "custom_b.py": "A = 1\n", "custom_c.py": "C = 1\n"})
    custom.allow([Builder("model", "custom_a:A", {})])
    first = of("custom_a:A")
    write(modules, {"custom_b.py": "A = 2\n"})
    second = of("custom_a:A")
    write(modules, {"custom_b.py": "A = 3\n"})
    for code, value in ((first, 1), (second, 2), (first, 1)):
        custom.use(code)
        assert load("custom_a:A") == value
    custom.allow([Builder("model", "custom_a:A", {})])  # as a notebook's next call
    assert load("custom_a:A") == 3
    sys.modules.pop("custom_b")
    import custom_b  # from its file, as a notebook does

    custom_b.A = 4
    custom.use(of("custom_a:A"))
    assert load("custom_a:A") == 3


def test_no_bytecode_beside_a_source_runs(modules: Path) -> None:
    write(modules, {"custom_evil.py": "A = 'evil'\n", "custom_innocent.py": "A = 'innocent'\n"})
    cached = modules / "__pycache__" / f"custom_innocent.{sys.implementation.cache_tag}.pyc"
    py_compile.compile("custom_evil.py", str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    before = cached.read_bytes()
    custom.allow([Builder("model", "custom_innocent:A", {})])
    assert load("custom_innocent:A") == "innocent"
    assert cached.read_bytes() == before and list(cached.parent.iterdir()) == [cached]


def test_an_extension_module_that_was_built_anew(modules: Path) -> None:
    """It stands for any file that Python does not import from text."""
    write(modules, {"custom_old.py": "A = 1\n", "custom_new.py": "A = 2\n"})
    py_compile.compile("custom_old.py", "custom_built.pyc")
    custom.allow([Builder("model", "custom_built:A", {})])
    custom.use(of("custom_built:A"))
    assert load("custom_built:A") == 1
    py_compile.compile("custom_new.py", "custom_built.pyc")
    for _ in range(2):
        with pytest.raises(UserError, match=r"custom_built\.pyc has changed since it was imported in this process"):
            load("custom_built:A")
        custom.use(of("custom_built:A"))


def test_a_source_that_changed_since_it_was_admitted(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(modules / "state"))
    write(modules, {"custom_a.py": "A = 1\n"})
    model = Builder("model", "custom_a:A", {"admitted": 1})
    assert custom.record(model, of("custom_a:A")) is None
    custom.admit({"model": model}, {"identity": {"model": {"code": of("custom_a:A").identity}}}, modules, trust=False)
    write(modules, {"custom_a.py": "A = 2\n"})
    custom.use(of("custom_a:A"))
    with pytest.raises(UserError, match="sources have changed since"):
        custom.load(model.address, model.args, "model.builder")
    write(modules, {"custom_a.py": "A = 1\n"})
    custom.use(of("custom_a:A"))
    assert custom.load(model.address, model.args, "model.builder") == 1


def test_a_source_that_no_statement_imports_is_refused(modules: Path) -> None:
    build = "class Model:\n    def named_parameters(self): return []\n\ndef build(name):\n"
    computed = (
        "    import importlib, colorsys\n    importlib.import_module('custom_tree.' + name)\n    return Model()\n"
    )
    inserted = "    import sys\n    sys.path.insert(0, 'parts')\n    import custom_part\n    return Model()\n"
    write(modules, {"custom_a.py": build + computed, "custom_b.py": build + inserted, "parts/custom_part.py": ""})
    for module, file in (("custom_a", "custom_tree/unused.py"), ("custom_b", "parts/custom_part.py")):
        settings = CustomSettings("custom", f"{module}:build", {"name": "unused"}, 1, 1)
        custom.allow([Builder("model", settings.builder, settings.args)])
        for _ in range(2):
            with pytest.raises(UserError, match=f"builder={module}:build: it imports .*{file}.*import it by name"):
                settings.build()
    write(modules, {"custom_a.py": "import custom_tree.unused\n" + build + computed})
    settings = CustomSettings("custom", "custom_a:build", {"name": "unused"}, 1, 1)
    custom.allow([Builder("model", settings.builder, settings.args)])
    assert settings.build().named_parameters() == []


def test_what_is_not_the_users_own(folder: Path) -> None:
    assert (
        of("os:system") == Code() == of("lawa_exp.axes.model.gpt.gpt:GPT")
    )  # no choice of ours has our code in its id
    assert of("torch.nn:Linear") == Code(packages={"torch": version("torch")})


@pytest.mark.parametrize(
    "address, said",
    [
        ("custom_absent:f", "No module named 'custom_absent'"),
        ("custom_tree.absent:f", "No module named 'custom_tree.absent'"),
        ("custom_tree.model", "package.module:function"),
        ("custom_tree:a:b", "package.module:function"),
        ("./custom_tree:a", "package.module:function"),
        ("custom_broken:f", "custom_broken.py: invalid syntax"),
        ("custom_null:f", "custom_null.py: source code string cannot contain null bytes"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, address: str, said: str) -> None:
    write(folder, {"custom_broken.py": "def f(:\n", "custom_null.py": "A = 1\0\n"})
    with pytest.raises(UserError) as error:
        of(address)
    line = str(error.value)
    assert line.startswith(f"model.builder={address}: ") and said in line and "\n" not in line


# Runs of a model of one's own

MINE = """
from torch import nn
from ours import WIDTH

def build(width):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, 256))
"""
ASKED = [
    *("model=custom", "model.builder=mine:build", "model.args={width: 8}", "model.context=32", "batch.size=4"),
    *("steps=4", "evaluate.every=2", "evaluate.samples=16", "avg=lawa", "k=2", "spacing=1", "lr.warmup_steps=0"),
    *("trainer.threads=1", "save.every=2"),
]
SHORT = [*(word for word in ASKED if not word.startswith("steps=")), "steps=1"]
READING = {  # every command that builds the model of a run directory
    "readout": ["lawa_exp.readout", "RUN", "--k", "2", "--spacing", "1", "--out", "out"],
    "suggest": ["lawa_exp.suggest", "RUN"],
    "curvature": ["lawa_exp.curvature", "RUN", "--samples", "8", "--iterations", "3", "--batch", "2", "--out", "out"],
}
EXPORT = {"export": ["lawa_exp.export", "RUN", "--to", "huggingface", "--out", "out"]}  # it needs one of transformers
LOOKING = {  # others that are given one, with how they end for this one, and what they say
    "perplexity": (
        ["lawa_exp.readout", "RUN", "--k", "2", "--evaluate", "perplexity", "--text", "text", "--out", "out"],
        (2, "model=custom is no language model of tokens"),
    ),
    "average": (
        ["lawa_exp.average", "--trajectory", "RUN", "--k", "2", "--spacing", "1", "--out", "out"],
        (0, "3 averages of 4 checkpoints"),
    ),
    "status": (["lawa_exp.status", "RUN"], (0, "1 run: 1 done")),
    "dashboard": (["lawa_exp.dashboard", "RUN", "--out", "out.html"], (0, "1 run(s)")),
    "summary": (["lawa_exp.summary", "sweep"], (0, "chosen on val: lawa-k2-s1")),
    "critical_batch": (["lawa_exp.critical_batch", "RUN"], (2, "only batch size 4")),
    "push": (["lawa_exp.push", "RUN", "--show"], (0, "")),
    "init.from": (["lawa_exp", *SHORT, "init.from=RUN", "init.optimizer=reset", "run_dir=new"], (0, "done; report:")),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mine.py, and `run`, trained with it in this folder."""
    folder = tmp_path_factory.mktemp("project")
    entry = {"overrides": [], "run_dir": "run", "steps": 4, "averages": ["lawa-k2-s1"]}
    write(folder, {"mine.py": MINE, "ours.py": "WIDTH = 8\n", "text": "some words of English " * 40})
    write(folder, {"sweep/manifest.json": json.dumps({"command": "", "entries": [entry]})})
    done = run(*ASKED, "run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def mine(project: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(project, tmp_path / "project")


def command(words: list[str], folder: Path, run_dir: str = "run", *more: str) -> Any:
    module, *arguments = (word.replace("RUN", run_dir) for word in words)
    return run(*arguments, *more, module=module, cwd=folder)


def test_the_sources_are_in_the_id_and_in_the_run(mine: Path) -> None:
    identity = yaml.safe_load((mine / "run" / "config.yaml").read_text())["identity"]["model"]
    assert identity["code"]["sources"].keys() == {"mine", "ours"} and identity["code"]["packages"].keys() == {"torch"}
    copies = {path.name: path.read_text() for path in (mine / "run" / "code").iterdir()}
    assert copies == {"mine.py": MINE, "ours.py": "WIDTH = 8\n"}
    write(mine, {"mine.py": MINE.replace("\ndef", "\n# A comment.\ndef")})
    again = run(*ASKED, "run_dir=run", cwd=mine)
    assert again.returncode == 0 and "done already" in again.stdout, again.stderr
    write(mine, {"ours.py": "WIDTH = 9\n"})
    other = run(*ASKED, "run_dir=run", cwd=mine)
    assert other.returncode == 2 and "holds another trajectory (the run has model.code.sources.ours=" in other.stderr
    fresh = run(*SHORT, cwd=mine)
    assert fresh.returncode == 0, fresh.stderr
    (made,) = (mine / "runs").iterdir()
    assert made.name.rpartition("-")[2] != yaml.safe_load((mine / "run/config.yaml").read_text())["trajectory_id"]


@pytest.mark.parametrize("name", READING)
def test_what_the_user_trained_is_read(mine: Path, name: str) -> None:
    done = command(READING[name], mine)
    assert done.returncode == 0, done.stderr


def test_a_source_that_has_changed_since(mine: Path) -> None:
    before = command(READING["readout"], mine)
    assert before.returncode == 0, before.stderr
    expected = rows(mine / "out")
    shutil.rmtree(mine / "out")
    write(mine, {"ours.py": "WIDTH = 9\n"})
    for more in ([], ["--trust"]):
        done = command(READING["readout"], mine, "run", *more)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        copies = mine / "run" / "code"
        assert f"{mine / 'ours.py'} is not what run was trained with" in done.stderr and str(copies) in done.stderr
        assert "PYTHONPATH" not in done.stderr  # that would run all that is in there
    shutil.copytree(copies, mine, dirs_exist_ok=True)
    done = command(READING["readout"], mine)
    assert done.returncode == 0, done.stderr
    assert rows(mine / "out") == expected


def test_a_run_is_read_where_its_sources_are_not(mine: Path, tmp_path: Path) -> None:
    done = command(READING["readout"], tmp_path, str(mine / "run"))
    assert done.returncode == 2 and f"mine, of {mine / 'run'}, is not found" in done.stderr, done.stderr
    shutil.copytree(mine / "run" / "code", tmp_path / "copies")
    done = command(READING["readout"], tmp_path / "copies", str(mine / "run"))
    assert done.returncode == 0, done.stderr


def test_other_versions_of_packages_are_told(mine: Path) -> None:
    config = mine / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"torch: {version('torch')}", "torch: 0.4.1"))
    (config.parent / ".checksums").unlink(missing_ok=True)
    done = command(READING["readout"], mine)
    assert done.returncode == 0, done.stderr
    assert f"the run was trained with torch 0.4.1, this environment has {version('torch')}\n" in done.stderr


def test_a_run_without_a_record_of_its_code_takes_trust(mine: Path) -> None:
    config = mine / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    del content["identity"]["model"]["code"]
    config.write_text(yaml.safe_dump(content))
    (config.parent / ".checksums").unlink(missing_ok=True)
    done = command(READING["suggest"], mine)
    assert done.returncode == 2 and "no training of yours with it is on record; --trust runs it" in done.stderr
    done = command(READING["suggest"], mine, "run", "--trust")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def hostile(project: Path, tmp_path: Path) -> Path:
    """A copy whose config.yaml asks for a shell command, which makes a file."""
    shutil.copytree(project, tmp_path / "hostile")
    config = tmp_path / "hostile" / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"builder": "os:system", "args": {"command": f"touch {tmp_path / 'ran'}"}}
    content["identity"]["model"] |= {"builder": "os:system", "code": {"sources": {}, "packages": {}}}
    config.write_text(yaml.safe_dump(content))
    (config.parent / ".checksums").unlink(missing_ok=True)
    return tmp_path / "hostile"


@pytest.mark.parametrize("name", READING | EXPORT)
def test_a_command_in_a_run_directory_is_refused(hostile: Path, name: str) -> None:
    done = command((READING | EXPORT)[name], hostile)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "model.builder=os:system with" in done.stderr and "touch " in done.stderr and "--trust" in done.stderr
    assert not (hostile.parent / "ran").exists()


@pytest.mark.parametrize("name", LOOKING)
def test_other_commands_run_none(mine: Path, hostile: Path, name: str) -> None:
    words, (code, said) = LOOKING[name]
    honest = command(words, mine)
    assert honest.returncode == code and said.replace("RUN", "run") in honest.stdout + honest.stderr, honest
    done = command(words, hostile)
    assert (done.returncode, done.stderr) == (code, honest.stderr), done.stderr
    assert not (hostile.parent / "ran").exists()


def test_a_module_in_a_run_directory_is_refused_and_not_imported(mine: Path) -> None:
    """Also where it has the name and arguments of one that the user trained with."""
    for folder, more in ((mine, ""), (mine / "run" / "code", "import pathlib\n")):
        write(folder, {"mine.py": f"{more}open({str(mine / 'ran')!r}, 'w')\n{MINE}"})
        config = mine / "run" / "config.yaml"
        content = yaml.safe_load(config.read_text())
        content["identity"]["model"]["code"] = fingerprint_at(folder)
        config.write_text(yaml.safe_dump(content))
        (config.parent / ".checksums").unlink(missing_ok=True)
        for name, words in READING.items():
            done = command(words, folder, str(mine / "run"))
            assert done.returncode == 2 and "model.builder=mine:build with" in done.stderr, (name, done.stderr)
    assert not (mine / "ran").exists()


def fingerprint_at(folder: Path) -> dict[str, Any]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return of("mine:build").identity
    finally:
        os.chdir(before)


@pytest.mark.parametrize("code", [None, "x", {}, {"sources": {"mine": 3}, "packages": {}}, {"sources": ["mine"]}])
def test_a_config_without_a_record_of_its_code_is_refused(tmp_path: Path, code: Any) -> None:
    model = Builder("model", "os:system", {})
    with pytest.raises(UserError, match="no training of yours with it is on record; --trust runs it"):
        custom.admit({"model": model}, {"identity": {"model": {"code": code}}}, tmp_path, trust=False)


def test_trust_runs_it(hostile: Path) -> None:
    done = command(READING["readout"], hostile, "run", "--trust")
    assert done.returncode == 2 and "expected a torch.nn.Module, got int" in done.stderr
    assert (hostile.parent / "ran").exists()


def in_one_process(folder: Path, script: str, **environment: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    launch = [sys.executable, "-c", script]
    return subprocess.run(launch, cwd=folder, env=environment, capture_output=True, text=True)


def test_where_nothing_can_be_on_record_only_trust_works(tmp_path: Path) -> None:
    write(tmp_path, {"mine.py": MINE, "ours.py": "WIDTH = 8\n", "state": "a file"})
    read = [word.replace("RUN", "run") for word in READING["readout"][1:]]
    script = (
        "from lawa_exp.launch.compose import main\nfrom lawa_exp.readout.__main__ import main as readout\n"
        f"assert main({[*ASKED, 'run_dir=run']!r}) == 0\n"
        f"assert readout({read!r}) == 2\nassert readout({[*read, '--trust']!r}) == 0\n"
    )
    done = in_one_process(tmp_path, script, XDG_STATE_HOME=str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    assert "warning: mine:build is not on record" in done.stdout
    assert "--trust runs it, the only way, as " in done.stderr and "state/lawa_exp/builders" in done.stderr


def test_a_source_that_is_edited_while_the_process_lives(tmp_path: Path) -> None:
    """As in a notebook: another id, and another model."""
    write(tmp_path, {"mine.py": MINE.replace("nn.Linear(width,", "nn.Linear(WIDTH,"), "ours.py": "WIDTH = 8\n"})
    script = (
        "from pathlib import Path\nfrom lawa_exp.launch.compose import main\n"
        f"asked = {[*ASKED, 'plan=true']!r}\nassert main(asked) == 0\nPath('ours.py').write_text('WIDTH = 9 - 1 * 1')\n"
        "assert main(asked) == 0\nPath('mine.py').write_text(Path('mine.py').read_text().replace('256, w', '512, w'))\n"
        "assert main(asked) == 0\n"
    )
    done = in_one_process(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert len({line for line in done.stdout.splitlines() if line.startswith("run_dir=")}) == 3
    assert len({line for line in done.stdout.splitlines() if " parameters" in line}) == 2, done.stdout


def test_a_source_that_is_edited_while_the_entry_before_trains(tmp_path: Path) -> None:
    second = MINE.replace("def build(width):", "def build(width):\n    open('was VERSION', 'w').close()")
    edited = second.replace("VERSION", "edited")
    first = f"{MINE}\ndef edit(width):\n    open('second.py', 'w').write({edited!r})\n    return build(width)\n"
    write(tmp_path, {"first.py": first, "second.py": second.replace("VERSION", "composed"), "ours.py": "WIDTH = 8\n"})
    words = [word for word in SHORT if not word.startswith("model.builder")]
    done = run("-m", *words, "model.builder=first:edit,second:build", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "second.py").read_text() == edited
    assert (tmp_path / "was composed").exists() and not (tmp_path / "was edited").exists()
    (kept,) = tmp_path.glob("runs/*/code/second.py")
    assert "was composed" in kept.read_text()
