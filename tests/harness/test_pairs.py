"""Every command that writes, two of the same at once, and with files that may not grow: as on a full disk.

Of two at once each ends well or says that the other one holds the folder; what lies there then is the twin's. A full
disk is said in one line, and the same command ends with the twin's bytes when there is room. Everyday one command, the
cheapest; with --harness-whole all of them.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.counted import append_counts
from helpers import command
from test_kills import SEED, TARGETS, fresh, left_behind, make_sources

SHARES = (0.0, 0.3, 0.9)  # of the largest file that the command writes
EVERYDAY = "average"


def start(name: str, work: Path, limit: int | None = None) -> subprocess.Popen[str]:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    target, pipe = TARGETS[name], subprocess.PIPE
    words = command(*target.arguments, module=target.module)
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=work, preexec_fn=limited)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=600)
    assert "Traceback" not in err, err
    return process.returncode, err


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sources(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("name", TARGETS)
def test_two_at_once_and_a_full_disk(name: str, sources: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole, target = request.config.getoption("--harness-whole"), TARGETS[name]
    if not whole and name != EVERYDAY:
        return
    if name == "data" and not os.environ.get("LAWA_TOKENIZER"):
        pytest.skip("GPT-2's tokenizer is not here (LAWA_TOKENIZER)")
    made: Callable[[Path], dict[str, str]] = target.made
    work = tmp_path / "work"
    assert ended(start(name, fresh(sources, work, target)))[0] == 0
    twin = made(work)

    both = [start(name, fresh(sources, work, target)), start(name, work)]
    codes = [ended(process) for process in both]
    assert {code for code, _ in codes} <= {0, 2} and 0 in {code for code, _ in codes}, codes
    assert all(len(err.splitlines()) == 1 and "error: " in err for code, err in codes if code), codes
    assert made(work) == twin and not left_behind(work)

    largest = max(p.stat().st_size for p in work.rglob("*") if p.is_file())
    shares = SHARES if whole else random.Random(SEED).sample(SHARES, 1)
    refused = 0
    for share in shares:
        code, err = ended(start(name, fresh(sources, work, target), int(largest * share)))
        if code == 0:
            assert made(work) == twin, f"a limit of {share:g}: code 0, and other bytes"
            continue
        refused += 1
        assert code == 1 and [line for line in err.splitlines() if line.startswith("error: ")], (code, err)
        code, err = ended(start(name, work))
        assert made(work) == twin and not left_behind(work), (share, code, err)
    disks = {"full disk, refused by name": refused, "full disk that was enough": len(shares) - refused}
    counts = {"two at once, the twin's bytes": 1, **disks}
    append_counts(request.config, f"two at once, full disk: {name}", counts)
