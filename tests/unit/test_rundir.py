"""What a run directory promises: damage is named, nothing is trained twice, nothing is overwritten, nothing is lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import (
    IDS,
    TINY,
    UPDATE,
    Strike,
    assert_same_run,
    assert_whole,
    command,
    contents,
    go_on,
    held,
    lines_of,
    markers,
    rows,
    run,
    states,
    tiny,
)

from lawa_exp.storage.rundir import RunDir

MIB = 1 << 20


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TINY. Not to be changed: tests work on a copy."""
    folder = tmp_path_factory.mktemp("twin") / "run"
    done = run(*TINY, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert_whole(folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of TINY that was killed in step 50, with the states of steps 30 and 45. Not to be changed."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    assert run(*TINY, f"run_dir={folder}", strike=Strike(UPDATE, n=50)).returncode == -signal.SIGKILL
    assert states(folder) == [30, 45]
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training with four LAWAs, four EMAs and two SWAs attached."""
    folder = tmp_path_factory.mktemp("many") / "run"
    attached = ["k=[2,3]", "spacing=[10,20]", "averagers.ema.decay=[0.9,0.8]", "averagers.ema.every=[1,5]"]
    done = run(*tiny(*attached), f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    assert len({r["weights"] for r in rows(folder) if r["step"] == 60}) == 11
    return folder


def copy(run_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_dir, tmp_path / "copy")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files but the lock: content and time of the last change."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def untested(files: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    """All but the test rows, which those of an average that is read out later join."""
    return {name: found for name, found in files.items() if not name.startswith("readouts/test/")}


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flipped bit": ("optimizer.safetensors", flip),
    "truncated": ("averagers/ema-d0.9-e1.safetensors", lambda path: os.truncate(path, path.stat().st_size - 1)),
    "missing file": ("state.json", Path.unlink),
    "missing manifest": ("manifest.json", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_is_named_and_the_one_before_used(damage: str, killed: Path, twin: Path, tmp_path: Path) -> None:
    folder = copy(killed, tmp_path)
    name, harm = DAMAGES[damage]
    harm(folder / "resume" / "step_00000045" / name)
    done = run(*TINY, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    assert f"the state of step 45 is damaged: {folder / 'resume' / 'step_00000045' / name}" in done.stdout
    assert "continuing from step 30" in done.stdout
    assert_same_run(folder, twin)


LARGE = ("trajectory", "averages", "resume")


def test_large_folders_on_another_disk(killed: Path, twin: Path, tmp_path: Path) -> None:
    """A link of the run's own, which the folder confirms; another run's link to it is refused."""
    folder = copy(killed, tmp_path)
    for name in LARGE:
        (tmp_path / "disk").mkdir(exist_ok=True)
        (folder / name).rename(tmp_path / "disk" / f"its {name}")
        (folder / name).symlink_to(tmp_path / "disk" / f"its {name}")
    (folder / "trajectory" / ".partial-step_00000052").mkdir()  # of a killed process that had the lock
    for name in ("averages", "resume", "trajectory"):
        refused = run(*TINY, f"run_dir={folder}")
        assert refused.returncode == 2 and f"{name} is a link that leads out of it" in refused.stderr
        subprocess.run(refused.stderr.partition("to keep these files there: ")[2], shell=True, check=True)
    done = run(*TINY, f"run_dir={folder}")
    assert done.returncode == 0 and "continuing from step 45" in done.stdout, done.stderr
    for name in LARGE:
        there = {path.name for path in (tmp_path / "disk" / f"its {name}").iterdir()}
        assert there == {".of_run", *(path.name for path in (twin / name).iterdir())}
    assert RunDir(folder).average_ids == sorted(path.name for path in (twin / "averages").iterdir())
    again = run(*TINY, f"run_dir={folder}", "rerun=true")
    assert again.returncode == 2 and "rerun=true" in again.stderr and "is a link" in again.stderr
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "trajectory").symlink_to(folder / "trajectory")
    other = run(*TINY, f"run_dir={tmp_path / 'evil'}")
    assert other.returncode == 2 and "trajectory is a link that leads out of it" in other.stderr
    assert {path.name for path in (tmp_path / "evil").iterdir()} == {"trajectory"}
    (folder / "trajectory" / "step_00000090").symlink_to(twin)
    inner = run(*TINY, f"run_dir={folder}")
    assert inner.returncode == 2 and "step_00000090 is a link that leads out of it\n" in inner.stderr
    (folder / "trajectory" / "step_00000090").unlink()
    for name in LARGE:
        (folder / name).unlink()
        (tmp_path / "disk" / f"its {name}").rename(folder / name)
    assert_same_run(folder, twin)


def test_all_states_damaged(killed: Path, twin: Path, tmp_path: Path) -> None:
    folder = copy(killed, tmp_path)
    for step in (30, 45):
        flip(folder / "resume" / f"step_{step:08d}" / "model.safetensors")
    died = run(*TINY, f"run_dir={folder}", strike=Strike(UPDATE, n=20))
    assert died.returncode == -signal.SIGKILL
    for step in (30, 45):
        assert f"the state of step {step} is damaged" in died.stdout
    assert died.stdout.count("starting from step 0") == 2 and "continuing" not in died.stdout
    done = run(*TINY, f"run_dir={folder}")  # the new state was not dropped in favour of the damaged ones
    assert done.returncode == 0 and "continuing from step 15" in done.stdout, done.stdout
    assert_same_run(folder, twin)


def test_finished_run_started_again(twin: Path, tmp_path: Path) -> None:
    folder = copy(twin, tmp_path)
    before = everything(folder)
    again = run(*TINY, f"run_dir={folder}")
    assert again.returncode == 0 and "this training was done already, up to step 60" in again.stdout
    assert everything(folder) == before


def test_finer_evaluation_of_a_finished_run_is_not_passed_over(twin: Path, tmp_path: Path) -> None:
    folder = copy(twin, tmp_path)
    before = everything(folder)
    asked = [*tiny("evaluate.every=15"), f"run_dir={folder}"]
    again = run(*asked, warm=True)
    said = "evaluate.every=15: 3 of these 4 evaluations were not made (the first: step 15); rerun=true trains again"
    assert again.returncode == 0 and said in again.stdout
    assert everything(folder) == before
    assert run(*asked, "rerun=true", warm=True).returncode == 0
    assert [r["step"] for r in rows(folder) if (r["weights"], r["split"]) == ("live", "val")] == [0, 15, 30, 45, 60]
    assert "evaluations were not made" not in run(*asked, warm=True).stdout
    coarser = run(*tiny("evaluate.every=30"), f"run_dir={folder}", warm=True)
    assert coarser.returncode == 0 and "evaluations were not made" not in coarser.stdout


def test_finished_run_reads_out_another_lawa(twin: Path, many: Path, tmp_path: Path) -> None:
    folder = copy(twin, tmp_path)
    before = everything(folder)
    again = run(*tiny("k=2"), f"run_dir={folder}", warm=True)
    assert again.returncode == 0 and "reading lawa-k2-s10 out of the snapshots" in again.stdout
    found = (folder / "readouts" / "lawa-k2-s10" / "metrics.jsonl").read_text().splitlines()
    assert sorted(found) == lines_of(many, "lawa-k2-s10") and len(found) == 3
    assert untested(everything(folder)).items() >= untested(before).items()
    ids, test = ["live", "lawa-k2-s10", *IDS], {"name": "readouts/test/metrics.jsonl", "split": "test"}
    assert lines_of(folder, *ids, **test) == lines_of(many, *ids, **test) and len(lines_of(folder, *ids, **test)) == 5


def test_what_cannot_be_read_out_does_not_keep_others_from_it(twin: Path, many: Path, tmp_path: Path) -> None:
    folder = copy(twin, tmp_path)
    before = everything(folder)
    again = run(*tiny("k=2", "spacing=[10,12]", "averagers.ema.every=7"), f"run_dir={folder}", warm=True)
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1, again.stderr
    assert "lawa-k2-s12 cannot be read out" in again.stderr and "averagers.lawa.spacing=15, which" in again.stderr
    assert "ema-d0.9-e7 cannot be read out" in again.stderr and "averagers.ema.every=10, which" in again.stderr
    assert lines_of(folder, "lawa-k2-s10", name="readouts/lawa-k2-s10/metrics.jsonl") == lines_of(many, "lawa-k2-s10")
    assert any("lawa-k2-s10" in line for line in again.stdout.splitlines() if line.startswith("| "))
    assert untested(everything(folder)).items() >= untested(before).items() and markers(folder) == ["DONE"]


def test_rerun_fills_in_what_was_not_saved(twin: Path, many: Path, tmp_path: Path) -> None:
    folder, ema = copy(twin, tmp_path), "ema-d0.8-e1"
    asked = [*tiny("averagers.ema.decay=0.8"), f"run_dir={folder}"]
    before = everything(folder)
    refused = run(*asked)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert f"{ema} cannot be read out" in refused.stderr and "command with rerun=true" in refused.stderr
    assert "60 steps, of which 48 were not saved (the first: step 1)" in refused.stderr
    assert refused.stderr.strip().endswith("or ask for averagers.ema.every=5, which they give")
    assert everything(folder) == before

    killed = run(*asked, "rerun=true", strike=Strike(UPDATE, n=20))
    assert killed.returncode == -signal.SIGKILL and everything(folder).items() >= before.items()
    killed = run(*asked, "rerun=true", strike=Strike("pathlib:Path.rename", of="rerun/averages"))
    assert killed.returncode == -signal.SIGKILL and "continuing from step 15" in killed.stdout
    assert "the rerun equals the first training: 12 snapshots" in killed.stdout
    done = run(*asked, "rerun=true")
    assert done.returncode == 0 and "the rerun equals the first training" in done.stdout, done.stdout + done.stderr
    assert markers(folder) == ["DONE"] and not (folder / "rerun").exists()
    assert lines_of(folder, ema) == lines_of(many, ema) != []
    for id in [*IDS, "live"]:
        assert lines_of(folder, id) == lines_of(twin, id)
    for id in [*IDS, ema]:
        weights = Path("averages", id, "step_00000060", "model.safetensors")
        assert (folder / weights).read_bytes() == (many / weights).read_bytes()
    mine, others = ({f: h for f, h in contents(r).items() if f.startswith("trajectory")} for r in (folder, twin))
    assert mine == others
    assert states(folder) == [45, 60]


def test_rerun_that_differs_takes_nothing_over(twin: Path, tmp_path: Path) -> None:
    folder = copy(twin, tmp_path)
    metrics = folder / "metrics.jsonl"
    line = lines_of(folder, "live")[2]
    metrics.write_text(metrics.read_text().replace(line, line.replace('"loss": 3.', '"loss": 4.')))
    (folder / ".checksums").unlink()
    before = everything(folder)
    again = run(*TINY, f"run_dir={folder}", "rerun=true", warm=True)
    assert again.returncode == 1
    assert "the rerun differs from the first training, first in the val row of live of step 40" in again.stdout
    assert everything(folder).items() >= before.items()


def test_larger_budget_continues(twin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(*tiny("steps=40"), f"run_dir={folder}", warm=True)
    assert first.returncode == 0 and states(folder) == [30, 40] and markers(folder) == ["DONE"]
    more = run(*TINY, f"run_dir={folder}")
    assert more.returncode == 0 and "continuing from step 40" in more.stdout
    test = "readouts/test/metrics.jsonl"
    mine, others = contents(folder), contents(twin)
    assert mine.pop(test) != others.pop(test)  # the test rows of the first budget stay
    assert mine == others
    assert [r["step"] for r in rows(folder, test)] == [40] * 4 + [60] * 4
    ids = ["live", *IDS]
    assert set(lines_of(folder, *ids, name=test, split="test")) > set(lines_of(twin, *ids, name=test, split="test"))


def test_averagers_attached_later_are_rebuilt(killed: Path, twin: Path, tmp_path: Path) -> None:
    """Two windows with different spacings: rebuilding one must not drop what the other holds."""
    folder = copy(killed, tmp_path)
    done = run(*tiny("k=[1,3]", "spacing=[35,25,7]", "averagers.swa.start=50"), f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    assert "lawa-k1-s35 was rebuilt from 1 snapshot, up to that of step 35\n" in done.stdout
    assert "lawa-k3-s25 was rebuilt from 1 snapshot, up to that of step 25\n" in done.stdout
    assert "lawa-k1-s7 starts empty after step 45: the snapshots that it needs were not saved\n" in done.stdout
    assert "lawa-k3-s7 was rebuilt from 1 of 3 snapshots, as the others were not saved, up to that of step 35\n" in (
        done.stdout
    )
    assert "swa-e25-from50 starts empty after step 45: it takes in none before\n" in done.stdout
    for spacing, step in (35, 35), (25, 50):
        weights = folder / "averages" / f"lawa-k1-s{spacing}" / "step_00000060" / "model.safetensors"
        snapshot = twin / "trajectory" / f"step_{step:08d}" / "model.safetensors"
        assert weights.read_bytes() == snapshot.read_bytes()
    for id in [*IDS, "live"]:  # what was attached before stays attached
        assert lines_of(folder, id) == lines_of(twin, id) != []


AT_WORK = {  # a command: where its results are written and have not got their names, and its arguments
    "average": ("lawa_exp.formats.output:Output.publish", "", "--trajectory {run} --at 60 --out {run}/mean"),
    "readout": ("lawa_exp.system.files:sync", "metrics.jsonl", "{run} --k 2 --spacing 10"),
}


@pytest.mark.parametrize("name", AT_WORK)
def test_a_start_leaves_alone_what_another_process_writes(name: str, twin: Path, tmp_path: Path) -> None:
    """And clears what a process had written that was killed."""
    folder = copy(twin, tmp_path)
    at, of, arguments = AT_WORK[name]
    module, strike, asked = f"lawa_exp.{name}", Strike(at, of=of), arguments.format(run=folder).split()

    def partial() -> int:
        return len(list(folder.rglob(".partial-*")))

    def start() -> None:
        again = run(*TINY, f"run_dir={folder}")
        assert again.returncode == 0 and "was done already" in again.stdout, again.stderr

    assert run(*asked, module=module, strike=strike).returncode == -signal.SIGKILL and partial() == 1
    start()
    assert partial() == 0
    other = held(strike, *asked, module=module)
    try:
        start()
        assert partial() == 1
        done = go_on(other)
    finally:
        other.kill()
    assert done.returncode == 0 and partial() == 0, done.stderr
    assert list(folder.glob("mean/model.safetensors" if name == "average" else "readouts/*/summary.md"))


def test_averaging_only_observes(twin: Path, tmp_path: Path) -> None:
    """Without averagers the same training: the live weights come back whole from every evaluation of an average."""
    alone = [o for o in TINY if not o.startswith("averagers.")]
    done = run(*alone, "avg=none", f"run_dir={tmp_path}", warm=True)
    assert done.returncode == 0, done.stderr
    assert {r["weights"] for r in rows(tmp_path)} == {"live"}
    for split in ("train", "val"):
        assert lines_of(tmp_path, "live", split=split) == lines_of(twin, "live", split=split) != []
    mine, others = ({f: h for f, h in contents(r).items() if f.startswith("trajectory")} for r in (tmp_path, twin))
    assert mine == others


def test_run_in_use(twin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        command(*TINY, f"run_dir={folder}", strike=Strike(UPDATE, n=20, signal="SIGSTOP")), stdout=subprocess.DEVNULL
    )
    try:
        assert os.WIFSTOPPED(os.waitpid(holder.pid, os.WUNTRACED)[1])
        second = run(*TINY, f"run_dir={folder}")
        assert second.returncode == 2
        assert len(second.stderr.splitlines()) == 1 and f"in use by process {holder.pid}" in second.stderr
        assert states(folder) == [15] and markers(folder) == []
    finally:
        holder.kill()
    assert holder.wait() == -signal.SIGKILL
    done = run(*TINY, f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and "continuing from step 15" in done.stdout
    assert_same_run(folder, twin)


@pytest.mark.parametrize("other", ["seed", "lr.peak"])
def test_folder_with_another_trajectory(other: str, twin: Path) -> None:
    before = everything(twin)
    refused = run(*tiny(f"{other}=1"), f"run_dir={twin}")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    differ = {"seed": "seed=0, this command 1", "lr.peak": "lr.peak=0.003, this command 1.0"}[other]
    assert f"run_dir={twin} holds another trajectory (the run has {differ})" in refused.stderr
    assert everything(twin) == before


def test_folder_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refused = run(*TINY, f"run_dir={tmp_path}")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "is not empty and holds no run" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_diverged_run(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "run"
    asked = [*tiny("lr.warmup_steps=60"), "lr.peak=120", "optimizer.clip_norm=0", f"run_dir={folder}"]
    diverged = run(*asked)
    assert diverged.returncode == 3, diverged.stdout + diverged.stderr
    assert markers(folder) == ["DIVERGED"]
    bad = rows(folder)[-1]
    assert bad["split"] == "train" and "grad_norm" in bad["nonfinite"]
    assert all(bad[name] is None for name in bad["nonfinite"])
    assert all("nonfinite" not in r for r in rows(folder)[:-1])
    last = bad["step"] - 1
    assert json.loads((folder / "DIVERGED").read_text())["step"] == last >= 20
    found = [(p, step) for id in IDS for p in (folder / "averages" / id).glob("*") for step in [int(p.name[5:])]]
    assert {"ema-d0.9-e1", "swa-e10-from20"} <= {p.parent.name for p, _ in found}
    for path, step in found:
        assert step == last
        assert all(torch.isfinite(t).all() for t in load_file(path / "model.safetensors").values())

    before = everything(folder)
    again = run(*asked)
    assert again.returncode == 3 and f"this training diverged after step {last}" in again.stdout
    assert "continuing" not in again.stdout and everything(folder) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A mounted disk of 2.5 MiB, and a function that gives it another size."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={5 * MIB // 2}", "tmpfs", mounted]).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield mounted, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", mounted], check=True)
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_full_disk(small_disk: tuple[Path, Callable[[int], None]], twin: Path) -> None:
    mounted, resize = small_disk
    folder = mounted / "run"
    full = run(*TINY, f"run_dir={folder}")
    assert full.returncode == 1
    assert len(full.stderr.splitlines()) == 1 and "No space left on device" in full.stderr
    assert states(folder) != [] and markers(folder) in ([], ["FAILED"])
    newest = states(folder)[-1]
    resize(16 * MIB)
    done = run(*TINY, f"run_dir={folder}")
    assert done.returncode == 0 and "damaged" not in done.stdout and f"continuing from step {newest}" in done.stdout
    assert_same_run(folder, twin)


def test_file_that_may_not_grow(killed: Path, twin: Path, tmp_path: Path) -> None:
    """The same without a disk of its own: files end at 120 kB, less than the optimizer's."""
    folder = copy(killed, tmp_path)
    limit = 120_000
    full = run(
        *TINY,
        f"run_dir={folder}",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == 1
    assert len(full.stderr.splitlines()) == 1 and "File too large" in full.stderr
    assert states(folder) == [30, 45] and markers(folder) == ["FAILED"]
    done = run(*TINY, f"run_dir={folder}")
    assert done.returncode == 0 and "continuing from step 45" in done.stdout
    assert_same_run(folder, twin)


def test_multirun_trains_once_for_entries_that_differ_in_averaging(twin: Path, many: Path, tmp_path: Path) -> None:
    done = run("-m", *tiny("k=2,3", "seed=0,1"), f"runs_root={tmp_path}", "sweep=both")
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweeps" / "both"
    assert done.stdout.splitlines()[0] == f"sweep_dir={sweep}"
    assert "4 entries, 2 trainings" in done.stdout
    entries = json.loads((sweep / "manifest.json").read_text())["entries"]
    assert [e["averages"][0] for e in entries] == ["lawa-k2-s10", "lawa-k2-s10", "lawa-k3-s10", "lawa-k3-s10"]
    assert entries[0]["run_dir"] == entries[2]["run_dir"] != entries[1]["run_dir"] == entries[3]["run_dir"]
    runs = [Path(os.path.normpath(sweep / e["run_dir"])) for e in entries[:2]]
    assert sorted(p for p in tmp_path.iterdir() if p.name != "sweeps") == sorted(runs)
    for folder in runs:
        assert markers(folder) == ["DONE"]
        assert len((folder / "provenance.jsonl").read_text().splitlines()) == 1, "trained more than once"
        assert {r["weights"] for r in rows(folder)} == {"live", "lawa-k2-s10", *IDS}
    assert lines_of(runs[0], "live", *IDS) == lines_of(twin, "live", *IDS)
    assert lines_of(runs[0], "lawa-k2-s10") == lines_of(many, "lawa-k2-s10")
    assert lines_of(runs[1], "live") != lines_of(runs[0], "live")
    summary = (sweep / "summary.md").read_text()
    assert "## all entries (2 seed(s))" in summary
    shown = [line.split("|")[1].strip() for line in summary.splitlines() if line.startswith("| ")]
    assert sorted(shown) == sorted(["weights", "live", "lawa-k2-s10", *IDS])  # those of every entry


READOUTS = {
    "lawa": (["--avg", "lawa", "--k", "2,3", "--spacing", "10,20"], "lawa-k2-s10 lawa-k2-s20 lawa-k3-s10 lawa-k3-s20"),
    "ema": (["--avg", "ema", "--decay", "0.9,0.8", "--every", "5"], "ema-d0.9-e5 ema-d0.8-e5"),
    "swa": (["--avg", "swa", "--every", "10,20", "--start", "20"], "swa-e10-from20 swa-e20-from20"),
}


@pytest.mark.parametrize("kind", READOUTS)
def test_replay_equals_online(kind: str, twin: Path, many: Path, tmp_path: Path) -> None:
    flags, ids = READOUTS[kind]
    before = everything(twin)
    done = run(str(twin), *flags, "--out", str(tmp_path), module="lawa_exp.readout", warm=True)
    assert done.returncode == 0, done.stderr
    online = lines_of(many, *ids.split())
    assert {json.loads(line)["weights"] for line in online} == set(ids.split())
    assert sorted(line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"val"' in line) == online
    assert everything(twin) == before


def test_replay_of_a_damaged_snapshot(twin: Path, tmp_path: Path) -> None:
    """It is named in one line, and a rerun puts the snapshot right."""
    folder = copy(twin, tmp_path)
    damaged = folder / "trajectory" / "step_00000050" / "model.safetensors"
    flip(damaged)
    refused = run(str(folder), "--k", "2", "--spacing", "10", module="lawa_exp.readout")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
    assert str(damaged) in refused.stderr and "rerun=true" in refused.stderr
    assert run(*TINY, f"run_dir={folder}", "rerun=true", warm=True).returncode == 0
    assert_same_run(folder, twin)
