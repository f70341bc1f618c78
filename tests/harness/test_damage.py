"""Each kind of file of a run, damaged in ten ways and read by every command that reads it.

The command must give what it gives of the undamaged run, or name the file: in its error, in a warning, or in what it
shows. Never another number in silence, never a traceback. One run is trained and copied; the commands run in this
process, some in their own. Everyday a seeded tenth, with --harness-whole all of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.counted import append_counts
from helpers import contents, run, tiny

from lawa_exp.system.heartbeat import Heartbeat

WORDS = tiny("steps=20", "k=2", "spacing=5", "averagers.swa.start=5", "evaluate.every=5", "save.every=5", "avg=[lawa]")
WORDS = [w for w in WORDS if not w.startswith(("averagers.ema", "averagers.swa"))]
AVERAGE = "lawa-k2-s5"
LAST = "step_00000020"
SEED = 17


# ---------------------------------------------------------------------------------------------------- the damages


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    return b""


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def flipped(data: bytes) -> bytes:
    """A bit of a digit, so that what was JSON still is, where there is one."""
    digits = [m.start() for m in re.finditer(rb"(?<=[\d.])\d", data)] if data[:1] in b"{t" else []
    place = random.Random(len(data)).choice(digits) if digits else len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def half_a_line(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2] + lines[-1]


def not_utf8(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\xff\xfe\x80" + data[len(data) // 2 :]


def no_object(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"[1, 2]\n" + b"".join(lines[1:]) if len(lines) > 1 and data[:1] == b"{" else b"[1, 2]\n"


def without_a_key(data: bytes) -> bytes:
    """The first key of JSON, else the first lines."""
    found = re.sub(rb'"\w+": [^,{\[]+, ', b"", data, count=1)
    return found if found != data else data.split(b"\n", 2)[-1] or data[1:]


def line_removed(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[: len(lines) // 2], *lines[len(lines) // 2 + 1 :]])


def line_doubled(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[: len(lines) // 2], lines[len(lines) // 2], *lines[len(lines) // 2 :]])


DAMAGES = (
    *(cut, emptied, zeroed, flipped, half_a_line, not_utf8, no_object, without_a_key, line_removed, line_doubled),
)
OTHER = "another run's file"
WAYS = [*(damage.__name__ for damage in DAMAGES), OTHER]


# --------------------------------------------------------------------------------------------------- the commands


@dataclass
class Said:
    """How a command ended: its code (None: a traceback), what it said, and what it made."""

    code: int | None
    text: str
    made: object


Command = tuple[str, Callable[[Path], list[str]], Callable[[Path, str], object]]  # module, arguments, what it makes


def run_of(root: Path) -> Path:
    return next(p for p in root.iterdir() if (p / "metrics.jsonl").exists() or (p / "trajectory").exists())


def page(root: Path, said: str) -> object:
    text = (root / "page.html").read_text()
    found = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert found
    data = json.loads(found[1])
    del data["written"]
    return data


def standing(root: Path, said: str) -> object:
    return [{k: v for k, v in of.items() if k not in ("since", "seconds_left")} for of in json.loads(said)["runs"]]


def rows_of(name: str) -> Callable[[Path, str], object]:
    return lambda root, said: (run_of(root) / "readouts" / name / "metrics.jsonl").read_text()


def tree(name: str) -> Callable[[Path, str], object]:
    def made(root: Path, said: str) -> object:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / name).rglob("*")) if p.is_file()}

    return made


def trained(root: Path, said: str) -> object:
    return {name: of for name, of in contents(run_of(root)).items() if "readouts/n/" not in name}


def text(root: Path, said: str) -> object:
    """Of what was said the tables, without paths."""
    return [line for line in said.splitlines() if line.startswith(("|", "-"))]


def words(root: Path, *more: str) -> list[str]:
    keys = {word.split("=")[0] for word in more}
    return [*(w for w in WORDS if w.split("=")[0] not in keys), f"run_dir={run_of(root)}", *more]


COMMANDS: dict[str, Command] = {
    "status": ("lawa_exp.status.__main__", lambda r: [str(run_of(r)), "--json"], standing),
    "dashboard": ("lawa_exp.dashboard.__main__", lambda r: [str(run_of(r)), "--out", str(r / "page.html")], page),
    "summary": ("lawa_exp.summary", lambda r: [str(r / "sweeps" / "s"), "--out", str(r / "sum")], text),
    "readout": ("lawa_exp.readout.__main__", lambda r: [str(run_of(r)), "--k", "2,3", "--name", "new"], rows_of("new")),
    "suggest": ("lawa_exp.suggest", lambda r: [str(run_of(r))], rows_of("suggest")),
    "average": (
        "lawa_exp.average",
        lambda r: ["--trajectory", str(run_of(r)), "--k", "2", "--spacing", "5", "--out", str(r / "av")],
        tree("av"),
    ),
    "export": ("lawa_exp.export", lambda r: [str(run_of(r)), "--to", "nanogpt", "--out", str(r / "ex")], tree("ex")),
    "export an average": (
        "lawa_exp.export",
        lambda r: [str(run_of(r)), "--to", "huggingface", "--weights", AVERAGE, "--out", str(r / "ex")],
        tree("ex"),
    ),
    "train again": ("lawa_exp.launch.compose", lambda r: words(r), text),
    "continue": ("lawa_exp.launch.compose", lambda r: words(r, "steps=23"), trained),
}

KINDS: dict[str, tuple[str, list[str]]] = {  # the file (under the run, or the root with ../), and who reads it
    "config.yaml": (
        "config.yaml",
        ["status", "dashboard", "summary", "readout", "suggest", "export", "train again", "continue"],
    ),
    "provenance.jsonl": ("provenance.jsonl", ["status", "dashboard", "summary", "continue"]),
    "metrics.jsonl": (
        "metrics.jsonl",
        ["dashboard", "summary", "readout", "suggest", "train again", "continue"],
    ),
    "timing.jsonl": ("timing.jsonl", ["dashboard", "continue"]),
    "errors.jsonl": ("errors.jsonl", ["status", "continue"]),
    "a marker": ("DONE", ["status", "dashboard", "summary", "train again", "continue"]),
    "the heartbeat": (".heartbeat", ["status", "dashboard"]),
    "the checksums": (".checksums", ["status", "dashboard", "summary", "continue"]),
    "the manifest of a state": (f"resume/{LAST}/manifest.json", ["continue"]),
    "what a state describes": (f"resume/{LAST}/state.json", ["continue"]),
    "the manifest of a snapshot": (f"trajectory/{LAST}/manifest.json", ["average", "readout", "export", "suggest"]),
    "a snapshot": (f"trajectory/{LAST}/model.safetensors", ["average", "readout", "export", "suggest"]),
    "an average": (f"averages/{AVERAGE}/{LAST}/model.safetensors", ["export an average"]),
    "a read-out": ("readouts/n/metrics.jsonl", ["dashboard"]),
    "the test rows": ("readouts/test/metrics.jsonl", ["dashboard", "summary"]),
    "a sweep's manifest": ("../sweeps/s/manifest.json", ["status of the sweep", "dashboard of the sweep", "summary"]),
}
COMMANDS["status of the sweep"] = ("lawa_exp.status.__main__", lambda r: [str(r / "sweeps" / "s"), "--json"], standing)
COMMANDS["dashboard of the sweep"] = (
    "lawa_exp.dashboard.__main__",
    lambda r: [str(r / "sweeps" / "s"), "--out", str(r / "page.html")],
    page,
)
CASES = [
    (kind, way, command)
    for kind, (_, commands) in KINDS.items()
    for way in WAYS
    for command in commands
    if (kind, way) != ("a sweep's manifest", OTHER)  # is whole, and names the runs and the command of the other
]
OWN = 30  # of the cases also as processes


def do(name: str, root: Path, own_process: bool = False) -> Said:
    """The command on the files under `root`."""
    module, arguments, made = COMMANDS[name]
    if own_process:
        done = run(
            *arguments(root), module=module.removesuffix(".__main__").replace("lawa_exp.launch.compose", "lawa_exp")
        )
        code = None if "Traceback" in done.stderr else done.returncode
        out, told = done.stdout, done.stdout + done.stderr
    else:
        out_io, err_io = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out_io), contextlib.redirect_stderr(err_io):
            try:
                code = sys.modules[module].main(arguments(root))
            except SystemExit as ended:
                code = int(ended.code or 0)
            except Exception:
                code = None
                traceback.print_exc()
        out, told = out_io.getvalue(), out_io.getvalue() + err_io.getvalue()
    return Said(code, told, made(root, out) if code == 0 else None)


# ------------------------------------------------------------------------------------------------------ the trial


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`one`, a sweep of one finished run with a read-out, and `two`, that of another seed."""
    import importlib

    for module, _, _ in COMMANDS.values():
        importlib.import_module(module)
    root = tmp_path_factory.mktemp("damage")
    for name, seed in (("one", 0), ("two", 1)):
        assert run("-m", *WORDS, f"seed={seed}", f"runs_root={root / name}", "sweep=s").returncode == 0
        done = run_of(root / name)
        assert run(str(done), "--k", "3", "--spacing", "5", "--name", "n", module="lawa_exp.readout").returncode == 0
        line = {"time": 1.5 + seed, "step": 3, "reason": "OSError: x", "job": None, "start": 0}
        (done / "errors.jsonl").write_text(json.dumps(line) + "\n")
        (root / name / "sweeps" / "s" / "curves.png").unlink()
    yield root


def fresh(sources: Path, root: Path, kind: str) -> Path:
    """A copy of `one`; for the heartbeat of a run that is at work."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(sources / "one", root)
    if kind == "the heartbeat":
        live(run_of(root))
    return root


def live(folder: Path) -> None:
    (folder / "DONE").unlink()
    beat = Heartbeat(folder / ".heartbeat")
    told = {"step": 12, "steps": 20, "stepped": 1.0e9, "unit": "token", "tokens_per_second": 7.0, "seconds_left": 9}
    beat.facts = lambda: told
    beat.write()


def damage(path: Path, way: str, sources: Path) -> bool:
    """False where it changes nothing."""
    before = path.read_bytes()
    if way != OTHER:
        path.write_bytes(DAMAGES[WAYS.index(way)](before))
    elif path.name == ".heartbeat":  # written by another one's process
        path.write_text(path.read_text().replace('"step": 12', '"step": 13'))
    else:
        inside = next(p for p in path.parents if (p / "trajectory").is_dir() or (p / "sweeps").is_dir())
        there = run_of(sources / "two") if (inside / "trajectory").is_dir() else sources / "two"
        shutil.copyfile(there / path.relative_to(inside), path)
    return path.read_bytes() != before


def verdict(said: Said, reference: Said, file: Path) -> str:
    names = {file.name, file.parent.name} if file.parent.name.startswith("step_") else {file.name}
    named = any(name in said.text + json.dumps(said.made, default=str) for name in names) or "is damaged" in said.text
    if said.code is None:
        return "traceback"
    if said.code == 0 and said.made == reference.made:
        return "the same, named" if named and said.text != reference.text else "the same"
    if said.code == 0:
        return "another result, named" if named else "WRONG in silence"
    errors = [line for line in said.text.splitlines() if line.startswith("error: ")]
    return "refused, named" if named and len(errors) == 1 else "refused, NOT NAMED"


def cases_of(whole: bool, kind: str) -> list[tuple[str, str, str]]:
    everyday = random.Random(SEED).sample(CASES, len(CASES) // 10)
    return [case for case in (CASES if whole else everyday) if case[0] == kind]


@pytest.fixture(scope="module")
def references() -> dict[tuple[bool, str], Said]:
    """What the commands give of undamaged files; of a run that is at work, others."""
    return {}


def trial(
    sources: Path,
    references: dict[tuple[bool, str], Said],
    work: Path,
    cases: list[tuple[str, str, str]],
    own_process: bool = False,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    bad = []
    for kind, way, command in cases:
        key = (kind == "the heartbeat", command)
        if key not in references:
            references[key] = do(command, fresh(sources, work, kind))
            assert references[key].code == 0, references[key].text
        root = fresh(sources, work, kind)
        file = (run_of(root) / KINDS[kind][0]).resolve()
        if not damage(file, way, sources):
            counts["nothing was changed"] += 1
            continue
        said = do(command, root, own_process)
        found = verdict(said, references[key], file)
        counts[found] += 1
        if found == "traceback" or not found.islower():
            bad.append(f"{kind}, {way}, {command}: {found}: {said.text[-500:]}")
    assert not bad, "\n".join(bad)
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_named_or_do_no_harm(
    kind: str,
    sources: Path,
    references: dict[tuple[bool, str], Said],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    cases = cases_of(request.config.getoption("--harness-whole"), kind)
    counts = trial(sources, references, tmp_path_factory.getbasetemp() / "work", cases)
    append_counts(request.config, f"damage: {kind}", dict(counts))


def test_the_same_in_processes_of_their_own(
    sources: Path,
    references: dict[tuple[bool, str], Said],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    n = OWN if request.config.getoption("--harness-whole") else 2
    cases = random.Random(SEED + 1).sample([c for c in CASES if c[0] != "the heartbeat"], n)
    counts = trial(sources, references, tmp_path_factory.getbasetemp() / "work", cases, own_process=True)
    append_counts(request.config, "damage, in processes of their own", dict(counts))


@pytest.mark.parametrize("way", WAYS)
def test_damaged_tokens_in_the_cache_are_made_anew(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from lawa_exp.axes.dataset.text import kept

    monkeypatch.setenv("LAWA_CACHE", str(tmp_path))
    tokens, others = np.arange(5000, dtype=np.uint16), np.arange(5000, dtype=np.uint16)[::-1].copy()
    for key, content in (("one", tokens), ("two", others)):
        assert (kept(key, lambda content=content: content) == content).all()
    (file,), (other,) = tmp_path.glob("one.*.npy"), tmp_path.glob("two.*.npy")
    if way == OTHER:
        shutil.copyfile(other, file)
    else:
        file.write_bytes(DAMAGES[WAYS.index(way)](file.read_bytes()))
    made = []
    assert (kept("one", lambda: made.append(1) or tokens) == tokens).all() and made
