"""`lawa`: its commands, the meaning of every setting, and tab completion in a real shell."""

from __future__ import annotations

import importlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lawa_exp import completion, console
from lawa_exp.help import main as help_main
from lawa_exp.launch import catalogue
from lawa_exp.launch.compose import compose

ROOT = Path(__file__).parents[2]


def said(capsys, *words: str) -> str:
    assert console.main(list(words)) == 0
    return capsys.readouterr().out


def refused(capsys, *words: str) -> str:
    assert console.main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_command_of_the_package_is_a_subcommand(capsys):
    modules = {address for address, _ in console.COMMANDS.values()}
    top = [path for pattern in ("*.py", "*/__main__.py") for path in (ROOT / "lawa_exp").glob(pattern)]
    commands = {
        "lawa_exp." + ".".join(path.relative_to(ROOT / "lawa_exp").with_suffix("").parts)
        for path in top
        if 'if __name__ == "__main__":' in path.read_text()
    }
    started = {
        "lawa_exp.reproduce.command": "lawa_exp.reproduce.__main__",
        "lawa_exp.launch.compose": "lawa_exp.__main__",
    }
    assert {started.get(m, m) for m in modules} == commands - {"lawa_exp.draw_schedules", "lawa_exp.console"}
    text = said(capsys, "--help")
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in console.COMMANDS)


def test_each_has_a_parser_that_completion_reads():
    for name, (module, _) in console.COMMANDS.items():
        if name != "train":
            assert importlib.import_module(module).parser().prog.endswith(name)


def test_version_and_mistakes(capsys):
    assert said(capsys, "--version") == "lawa_exp 0.1.0\n"
    assert "did you mean readout?" in refused(capsys, "readuot")
    assert "lawa train lr=wsd" in refused(capsys, "lr=wsd")


def test_a_command_is_called_with_its_own_words(capsys, monkeypatch):
    monkeypatch.setattr("lawa_exp.system.cli.Parser.prefix", "python -m lawa_exp.")
    with pytest.raises(SystemExit):
        console.main(["average", "--help"])
    assert capsys.readouterr().out.startswith("usage: lawa average ")


def test_every_choice_and_every_composed_setting_has_a_meaning():
    assert [f"{g}={c}" for g, c in catalogue.choices() if not catalogue.head(g, c)] == []
    known = catalogue.settings()
    assert [key for key, entries in known.items() for entry in entries if not entry.meaning.strip()] == []
    ((values, _),), _ = compose(
        ["avg=[lawa,ema,swa,wma,power_ema,bema]", "logger=[wandb,tensorboard,csv]", "watch=noise_scale"]
    )

    def keys(part: dict, prefix: str):
        for key, value in part.items():
            full = f"{prefix}{key}"
            if isinstance(value, dict) and full not in known:
                yield from keys(value, f"{full}.")
            elif key != "kind":
                yield full

    assert [key for key in keys(values, "") if key not in known] == []


@pytest.mark.parametrize(("group", "choice"), [("lr", "cosine_to_zero"), ("model", "gpt2_small"), ("optimizer", "nag")])
def test_defaults_are_those_that_hydra_composes(group, choice):
    ((values, _),), _ = compose([f"{group}={choice}"])
    entries = catalogue.described(group, choice)
    own = {e.key: e.default for e in entries}
    assert own
    if group == "model":  # its recipe changes other groups, its own settings stand as they are
        assert own == {f"model.{k}": v for k, v in values["model"].items() if k != "kind"}
    else:
        composed = {f"{group}.{k}": v for k, v in values[group].items() if k != "kind"}
        changed = {"lr.peak"}  # by the default model's recipe
        assert {k: v for k, v in own.items() if k not in changed} == {k: composed[k] for k in own if k not in changed}


def test_help_pages(capsys):
    page = said(capsys, "help", "averagers.ema.decay")
    assert "half_life:4%" in page and "0.99 with ema" in page and "expected: a number, at least 0" in page
    assert "  75  stopped and saved" in said(capsys, "help", "exit-codes")
    assert "default: 1-sqrt" in said(capsys, "help", "lr.wsd")
    assert "0.02 (with lr=power)" in said(capsys, "help", "lr.peak")
    assert "wsd" in said(capsys, "help", "lr")
    assert "steps between two evaluations" in said(capsys, "help", "evaluate")
    assert "did you mean lr.peak" in refused(capsys, "help", "lr.pek")
    assert help_main([]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["su"], ["suggest", "summary"]),
        (["train", "lr=w"], ["lr=wsd"]),
        (["train", "lr.sh"], ["lr.shape="]),
        (["train", "lr.shape=l"], ["lr.shape=linear"]),
        (["train", "avg=[lawa,sw"], ["avg=[lawa,swa", "avg=[lawa,swa_sanyal"]),
        (["train", "hydra/launcher="], ["hydra/launcher=local", "hydra/launcher=slurm"]),
        (["average", "--met"], ["--method"]),
        (["average", "--method", "sw"], ["swa"]),
        (["export", "--to", "hugg"], ["huggingface"]),
        (["data", ""], ["--help", "-h", "prepare"]),
        (["data", "prepare", "op"], ["openwebtext"]),
        (["help", "lr.ws"], ["lr.wsd"]),
        (["nonsense", "x"], []),
    ],
)
def test_candidates(words, expected):
    assert completion.candidates(words) == expected


def test_in_a_real_shell(tmp_path):
    tool = tmp_path / "lawa"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m lawa_exp.console "$@"\n')
    tool.chmod(0o755)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": path,
        "PS1": "$ ",
        "TERM": "dumb",
    }
    leader, follower = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    os.close(follower)

    def typed(text: str, until: str) -> None:
        os.write(leader, text.encode())
        seen, end = "", time.monotonic() + 120
        while until not in seen:
            assert time.monotonic() < end, seen
            if select.select([leader], [], [], 1)[0]:
                seen += os.read(leader, 4096).decode(errors="replace")

    try:
        typed('eval "$(lawa completion bash)"; echo re""ady\n', "ready")
        typed("lawa tr\t", "train ")
        typed("lr=ws\t", "lr=wsd ")
        typed("optimizer.cl\t", "optimizer.clip_norm=")
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)
