"""What the README shows works as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from lawa_exp.averaging import Lawa

README = (Path(__file__).parents[2] / "README.md").read_text()
SMALL = ["steps=20", "evaluate.every=10", "evaluate.samples=32", "trainer.threads=1", "k=2", "spacing=5"]


def example(part: str) -> str:
    """The Python example that holds `part`."""
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if part in code)
    return found


def test_averagers_in_a_loop(tmp_path):
    done = subprocess.run([sys.executable, "-c", example("Lawa(model, k=5, spacing=20)")], cwd=tmp_path)
    assert done.returncode == 0
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model = torch.nn.Linear(8, 1)
    model.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    lawa = Lawa(model, k=5, spacing=20)
    lawa.load_state_dict(states["lawa"])
    assert torch.equal(lawa.average()["weight"], model.weight)
    assert not torch.equal(states["model"]["weight"], model.weight)


def test_the_model_from_outside(tmp_path):
    (tmp_path / "my_model.py").write_text(example("class Bigram"))
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
