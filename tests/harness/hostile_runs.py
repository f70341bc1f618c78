"""Hostile run directories and data, made by code: see `hostile`."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml
from harness.hostile import CANARY, GADGETS, Make, Runs


def changed(**parts: object) -> Make:
    """The run's config.yaml with other parts."""

    def make(w: Path) -> None:
        file = w / "run/config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **parts}, sort_keys=False))

    return make


def custom(builder: str, **args: object) -> dict[str, object]:
    size = {"context": 32, "vocab_size": 256}
    return {"kind": "custom", "name": "gpt_tiny", "builder": builder, "args": args, **size}


def module_of_its_own(w: Path) -> None:
    changed(model=custom("evil_module:Model"))(w)
    for place in (w / "run", w):  # `python -m` looks in the current folder
        (place / "evil_module.py").write_text(f"open('../{CANARY}', 'w')\n")


def appended(content: str) -> Make:
    def make(w: Path) -> None:
        with (w / "run/config.yaml").open("a") as file:
            file.write(content)

    return make


def anchors(w: Path) -> None:
    """10^9 values, by names."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    file = w / "run/config.yaml"
    head, _, tail = file.read_text().partition("identity:\n")
    file.write_text(head + "identity:\n" + "".join(f"  {line}\n" for line in lines) + tail)


def markup(w: Path) -> None:
    file, evil = w / "run/metrics.jsonl", "<img src=x onerror=alert(1)></script>\x1b[2J\x1b]0;title\x07"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    changed = [{**r, "weights": evil, "averager": "<b>"} if r["weights"] != "live" else r for r in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in changed))
    (w / "run/DONE").unlink()
    (w / "run/FAILED").write_text(json.dumps({"step": 3, "reason": "<script>alert(3)</script>\x1b[2J\r\nsecond"}))


def replaced(name: str, make: Callable[[Path], object]) -> Make:
    """A file of the run that is something else."""

    def do(w: Path) -> None:
        (w / "run" / name).unlink(missing_ok=True)
        make(w / "run" / name)

    return do


def linked_out(*names: str) -> Make:
    """Files or folders of the run that are links to what is elsewhere."""

    def make(w: Path) -> None:
        (w / "elsewhere").mkdir()
        (w / "elsewhere.txt").write_text("secret: a key\n")
        for name in names:
            place = w / "run" / name
            is_folder = place.is_dir() or "." not in name
            shutil.rmtree(place, ignore_errors=True)
            place.unlink(missing_ok=True)
            place.symlink_to("../elsewhere" if is_folder else "../elsewhere.txt")

    return make


SMALL_FILES = ("config.yaml", "metrics.jsonl", "provenance.jsonl", "timing.jsonl", "DONE", ".heartbeat")
CONFIGURATIONS: dict[str, Make] = {
    "os:system as the model": changed(model=custom("os:system", command=f"touch ../{CANARY}")),
    "a module of its own": module_of_its_own,
    "a tag of Python": appended(f"x: !!python/object/apply:os.system ['touch ../{CANARY}']\n"),
    "10^9 values by anchors": anchors,
    "an anchor in itself": appended("x: &x [*x]\n"),
    "200,000 lists in lists": appended("x: " + "[" * 200_000 + "\n"),
    "markup and escapes": markup,
    **{f"{name} is a FIFO": replaced(name, os.mkfifo) for name in SMALL_FILES},
    **{f"{name} is a device": replaced(name, lambda p: p.symlink_to("/dev/zero")) for name in SMALL_FILES},
    "one endless line": replaced("metrics.jsonl", lambda p: p.write_bytes(b"x" * 100_000_000)),
    "15 MB of provenance": replaced("provenance.jsonl", lambda p: p.write_bytes(b"{}\n" * 5_000_000)),
}
LINKS: dict[str, Make] = {
    "the report is a link": linked_out("report.md"),
    "the timing is a link": linked_out("timing.jsonl"),
    "the provenance is a link": linked_out("provenance.jsonl"),
    "folders are links": linked_out("readouts", "wandb", "curvature"),
    "large folders are links": linked_out("trajectory", "averages", "resume", "states"),
}


def gz_of_one_line(w: Path) -> None:
    with gzip.open(w / "d.jsonl.gz", "wb", 1) as file:
        file.write(b'{"text": "')
        for _ in range(150):
            file.write(b"a" * 2_000_000)
        file.write(b'"}\n')


def inflating_arrays(w: Path) -> None:
    with zipfile.ZipFile(w / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            head = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000,), }"
            with archive.open(f"{name}.npy", "w") as file:
                file.write(head.ljust(127) + b"\n")
                for _ in range(100):
                    file.write(bytes(10_000_000))


def pickled_arrays(w: Path) -> None:
    import numpy as np

    np.save(w / "x_train.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    for name in ("y_train", "x_test", "y_test"):
        np.save(w / f"{name}.npy", np.zeros(4))


def pickled_images(w: Path) -> None:
    (w / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (w / "cifar-10-batches-py" / name).write_bytes(GADGETS["os.system"])


OPEN = ["steps=1", "run_dir=r", "trainer.threads=1"]
DATA: dict[str, tuple[Make, list[str]]] = {  # with the command that reads it
    "jsonl.gz of one line": (
        gz_of_one_line,
        ["data", "prepare", "openwebtext", "--source", "d.jsonl.gz", "--out", "o"],
    ),
    "arrays that inflate": (inflating_arrays, ["", "model=lenet", "dataset=arrays", "dataset.path=d.npz", *OPEN]),
    "arrays of objects": (pickled_arrays, ["", "model=lenet", "dataset=arrays", "dataset.path=.", *OPEN]),
    "CIFAR as code": (pickled_images, ["", "model=resnet20", "dataset=cifar10", "dataset.path=.", *OPEN]),
    "published.gz of one line": (
        lambda w: (w / "x.csv.gz").write_bytes(gzip.compress(b"suite,model\n" + b"a" * 300_000_000, 1)),
        ["published", "x.csv.gz", "--model", "x"],
    ),
}
