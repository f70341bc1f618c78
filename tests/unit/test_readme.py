"""What the README shows works as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
SMALL = ["steps=20", "evaluate.every=10", "evaluate.samples=32", "trainer.threads=1", "k=2", "spacing=5"]


def test_the_model_from_outside(tmp_path):
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1])
    command = next(line for line in README.splitlines() if "model=custom" in line and line.startswith("    python"))
    arguments = [a for a in shlex.split(command)[3:] if not a.startswith("steps=")]
    done = subprocess.run(
        [sys.executable, "-m", "lawa_exp", *arguments, *SMALL], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "lawa-k2-s5" in done.stdout and len(list(tmp_path.glob("runs/custom-*/report.md"))) == 1


def test_every_path_it_names_exists():
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / target).exists(), target
