"""What `make same-bytes` sees, what it lets pass, and that its configurations cover every choice."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file
from same_bytes.compare import Stated, carried, contents, difference, judge
from same_bytes.configured import configurations, differences, uncovered

ROOT = Path(__file__).parents[2]
GIVEN = configurations((ROOT / "tests/same_bytes/configurations.yaml").read_text())
STATE = "run/resume/step_00000010"
SNAPSHOT = "run/trajectory/step_00000010/model.safetensors"


def test_every_choice_is_in_a_command_and_what_is_covered_is_done():
    assert uncovered(GIVEN, ROOT / "conf") == []
    assert len(GIVEN) >= 16 and len({c.name for c in GIVEN}) == len(GIVEN) and all(c.covers for c in GIVEN)
    rest = [c for c in GIVEN if c.name not in ("muon", "masked", "fsdp")]
    lacking = ["batch=steps", "lr=power", "optimizer=adam_roberta", "optimizer=muon", "scaling=power"]
    assert uncovered(rest, ROOT / "conf") == [*lacking, "masked LM", "FSDP"]
    (killed,) = (c for c in GIVEN if c.name == "lawa-restart")
    whole = replace(killed, commands=killed.commands[1:])
    assert uncovered([*GIVEN, whole], ROOT / "conf") == ["lawa-restart does not do what it covers: kill and resume"]


def test_stated_differences_name_configurations_that_are_there():
    stated, _ = differences((ROOT / "tests/same_bytes/differences.yaml").read_text())
    for s in stated:
        assert s.reason and s.since and s.differs
        assert any(fnmatchcase(c.name, s.configuration) for c in GIVEN), s.configuration


def tensors(path: Path, **values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, path)


def rows(path: Path, *found: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def left(folder: Path) -> Path:
    """What a run leaves, in small."""
    run, weight = folder / "run", np.arange(6, dtype=np.float32)
    for path in (SNAPSHOT, f"{STATE}/model.safetensors"):
        tensors(folder / path, weight=weight, bias=weight[:2])
    tensors(folder / STATE / "optimizer.safetensors", **{"weight/exp_avg": weight + 1, "weight/step": weight[3:4]})
    tensors(folder / STATE / "averagers/ema.safetensors", weight=weight + 2)
    (folder / STATE / "state.json").write_text(json.dumps({"step": 10, "averagers": {"ema": {"count": 10}}}))
    for path in (f"{STATE}/model.safetensors", f"{STATE}/optimizer.safetensors", f"{STATE}/averagers/ema.safetensors"):
        add_to_manifest(folder / STATE, path.removeprefix(f"{STATE}/"))
    config = {"trajectory_id": "abc", "identity": {"seed": 0, "lr": {"peak": 0.1}}, "steps": 10}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows(run / "metrics.jsonl", *({"step": s, "split": "val", "weights": "live", "loss": 2.5 + s} for s in (0, 10)))
    (run / "timing.jsonl").write_text("1.5\n")
    (run / "DONE").write_text('{"step": 10}')
    return folder


def add_to_manifest(state: Path, file: str) -> None:
    path = state / "manifest.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, file: {"bytes": (state / file).stat().st_size, "crc32": 1}}))


def last_byte(path: str):
    """Another last byte, which is one of a tensor's."""

    def change(folder: Path) -> None:
        data = bytearray((folder / path).read_bytes())
        data[-1] ^= 1
        (folder / path).write_bytes(data)

    return change


def text(path: str, old: str, new: str):
    def change(folder: Path) -> None:
        content = (folder / path).read_text()
        assert old in content
        (folder / path).write_text(content.replace(old, new))

    return change


def other_layout(folder: Path) -> None:
    """The averagers of a state in one file."""
    state = folder / STATE
    (state / "averagers/ema.safetensors").unlink()
    tensors(state / "averagers.safetensors", **{"ema|weight": np.arange(6, dtype=np.float32) + 2})
    (state / "manifest.json").unlink()
    for file in ("model.safetensors", "optimizer.safetensors", "averagers.safetensors"):
        add_to_manifest(state, file)


def other_layout_and_byte(folder: Path) -> None:
    other_layout(folder)
    last_byte(f"{STATE}/optimizer.safetensors")(folder)


def turned(folder: Path) -> None:
    path = folder / "run/metrics.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


SEEN = {
    "a byte of a snapshot": (last_byte(SNAPSHOT), [f"{SNAPSHOT}:weight"]),
    "a type": (
        lambda f: tensors(f / SNAPSHOT, weight=np.arange(6, dtype=np.float32).view(np.int32), bias=np.float32([0, 1])),
        [f"{SNAPSHOT}:weight"],
    ),
    "a byte of a state": (last_byte(f"{STATE}/optimizer.safetensors"), [f"{STATE}/optimizer.safetensors:weight/step"]),
    "a number of a state": (
        text(f"{STATE}/state.json", '"count": 10', '"count": 11'),
        [f"{STATE}/state.json:averagers.ema.count"],
    ),
    "a manifest": (
        text(f"{STATE}/manifest.json", "crc32", "sha256"),
        [f"{STATE}/manifest.json:{f}.safetensors" for f in ("averagers/ema", "model", "optimizer")],
    ),
    "a layout": (other_layout, [f"{STATE}:(layout)"]),
    "a layout and a byte": (
        other_layout_and_byte,
        [f"{STATE}/optimizer.safetensors:weight/step", f"{STATE}:(layout)"],
    ),
    "a row": (text("run/metrics.jsonl", "12.5", "12.500000000000002"), ["run/metrics.jsonl:row 10 val live:loss"]),
    "a row that lacks": (
        lambda f: rows(f / "run/metrics.jsonl", {"step": 0, "split": "val", "weights": "live", "loss": 2.5}),
        [f"run/metrics.jsonl:row 10 val live:{k}" for k in ("loss", "split", "step", "weights")],
    ),
    "the order of rows": (turned, ["run/metrics.jsonl:(bytes)"]),
    "an id": (text("run/config.yaml", "abc", "abd"), ["run/config.yaml:trajectory_id"]),
    "what an id is made of": (text("run/config.yaml", "peak: 0.1", "peak: 0.2"), ["run/config.yaml:identity.lr.peak"]),
    "a file that lacks": (lambda f: (f / SNAPSHOT).unlink(), [SNAPSHOT]),
    "how it ended": (lambda f: (f / "run/DONE").rename(f / "run/STOPPED"), ["run/DONE", "run/STOPPED"]),
    "where it ended": (text("run/DONE", "10", "9"), ["run/DONE:step"]),
    "times": (text("run/timing.jsonl", "1.5", "1.6"), []),
    "what is no part of an id": (text("run/config.yaml", "steps: 10", "steps: 11"), []),
}


@pytest.mark.parametrize("case", SEEN)
def test_what_differs_is_red_and_named(case: str, tmp_path: Path):
    change, expected = SEEN[case]
    theirs, ours = left(tmp_path / "theirs"), left(tmp_path / "ours")
    assert difference(contents(theirs), contents(ours)) == {}
    change(ours)
    found = difference(contents(theirs), contents(ours))
    assert sorted(found) == sorted(expected)
    assert judge("tiny", found, []) == ({}, list(found))
    stated = [Stated("t*", ["run/*"], "mended", "#1"), Stated("other", ["*"], "elsewhere", "#2")]
    assert judge("tiny", found, stated) == ({"mended (#1)": len(found)} if found else {}, [])
    assert [s.used for s in stated] == [bool(found), False]


def test_a_field_that_took_over_holds_the_values_of_the_old_one(tmp_path: Path):
    """The loss of live rows may be another one; that of before is in another field, and is compared."""
    row, key = {"step": 10, "split": "val", "weights": "live"}, "run/metrics.jsonl:row 10 val live"
    glob = "*row * val live:loss"
    stated = [Stated("t*", [glob, "*row * val live:bn"], "mended", "#1", {glob: "loss_before"})]
    for name, *found in (
        ("old", {**row, "loss": 2.5}, {**row, "split": "train", "loss": 3.5}),
        ("new", {**row, "bn": "x", "loss": 1.5, "loss_before": 2.5}, {**row, "split": "train", "loss": 3.5}),
        ("wrong", {**row, "bn": "x", "loss": 1.5, "loss_before": 2.6}, {**row, "split": "train", "loss": 3.6}),
        ("none", {**row, "bn": "x", "loss": 1.5}, {**row, "split": "train", "loss": 3.5}),
    ):
        (tmp_path / name / "run").mkdir(parents=True)
        rows(tmp_path / name / "run/metrics.jsonl", *found)
    facts = {name: contents(tmp_path / name) for name in ("old", "new", "wrong", "none")}
    red = {n: judge("t1", difference(carried("t1", facts["old"], stated), facts[n]), stated)[1] for n in facts}
    train = "run/metrics.jsonl:row 10 train live:loss"
    assert red == {
        "old": [f"{key}:loss_before"],
        "new": [],
        "wrong": [f"{key}:loss_before", train],
        "none": [f"{key}:loss_before"],
    }
    assert difference(carried("t1", facts["new"], stated), facts["new"]) == {}  # an older side that has it
    assert carried("other", facts["old"], stated) == facts["old"]


def test_what_torch_saved_is_compared_by_its_tensors_and_values(tmp_path: Path):
    def saved(name: str, **changed: object) -> dict[str, str]:
        (tmp_path / name).mkdir()
        content = {"model": {"w": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3)}, "config": {"dataset": "a"}}
        torch.save({**content, "loss": float("inf"), **changed}, tmp_path / name / "ckpt.pt")
        return contents(tmp_path / name)

    theirs = saved("theirs")
    assert difference(theirs, saved("same")) == {}
    assert list(difference(theirs, saved("place", config={"dataset": "b"}))) == ["ckpt.pt:config.dataset"]
    wrong = {"w": torch.arange(6.0).view(2, 3).T + 1e-6, "n": torch.tensor(3)}
    assert list(difference(theirs, saved("wrong", model=wrong))) == ["ckpt.pt:model.w"]
    assert list(saved("object", loss=Path("a"))) == ["ckpt.pt:(bytes)"]  # a class that torch does not load


def test_run_directories_are_the_same_ones_under_another_id(tmp_path: Path):
    for side, id in (("theirs", "abc"), ("ours", "abd")):
        text("run/config.yaml", "abc", id)(left(tmp_path / side))
        (tmp_path / side / "run").rename(tmp_path / side / f"gpt-seed0-{id}")
    found = difference(contents(tmp_path / "theirs"), contents(tmp_path / "ours"))
    assert found == {"gpt-seed0-ID/config.yaml:trajectory_id": ('"abc"', '"abd"')}


# A package of that name that "trains" in milliseconds, by the contracts alone.
PACKAGE = """
import json, os, sys
from pathlib import Path
options = dict(word.split("=") for word in sys.argv[1:])
assert options.keys() <= {SETTINGS}, options
print("run_dir=run")
for name in ("LAWA_CACHE", "XDG_STATE_HOME"):  # neither the user's nor compared
    assert Path(os.environ[name]).parent.name == "log", os.environ[name]
run = Path("run")
(run / "resume").mkdir(parents=True, exist_ok=True)
for step in range(1, 4):
    if not (run / "resume" / f"step_{step}").exists():
        (run / "partial").mkdir(exist_ok=True)
        (run / "partial" / "state.json").write_text(json.dumps({"step": step}))
        (run / "partial").rename(run / "resume" / f"step_{step}")
(run / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": LOSS if "loud" in options else 0}) + "\\n")
if "end" in options:
    print("it ended with", options["end"], file=sys.stderr)
sys.exit(int(options.get("end", 0)))
"""
CONFIGURED = """
shorthand: {RUN: python -m lawa_exp}
configurations:
  - name: killed
    covers: []
    commands: [{run: $RUN, signal: SIGKILL, at: resume/step_2, ends: -9}, $RUN]
  - {name: stated, covers: [], commands: [$RUN loud=1]}
  - {name: unstated, covers: [], commands: [$RUN loud=1]}
  - {name: not-killed, covers: [], commands: [{run: $RUN, signal: SIGKILL, at: resume/step_9, ends: -9}]}
  - {name: another-end, covers: [], commands: [{run: $RUN end=3, ends: 3}, $RUN end=4]}
  - {name: spelled, covers: [], commands: [$RUN new=1]}
  - {name: new, covers: [], commands: [$RUN], needs: conf/new.yaml}
"""
DIFFERENCES = """
renamed: [{new: new=, old: old=, file: conf/options.yaml, has: old, reason: a better name, since: "#1"}]
differences:
  - {configuration: stated, differs: ["run/*:loss"], reason: mended, since: "#2"}
  - {configuration: killed, differs: ["run/*:loss"], reason: long ago, since: "#3"}
"""
SAID = """\
same               killed: 13 facts
differs as stated  stated: 11 facts
    1 facts: mended (#2)
RED                unstated: 1 of 11 facts differ unstated
    run/metrics.jsonl:row 3:loss  1 -> 2
RED                not-killed: 0 of 11 facts differ unstated
    command 1 ended with 0, expected -9
RED                another-end: 0 of 13 facts differ unstated
    command 2 ended with 4, expected 0: it ended with 4
same               spelled: 11 facts
new                new: needs conf/new.yaml, which the older side lacks
warning: stale, nothing differs so: killed: run/*:loss (#3)
7 configurations: 2 same, 1 as stated, 3 RED, 1 new;"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit, and with changes that are in none."""
    package, conf = tmp_path / "checkout/lawa_exp", tmp_path / "checkout/conf"
    for folder in (package, conf):
        folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PACKAGE.replace("LOSS", "1").replace("SETTINGS", '"end", "loud", "old"'))
    (conf / "options.yaml").write_text("old: 1\n")
    (tmp_path / "configurations.yaml").write_text(CONFIGURED)
    (tmp_path / "differences.yaml").write_text(DIFFERENCES)
    git = ["git", "-C", str(package.parent), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (package / "__main__.py").write_text(PACKAGE.replace("LOSS", "2").replace("SETTINGS", '"end", "loud", "new"'))
    (conf / "options.yaml").write_text("new: 1\n")
    (conf / "new.yaml").touch()
    return package.parent


def same_bytes(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with another checkout; its commands do not find torch imported."""
    code = (
        "import sys; from pathlib import Path; from same_bytes.__main__ import main\n"
        "sys.exit(main(sys.argv[2:], Path(sys.argv[1]), Path(sys.argv[1]).parent))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}", "TMPDIR": str(checkout.parent)}
    environment |= {"LAWA_CACHE": "users", "XDG_STATE_HOME": "users"}
    launch = [sys.executable, "-c", code, str(checkout), *arguments]
    return subprocess.run(launch, capture_output=True, text=True, env=environment, cwd=checkout.parent, timeout=100)


def test_two_sides_as_processes(checkout: Path):
    done = same_bytes(checkout, "HEAD")
    said = done.stdout.replace("killed: 12 facts", "killed: 13 facts")  # it depends on when the signal came
    assert done.returncode == 1 and said.startswith(SAID), done.stdout + done.stderr
    (kept,) = checkout.parent.glob("same-bytes-*/runs")
    assert sorted(p.name for p in kept.iterdir()) == ["another-end", "not-killed", "unstated"]
    done = same_bytes(checkout, "HEAD", "--only", "stated,kill*")
    assert done.returncode == 0 and "2 configurations: 1 same, 1 as stated;" in done.stdout, done.stdout + done.stderr
    done = same_bytes(checkout, "HEAD", "--against", "HEAD", "--only", "unstated")
    assert done.returncode == 0 and "1 configurations: 1 same;" in done.stdout, done.stdout + done.stderr
    assert len(list(checkout.parent.glob("same-bytes-*"))) == 1


def test_a_side_is_never_compared_on_the_code_of_another(checkout: Path):
    """This checkout, which can be imported everywhere here, does not stand in for a package that is gone."""
    (checkout / "lawa_exp").rename(checkout / "elsewhere")
    done = same_bytes(checkout, "HEAD", "--only", "killed")
    said = "command 2 ended with 97, expected 0: error: lawa_exp is None, expected that of "
    assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr
    path = f"{ROOT / 'tests/same_bytes/path'}:{ROOT}"
    environment = {**os.environ, "PYTHONPATH": path, "SAME_BYTES_SIDE": str(checkout)}
    launch = [sys.executable, "-m", "lawa_exp", "--help"]  # as torchrun starts its ranks
    rank = subprocess.run(launch, capture_output=True, text=True, env=environment, cwd=checkout)
    assert rank.returncode == 97 and "expected that of" in rank.stderr, rank.stderr


def test_mistakes_are_told_in_a_line(checkout: Path):
    for arguments, said in (("nosuch",), "nosuch: "), (("HEAD", "--only", "x"), "--only x: none of killed, stated"):
        done = same_bytes(checkout, *arguments)
        assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr
    assert not list(checkout.parent.glob("same-bytes-*"))
