"""The real training loop, timed from inside: nothing of it is copied.

`lawa_exp.training.train.train` asks its `should_stop` once before the first step and once after each. A benchmark
answers, so one step is what passes between two questions: the whole of the loop, its row, averagers and flags
included. While it answers, the loop stands still, and the other side of a pair can run in the same process and thread.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lawa_exp.axes.dataset.text import read_pydocs
from lawa_exp.launch.compose import compose, read
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks, start_device
from lawa_exp.training.setup import set_up
from lawa_exp.training.train import train

VOCABULARY = 65  # nanoGPT's for tinyshakespeare: the 10.6M model is the one of its config/train_shakespeare_char.py

# Overrides of `python -m lawa_exp`. Nothing is evaluated, saved or kept while it is timed, unless a benchmark says so.
QUIET = ["evaluate.every=1000000", "evaluate.samples=32", "save.every=1000000", "trajectory.keep=none", "steps=1000000"]
QUIET += ["logger.every=10", "evaluate.bn_samples=32"]
SIZES = {
    "10.6M": [
        *("model=gpt_tiny", "model.name=gpt_10m", "model.layers=6", "model.heads=6", "model.width=384"),
        *("model.context=256", f"model.vocab_size={VOCABULARY}", "batch.size=16", "trainer.dtype=bfloat16"),
        *("dataset=tokens", f"dataset.vocab_size={VOCABULARY}"),
    ],
    "roberta_base": ["model=roberta_base"],
    "gpt_tiny": ["model=gpt_tiny", "batch.size=16"],
    **{
        name: [f"model={name}", "dataset=tokens", "dataset.vocab_size=50304"]
        for name in ("gpt2_small", "gpt2_medium", "gpt2_large")
    },
    "resnet50": ["model=resnet50", "batch.norm_group=null"],
}


def prepared(size: str, overrides: list[str], folder: Path, device: str = "cpu") -> Prepared:
    """A training of SIZES[size] in `folder`, resolved as the command would."""
    arguments = [*SIZES[size], *QUIET, "avg=none", f"run_dir={folder / 'run'}", f"trainer.device={device}", *overrides]
    if "dataset=tokens" in SIZES[size]:
        write_tokens(folder / "tokens")
        arguments.append(f"dataset.path={folder / 'tokens'}")
    composed, _ = compose(arguments)
    return prepare(*read(*composed[0]), *start_device(device))


def write_tokens(folder: Path) -> None:
    """Python's documentation in nanoGPT's format: its 64 most frequent bytes by rank, all others as one token."""
    text = np.frombuffer("".join(read_pydocs()[0].values()).encode(), np.uint8)
    rank = np.empty(256, np.uint16)
    rank[np.argsort(-np.bincount(text, minlength=256), kind="stable")] = np.arange(256)
    tokens = np.minimum(rank[text], VOCABULARY - 1).astype(np.uint16)
    folder.mkdir(parents=True)
    cut = int(0.9 * len(tokens))
    tokens[:cut].tofile(folder / "train.bin")
    tokens[cut:].tofile(folder / "val.bin")


def watch(p: Prepared, after_step: Callable[[float], bool]) -> None:
    """Trains; after each step `after_step` gets its seconds and says whether to stop. The first one is a warm-up:
    it holds the evaluation of step 0. On a GPU these are the seconds until the step is queued."""
    asked, mark = 0, 0.0

    def should_stop() -> bool:
        nonlocal asked, mark
        seconds = time.perf_counter() - mark
        asked += 1
        stop = asked > 1 and after_step(seconds)
        mark = time.perf_counter()
        return stop

    run = RunDir(p.run_dir)
    run.path.mkdir(parents=True)
    device, ranks = start_device(p.config.trainer.device)
    assert ranks == Ranks(), "one process only"
    with contextlib.redirect_stdout(io.StringIO()):
        setup = set_up(p.config, p.data, p.splits, run, ranks, device)
        outcome = train(setup, p.origin, should_stop, lambda _: None)
    if outcome.how != "stopped" or outcome.step != asked - 1:
        sys.exit(
            f"the loop does not ask once a step any more: {outcome.how}, {outcome.step} steps, asked {asked} times"
        )
