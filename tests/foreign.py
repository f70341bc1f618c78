"""`suggest` and `readout` on folders of other people's, in this process."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import rows
from torch import Tensor, nn

from lawa_exp import average, suggest
from lawa_exp.readout.__main__ import parser, request_of
from lawa_exp.readout.command import read
from lawa_exp.system.cli import exit_code

TEXT = "the quick brown fox jumps over the lazy dog, and runs; " * 60


def in_process(command: Callable[[], int]) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = exit_code(command)
    return code, out.getvalue(), err.getvalue()


def suggestion(*arguments: object) -> tuple[int, str, str]:
    args = suggest.parser().parse_args([*map(str, arguments), "--threads", "1", "--device", "cpu"])
    return in_process(lambda: suggest.command(args))


def answer(*arguments: object) -> dict[str, Any]:
    code, out, err = suggestion(*arguments, "--json")
    assert code == 0, err
    made: dict[str, Any] = json.loads(out)
    return made


def refusal(*arguments: object) -> str:
    """The one line of a command that is refused."""
    code, _, err = suggestion(*arguments)
    assert code == 2 and err.count("\n") == 1, (code, err)
    return err


def readout(*arguments: object) -> tuple[int, str, str]:
    words = [*map(str, arguments), "--threads", "1", "--device", "cpu"]
    return in_process(lambda: read(request_of(parser().parse_intermixed_args(words))))


def single(path: Path, *arguments: object) -> dict[str, Any]:
    """The row of a single model."""
    code, out, err = readout(path, *arguments, "--out", "alone")
    assert code == 0 and "A single model" in out, err
    return rows(Path("alone"))[0]


def written_by(command: str, folder: Path) -> Path:
    """Runs the `average` command that was printed; what it has written."""
    program, flag, module, *words = shlex.split(command)
    assert (program, flag, module) == ("python", "-m", "lawa_exp.average")
    code, _, err = in_process(lambda: average.average(average.parser().parse_args(words)))
    assert code == 0, err
    return folder / words[words.index("--out") + 1]


def around(model: nn.Module, count: int, noise: float = 0.02) -> Iterator[dict[str, Tensor]]:
    """State dicts that scatter around a model's weights: averages of them are better."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(count):
        moved: dict[int, Tensor] = {}  # tied weights stay tied
        for t in model.state_dict().values():
            step = noise * torch.randn(t.shape, generator=draw) if t.is_floating_point() else torch.zeros_like(t)
            moved.setdefault(t.data_ptr(), t + step)
        yield {n: moved[t.data_ptr()] for n, t in model.state_dict().items()}


def saved(model: Any, tokenizer: Any, folder: Path, count: int = 6) -> list[Path]:
    """Checkpoints in transformers' layout around the model's weights."""
    own = {n: t.clone() for n, t in model.state_dict().items()}
    paths = []
    for i, state in enumerate(around(model, count), 1):
        model.load_state_dict(state)
        paths.append(folder / f"checkpoint-{10 * i}")
        model.save_pretrained(paths[-1])
        tokenizer.save_pretrained(paths[-1])
    model.load_state_dict(own)
    return paths


def pictures(folder: Path, count: int = 60) -> None:
    """PNG files of noise, dark and bright, in a folder for each of two classes, below train/ and val/."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(count):
            label = i % 2
            pixels = draw.integers(0, 120, (12, 10, 3)) + 100 * label
            (folder / split / f"class{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"class{label}" / f"{i}.png")
