"""Zero-shot and perplexity of models that compute their own loss: an adaptive-input LM has them, a masked one not."""

import io
import json
import math
import os
import runpy
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import rows, run

from lawa_exp.axes.dataset.text import PydocsSettings
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.evaluation.perplexity import windows
from lawa_exp.readout.__main__ import parser, request_of
from lawa_exp.readout.command import read
from lawa_exp.runs.choices import config_from
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.safetensors import read_tensors
from lawa_exp.system.cli import exit_code

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
        request = request_of(parser().parse_intermixed_args([str(a) for a in arguments]))
        return exit_code(lambda: read(request)), err.getvalue()


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
    model = config_from(RunDir(folder).read_config() or {}).model.build().eval()
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
    code, errors = readout(folder, "--evaluate", "calibration", "--k", "2", "--out", tmp_path / "c")
    assert code == 2 and "gives no scores of all classes" in errors and len(errors.splitlines()) == 1
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


ARGS = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 32, "bias": True, "vocab_size": 256, "dropout": 0.2}
NANOGPT = Path(os.environ.get("NANOGPT", Path(__file__).parents[3] / "nanoGPT"))


def by_transformers() -> torch.nn.Module:
    """GPT-2 in the form of nanoGPT: the exact GELU, and no scale by layer. Its names are nanoGPT's, too."""
    transformers = pytest.importorskip("transformers")
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 32, "vocab_size": 256}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, activation_function="gelu", **ENDS))


def by_nanogpt() -> torch.nn.Module:
    if not (NANOGPT / "model.py").is_file():
        pytest.skip("no checkout of nanoGPT (NANOGPT=DIR)")
    theirs = runpy.run_path(str(NANOGPT / "model.py"))
    return theirs["GPT"](theirs["GPTConfig"](**ARGS))


ENDS = {"bos_token_id": None, "eos_token_id": None}
TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # [in, out] in transformers


def loss_of(model: torch.nn.Module, samples: int) -> float:
    """Nats per token of val's first `samples`, evenly spaced, by the reference's own forward."""
    data = PydocsSettings("pydocs").open(32)
    tokens, targets = map(torch.from_numpy, data.eval_batch("val", fixed_set(data.sizes["val"], samples)))
    with torch.no_grad():
        out = model.eval()(tokens) if hasattr(model, "generation_config") else model.eval()(tokens, targets)
    logits = out.logits if hasattr(out, "logits") else out[0]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long()).item()


def save_nanogpt(folder: Path, reference: Callable[[], torch.nn.Module]) -> dict[int, float]:
    """Two checkpoints as nanoGPT's train.py saves them; {step: loss by the reference}."""
    losses = {}
    for step in (100, 200):
        torch.manual_seed(step)
        model = reference()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # far from linear: heads and scales matter
        losses[step] = loss_of(model, 16)
        turned = hasattr(model, "generation_config")
        state = {n: t.T if turned and n.endswith(TURNED) else t for n, t in model.state_dict().items()}
        content = {"model": state, "model_args": ARGS, "iter_num": step, "config": {"n_head": 4}}
        torch.save(content, folder / f"ckpt_{step}.pt")
    return losses


@pytest.mark.parametrize("reference", [by_transformers, by_nanogpt])
@pytest.mark.parametrize("model", ["gpt2_small", "gpt_tiny"])
def test_a_nanogpt_checkpoint_is_the_function_that_it_records(
    model: str, reference: Callable[[], torch.nn.Module], tmp_path: Path
) -> None:
    (tmp_path / "nano").mkdir()
    wanted = save_nanogpt(tmp_path / "nano", reference)
    flags = ["--model", model, "--dataset", "pydocs", "--k", "1", "--threads", "1", "evaluate.samples=16"]
    code, errors = readout(tmp_path / "nano", *flags, "--out", tmp_path / "out")
    assert code == 0, errors
    found = {r["step"]: r["loss"] for r in rows(tmp_path / "out") if r["weights"] == "live" and r["split"] == "val"}
    assert found == pytest.approx(wanted, rel=1e-5)
    said = (
        "The model is as the checkpoints record it: layers=3, heads=4, width=32, context=32, bias=true, vocab_size=256"
    )
    assert said in (tmp_path / "out" / "summary.md").read_text()


def test_what_contradicts_a_nanogpt_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nano").mkdir()
    save_nanogpt(tmp_path / "nano", by_transformers)
    flags = ["--model", "gpt_tiny", "--dataset", "pydocs", "--k", "1", "--threads", "1", "evaluate.samples=16"]

    def refused(*settings: str) -> str:
        code, errors = readout(tmp_path / "nano", *flags, *settings, "--out", tmp_path / "out")
        assert code == 2 and len(errors.splitlines()) == 1 and not (tmp_path / "out").exists(), errors
        return errors

    for key, value, recorded in (
        ("heads", "3", "4"),
        ("layers", "2", "3"),
        ("bias", "false", "true"),
        ("scale_attn_by_inverse_layer_idx", "true", "false"),
    ):
        said = refused(f"model.{key}={value}")
        assert f"error: model.{key}={value}: " in said and f"record {recorded};" in said, said
    same = ["model.heads=4", "model.dropout=0.2", "model.scale_attn_by_inverse_layer_idx=false"]
    code, errors = readout(tmp_path / "nano", *flags, *same, "--out", tmp_path / "same")
    assert code == 0, errors
    second = tmp_path / "nano" / "ckpt_200.pt"
    torch.save({**torch.load(second), "model_args": {**ARGS, "dropout": 0.4}}, second)  # of no use in evaluation
    code, errors = readout(tmp_path / "nano", *flags, "model.dropout=0.1", "--out", tmp_path / "dropout")
    assert code == 0, errors
    torch.save({**torch.load(second), "model_args": {**ARGS, "n_head": 2}}, second)  # two models in one folder
    assert "ckpt_200.pt does not fit --model=gpt_tiny: the checkpoint has model.heads=2, the model has 4" in refused()


def test_a_layer_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    """Of checkpoints without a record; masks, integers and what is outside the model are no weights of it."""
    (tmp_path / "nano").mkdir()
    save_nanogpt(tmp_path / "nano", by_transformers)
    flags = ["--model", "gpt_tiny", "--dataset", "pydocs", "--k", "1", "--threads", "1", "evaluate.samples=16"]
    flags += ["model.width=32", "model.context=32", "model.bias=true", "--out", str(tmp_path / "out")]
    for step in (100, 200):
        path = tmp_path / "nano" / f"ckpt_{step}.pt"
        tensors = torch.load(path)["model"]
        masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(3)}
        outside = {"criterion.weight": torch.ones(3), "rotary.inv_freq": torch.ones(2)}
        outside |= {f"transformer.h.{i}.attn.rotary.inv_freq": torch.ones(2) for i in range(2)}
        torch.save(tensors | masks | outside | {"counter": torch.tensor([step, 1])}, path)
    code, errors = readout(tmp_path / "nano", *flags, "model.layers=2")
    assert code == 2 and not (tmp_path / "out").exists()
    left = "transformer.h.2.attn.bias, transformer.h.2.attn.c_attn.bias, transformer.h.2.attn.c_attn.weight"
    said = f"the checkpoint has {left}, ... (13 tensors), the model has no such weights"
    assert f"ckpt_100.pt does not fit --model=gpt_tiny: {said}" in errors
    code, errors = readout(tmp_path / "nano", *flags, "model.layers=3")
    assert code == 0, errors
    said = (tmp_path / "out" / "summary.md").read_text()
    assert "left out: counter, criterion.weight, rotary.inv_freq, transformer.h.0.attn.bias, " in said
    for name in ("transformer.h.1.attn.q_norm.weight", "transformer.ln_f.scale"):
        torch.save(torch.load(path) | {name: torch.ones(3)}, tmp_path / "nano" / "ckpt_200.pt")
        code, errors = readout(tmp_path / "nano", *flags, "model.layers=3")
        assert code == 2 and f"the checkpoint has {name}, the model has no such weights" in errors
        torch.save({n: t for n, t in torch.load(path).items() if n != name}, path)
