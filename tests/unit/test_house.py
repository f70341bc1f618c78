"""The house: what can be chosen lies in a folder with the name of its group, and is one file, one line, one yaml."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from helpers import rows, run

from lawa_exp.averaging import Averagers
from lawa_exp.axes.lr import SCHEDULES
from lawa_exp.axes.lr.constant import Constant
from lawa_exp.axes.lr.cosine import Cosine
from lawa_exp.config.tables import Table
from lawa_exp.runs.choices import LISTS, TABLES

GROUPS = {"logger" if name == "loggers" else name: table for name, table in {**TABLES, **LISTS}.items()}
ROOT = Path(__file__).parents[2]
ELSEWHERE = {  # groups that are no folder of axes/: the package that holds them, if any
    "avg": "lawa_exp/averaging",  # what others import: its address is a contract
    "trainer": "lawa_exp/config",
    "hydra": "lawa_exp/launch",
    "experiment": None,  # settings of all groups together
}


def test_folders_of_axes_are_the_groups_of_conf():
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    axes = {path.parent.name for path in (ROOT / "lawa_exp" / "axes").glob("*/__init__.py")}
    assert axes == groups - ELSEWHERE.keys() == GROUPS.keys()
    assert groups >= ELSEWHERE.keys()
    assert [place for place in ELSEWHERE.values() if place and not (ROOT / place).is_dir()] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_a_table_is_a_kind_in_conf(group):
    texts = [path.read_text() for path in (ROOT / "conf" / group).rglob("*.yaml")]
    assert {kind for text in texts for kind in re.findall(r"^ *kind: (\w+)", text, re.MULTILINE)} == {*GROUPS[group]}


def test_a_table_imports_what_is_looked_up_and_nothing_else():
    table: Table[object] = Table("no_such_package", one="module:One", two="module:Two")
    assert len(table) == 2 and list(table) == ["one", "two"] and "one" in table and None not in table
    assert "three" not in table and table.get("three") is None
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        table["one"]
    with pytest.raises(KeyError, match="three"):
        table["three"]
    assert SCHEDULES["cosine"] is Cosine
    assert SCHEDULES.kind_of(Constant(0.1, 0, None, "steps")) == "constant"
    with pytest.raises(AssertionError, match=r"axes.lr.constant:Constant is in no line of this table: one, two"):
        table.kind_of(Constant(0.1, 0, None, "steps"))


WITHOUT_TORCH = """
import sys
from lawa_exp.averaging import AVERAGERS
from lawa_exp.runs.choices import LISTS, TABLES

for group, table in {**TABLES, **LISTS, "avg": AVERAGERS}.items():
    for name in table:
        cls = table[name]
        assert "torch" not in sys.modules, f"{group}={name} imports torch"
        assert table.kind_of(object.__new__(cls)) == name, f"{group}={name}: not defined at its address"
"""


def test_settings_of_every_choice_are_imported_without_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Choice:
    """A new choice of a group: its file, its address in the table, its yaml."""

    package: str
    name: str
    address: str
    code: str
    yaml: str


MODEL = '''
"""A model of one matrix: the logits of the next token, by the last one."""

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.config.rules import integer, setting, text


@dataclass(frozen=True)
class BigramSettings(ModelSettings):
    inputs: ClassVar[str] = "tokens"
    name: str = setting(text(), "its name")
    context: int = setting(integer(1), "tokens in one sequence")
    vocab_size: int = setting(integer(1), "number of tokens")

    def fitted(self, data, name):
        return self

    def build(self):
        from torch import nn

        return nn.Embedding(self.vocab_size, self.vocab_size)
'''
SCHEDULE = '''
"""The peak divided by the step."""

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.lr.schedule import UNIT, Schedule
from lawa_exp.config.rules import number, optional, setting, steps


@dataclass(frozen=True)
class Hyperbola(Schedule):
    uses_horizon: ClassVar[bool] = False
    peak: float = setting(number(above=0), "the highest rate")
    warmup_steps: int = setting(steps(), "steps of the warm-up")
    horizon: int | None = setting(optional(steps(1)), "the last step")
    unit: str = setting(UNIT, "unit of progress")

    def value(self, batches, step):
        return self.peak / step
'''
OPTIMIZER = '''
"""Gradient descent."""

from dataclasses import dataclass

from lawa_exp.axes.optimizer.settings import OptimizerSettings
from lawa_exp.config.rules import number, setting


@dataclass(frozen=True)
class Descent(OptimizerSettings):
    clip_norm: float = setting(number(low=0), "the largest gradient norm")

    def build(self, model):
        import torch

        return torch.optim.SGD(model.parameters(), lr=0.0)
'''
DATASET = '''
"""The numbers from 0 to 15, over and over."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.axes.dataset.blocks import Blocks
from lawa_exp.config.rules import setting, text


@dataclass(frozen=True)
class CountingSettings(BaseSettings):
    inputs: ClassVar[str] = "tokens"
    name: str = setting(text(), "its name")

    def open(self, context):
        tokens = np.arange(1600) % 16
        return Blocks(dict.fromkeys(("train", "val", "test"), tokens), context, 16, "counting", self.name, "")
'''
AVERAGER = '''
"""The oldest snapshot of a window."""

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.averaging.settings import WindowSettings


@dataclass(frozen=True)
class OldestSettings(WindowSettings):
    kind: ClassVar[str] = "oldest"

    def coefficients(self, steps):
        return [1.0, *[0.0] * (min(self.k, len(steps)) - 1)]
'''
NEW = {
    "model": Choice(
        "axes/model",
        "bigram",
        "bigram:BigramSettings",
        MODEL,
        "# @package _global_\nmodel: {kind: bigram, name: bigram, context: 8, vocab_size: 16}\n",
    ),
    "lr": Choice(
        "axes/lr",
        "hyperbola",
        "hyperbola:Hyperbola",
        SCHEDULE,
        "kind: hyperbola\npeak: 8.0\nwarmup_steps: 0\nhorizon: null\nunit: steps\n",
    ),
    "optimizer": Choice("axes/optimizer", "descent", "descent:Descent", OPTIMIZER, "kind: descent\nclip_norm: 0\n"),
    "dataset": Choice(
        "axes/dataset", "counting", "counting:CountingSettings", DATASET, "kind: counting\nname: counting\n"
    ),
    "avg": Choice(
        "averaging",
        "oldest",
        "oldest:OldestSettings",
        AVERAGER,
        "# @package averagers.oldest\nk: ${k}\nspacing: ${spacing}\nstart: 0\n",
    ),
}

IN_THE_COPY = """
import sys

for name in [name for name in sys.modules if name.partition(".")[0] == "lawa_exp"]:
    del sys.modules[name]  # of the checkout, which the process before the fork has imported
from lawa_exp.launch.compose import main

plan = main([*sys.argv[1:], "plan=true"])
sys.exit(plan or main(sys.argv[1:]))
"""


def test_a_new_choice_is_one_file_one_line_and_one_yaml(tmp_path):
    for folder in ("lawa_exp", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for group, choice in NEW.items():
        package = tmp_path / "lawa_exp" / choice.package
        (package / f"{choice.name}.py").write_text(choice.code)
        (tmp_path / "conf" / group / f"{choice.name}.yaml").write_text(choice.yaml)
        table = (package / "__init__.py").read_text()
        first = "(\n    __name__,\n"
        assert table.count(first) == 1
        (package / "__init__.py").write_text(table.replace(first, f'{first}    {choice.name}="{choice.address}",\n'))
    (tmp_path / "in_the_copy.py").write_text(IN_THE_COPY)

    overrides = [f"{group}={choice.name}" for group, choice in NEW.items()]
    small = ["batch.size=4", "steps=4", "k=2", "spacing=1", "evaluate.every=2", "evaluate.samples=8", "logger.every=1"]
    done = run(*overrides, *small, "trainer.threads=1", "run_dir=run", module="in_the_copy", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    _, plan, training = done.stdout.split("run_dir=run\n")
    assert "model       256 parameters" in plan and "data        counting, fingerprint counting: 199 train" in plan
    assert "rate        8 at step 1, 4 at step 2, 2.67 at step 3, 2 at step 4" in plan
    assert "done; report: run/report.md" in training
    content = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    kinds = [content[group]["kind"] for group in TABLES if group in NEW]
    assert kinds == ["bigram", "counting", "descent", "hyperbola"]
    written = rows(tmp_path / "run")
    assert [row["lr"] for row in written if row["split"] == "train"] == [8.0, 4.0, 8 / 3, 2.0]
    live = [row["loss"] for row in written if row["weights"] == "live" and row["split"] == "val"]
    assert len(live) == 3 and live[0] > live[1] > live[2]
    assert "averages    oldest-k2-s1" in plan
    assert [row["step"] for row in written if row["weights"] == "oldest-k2-s1"] == [2, 4]
    weights = "step_0000000{}/model.safetensors".format
    average, snapshot = Path("averages/oldest-k2-s1", weights(4)), Path("trajectory", weights(3))
    assert (tmp_path / "run" / average).read_bytes() == (tmp_path / "run" / snapshot).read_bytes()


def test_what_watches_and_starts_runs_needs_no_torch():
    """Each would hold it in memory next to a training, in a batch script, or for a second at every --help."""
    names = (
        "status.__main__",
        "push",
        "export",
        "axes.logger.follow",
        "launch.slurm.requeue",
        "dashboard.__main__",
    )
    program = "import importlib, sys\n" + "".join(f"importlib.import_module('lawa_exp.{n}')\n" for n in names)
    done = subprocess.run(
        [sys.executable, "-c", f"{program}print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stdout + done.stderr


def test_averaging_files_starts_without_numpy():
    """Its threads are limited before it is imported."""
    program = "import sys, lawa_exp.average; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stdout + done.stderr


def test_an_averager_whose_kind_is_not_its_name_is_refused():
    """Rows and ids have the kind: one that was copied from another averager would record the other's name."""
    with pytest.raises(AssertionError, match=r"LawaSettings.kind is 'lawa': expected 'ends'"):
        Averagers("lawa_exp.averaging", ends="lawa:LawaSettings")["ends"]
