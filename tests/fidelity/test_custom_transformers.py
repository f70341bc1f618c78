"""model=custom with a model of transformers: trained, averaged, exported and opened by transformers again."""

from pathlib import Path

import pytest
import torch
from helpers import rows, run, tiny

from lawa_exp.storage.safetensors import read_tensors

BUILDER = """
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

def llama():
    size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=256, max_position_embeddings=32, **size))

class Other(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.scores = how, torch.nn.Embedding(256, 256)

    def forward(self, inputs):
        if self.how == "raise":
            raise RuntimeError("my layers\\ndo not fit")
        scores = self.scores(inputs)
        return (scores, None) if self.how == "tuple" else scores.mean(1)

def other(how):
    return Other(how)
"""
CUSTOM = ["model=custom", "model.context=32", "model.vocab_size=256", "model.name=mine"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(BUILDER)
    return tmp_path


def asked(*words: str) -> list[str]:
    own = [word for word in tiny("steps=10") if not word.startswith(("model", "averagers"))]
    return [*own, *CUSTOM, "avg=[lawa]", "k=2", "spacing=5", *words]


def test_a_llama_is_trained_by_its_logits_and_exported_for_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    done = run(*asked("model.builder=mine:llama", "run_dir=run"), cwd=folder)
    assert done.returncode == 0, done.stderr
    given = ("run", "--to", "huggingface", "--out", "out", "--weights", "lawa-k2-s5")
    done = run(*given, module="lawa_exp.export", cwd=folder)
    assert done.returncode == 0 and "LlamaForCausalLM of step 10" in done.stdout, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    average = read_tensors(folder / "run" / "averages" / "lawa-k2-s5" / "step_00000010" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in average.items())
    assert "ForCausalLM" in model.config.architectures[0] and "lawa" in (folder / "out" / "README.md").read_text()
    assert transformers.AutoTokenizer.from_pretrained(folder / "out")("ab")["input_ids"] == [97, 98]
    losses = [r["loss"] for r in rows(folder / "run") if r["split"] == "val" and r["weights"] == "live"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "how, said",
    [
        ("tuple", "the model returns tuple; expected a tensor [batch, context, vocabulary], or .logits with one"),
        ("mean", "the model returns a tensor [1, 256] for targets [1, 32]; expected [batch, context, vocabulary]"),
        ("raise", "Other does not take a batch [1, 32] of dataset=pydocs: RuntimeError: my layers"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line_of_the_plan(folder: Path, how: str, said: str) -> None:
    pytest.importorskip("transformers")
    done = run(*asked("model.builder=mine:other", f"model.args={{how: {how}}}", "plan=true"), cwd=folder)
    assert (done.returncode, done.stderr) == (2, f"error: model.builder=mine:other: {said}\n")
