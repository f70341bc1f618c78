"""The wheel: what it holds, that every Python reads the same data from it, and that type checkers see its types.

Interpreters are `python3.11` to `python3.13` on the PATH, or those that LAWA_PYTHONS names (paths, between colons).
"""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # pip fetches hatchling, and numpy for each Python, where it has not got them

ROOT = Path(__file__).parents[2]
READ = """
import sys
from lawa_exp.axes.dataset import DATASETS
for name in ("pydocs", "pydocs_mlm"):
    data = DATASETS[name](name=name).open(128)
    print(name, data.fingerprint, data.sizes)
assert "torch" not in sys.modules
"""


def pip(*arguments: str | Path, python: str = sys.executable) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    local = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip("wheel", "--quiet", "--no-deps", *local, "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


def interpreter(version: str) -> str:
    """One that runs and is this version (a shim may be there and not run); skips the test where there is none."""
    paths = [*os.environ.get("LAWA_PYTHONS", "").split(os.pathsep), shutil.which(f"python{version}")]
    for path in filter(None, paths):
        show = "import sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')"
        done = subprocess.run([path, "-c", show], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    pytest.skip(f"no Python {version} that runs, on the PATH or in LAWA_PYTHONS")


def read_data(python: str, folder: Path) -> str:
    """What `python` reads from the packages in `folder`, and from no others."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [python, "-s", "-c", READ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_embedded_text_is_the_same_in_every_python(wheel, tmp_path, version):
    python = interpreter(version)
    pip("install", "--quiet", "--no-deps", "--target", tmp_path, wheel, "numpy", python=python)
    assert read_data(python, tmp_path).splitlines() == [
        "pydocs 8bb403881b0696dc59c5118fe95e888650662ca44621cf126b7fbd959df64d02 "
        "{'train': 3277, 'val': 181, 'test': 181}",
        "pydocs_mlm 18327fbd9546723f3f3615e5d813f30e3d9f1474357e78f4ba71a41ee3fabfe6 "
        "{'train': 4990, 'val': 269, 'test': 266}",
    ]


def test_the_wheel_holds_all_files_and_says_its_licences(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (metadata,) = (name for name in held if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(metadata))
        licence = archive.read(metadata.replace("METADATA", "licenses/LICENSE"))
    places = {"lawa_exp": "lawa_exp", "hydra_plugins": "hydra_plugins", "conf": "lawa_exp/conf"}
    expected = {
        f"{target}/{file.relative_to(ROOT / place)}"
        for place, target in places.items()
        for file in (ROOT / place).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected <= held
    assert {
        "lawa_exp/py.typed",
        "lawa_exp/axes/dataset/pydocs.txt.xz",
        "lawa_exp/axes/dataset/pydocs.LICENSE.txt",
    } <= expected
    assert {
        "lawa_exp/axes/dataset/README.md",
        "lawa_exp/axes/dataset/digits.npz",
        "lawa_exp/conf/config.yaml",
    } <= expected
    assert said["License-Expression"] == "MIT AND PSF-2.0 AND CC-BY-4.0"
    assert said.get_all("License-File") == [
        "LICENSE",
        "lawa_exp/axes/dataset/README.md",
        "lawa_exp/axes/dataset/pydocs.LICENSE.txt",
    ]
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_types_reach_a_type_checker(wheel, tmp_path):
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv/bin/python")
    pip("install", "--quiet", "--no-deps", wheel, python=python)
    (tmp_path / "user.py").write_text("from lawa_exp.averaging import Lawa\n\nreveal_type(Lawa)\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--python-executable", python, "user.py"]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"k: (builtins\.)?int =, .* -> lawa_exp\.averaging\.lawa\.Lawa", done.stdout), done.stdout
