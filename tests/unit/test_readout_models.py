"""Zero-shot and perplexity of models that compute their own loss: an adaptive-input LM has them, a masked one not."""

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import rows, run

from lawa_exp.checkpoint.commit import steps_in
from lawa_exp.checkpoint.tensors import read_tensors
from lawa_exp.cli import exit_code
from lawa_exp.models import build_model
from lawa_exp.perplexity import windows
from lawa_exp.readout.__main__ import parser
from lawa_exp.readout.command import read
from lawa_exp.rundir import RunDir
from lawa_exp.settings import config_from

RECORDED = Path(__file__).parents[1] / "fidelity" / "recorded" / "fairseq" / "data"
SMALL = [
    *("model.layers=1", "model.width=16", "model.heads=2", "batch.size=4", "steps=4", "lr.warmup_steps=1"),
    *("evaluate.every=4", "evaluate.samples=4", "trainer.threads=1", "k=2", "spacing=2"),
]
ADAPTIVE = [
    *("model=transformer_lm_wiki103", "dataset=pydocs", "model.vocab_size=null", "model.cutoffs=[40,100]"),
    *("model.hidden=32", "model.context=32", "lr.peak=0.1", *SMALL),
]
MASKED = ["model=roberta_base", "model.vocab_size=null", "model.context=48", f"dataset.path={RECORDED}", *SMALL]


def readout(*arguments: Any) -> tuple[int, str]:
    """The command in this process: its exit code and its errors."""
    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        args = parser().parse_intermixed_args([str(a) for a in arguments])
        return exit_code(lambda: read(args)), err.getvalue()


def weights_of(folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """The rows of measures after the last step, by weights and (task, metric)."""
    found: dict[str, Any] = {}
    for r in rows(out):
        if r["step"] == 4 and "task" in r:
            found.setdefault(r["weights"], {})[r["task"], r["metric"]] = r["value"]
    return found


def test_an_adaptive_language_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lawa_exp[zeroshot]")
    folder = tmp_path / "run"
    done = run(*ADAPTIVE, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    model = build_model(config_from(RunDir(folder).read_config() or {}).model).eval()
    at = steps_in(folder / "trajectory")
    text = "Once upon a time there was a loop, and it had no end at all.\n" * 3
    (tmp_path / "book.txt").write_text(text)
    documents = [{"context": f"He said it {i} times, and then", "continuation": "again"} for i in range(4)]
    (tmp_path / "lambada_openai.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    code, errors = readout(
        folder, "--evaluate", "perplexity", "--text", tmp_path / "book.txt", "--k", "2", "--out", tmp_path / "a"
    )
    assert code == 0, errors
    asked = [
        "--evaluate",
        "zeroshot",
        "--tasks",
        "lambada_openai",
        "--task-data",
        tmp_path,
        "--k",
        "2",
        "--out",
        tmp_path / "b",
    ]
    code, errors = readout(folder, *asked)
    assert code == 0, errors
    snapshots = [read_tensors(at[step] / "model.safetensors") for step in (2, 4)]
    mean = {
        n: ((a.double() + b.double()) / 2).to(a.dtype)
        for (n, a), b in zip(snapshots[0].items(), snapshots[1].values(), strict=True)
    }
    for id, tensors in (("live", snapshots[1]), ("lawa-k2-s2", mean)):
        model.load_state_dict(tensors, strict=False)
        inputs, targets = map(torch.from_numpy, windows(np.frombuffer(text.encode(), np.uint8).astype(np.int64), 32))
        with torch.no_grad():
            nats = model(inputs, targets).item()
        found = weights_of(folder, tmp_path / "a")[id]
        assert found["book.txt", "token_perplexity"] == pytest.approx(math.exp(nats / (len(text) - 1)), rel=1e-5)
        assert found["book.txt", "bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
        logs = []
        for document in documents:
            tokens = torch.tensor(list(f"{document['context']} {document['continuation']}".encode()))
            with torch.no_grad():
                each = model(tokens[None, -33:-1])[0].gather(1, tokens[-32:, None])
            logs.append(each[-len(" again") :].sum().item())
        found = weights_of(folder, tmp_path / "b")[id]
        assert found["lambada_openai", "perplexity"] == pytest.approx(math.exp(-np.mean(logs)), rel=1e-4)


@pytest.mark.parametrize("asked", [["perplexity", "--text", __file__], ["zeroshot", "--tasks", "arc_easy"]])
def test_a_masked_language_model_is_refused(asked: list[str], tmp_path: Path, masked: Path) -> None:
    for subject in ([masked], [masked / "trajectory", "--model", "roberta_base"]):
        code, errors = readout(
            *subject, "--evaluate", *asked, "--k", "2", "--tokenizer", "bytes", "--out", tmp_path / "out"
        )
        expected = f"error: --evaluate {asked[0]}: model=roberta_base is no language model of tokens"
        assert code == 2 and errors.startswith(expected) and len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("masked") / "run"
    done = run(*MASKED, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder
