"""model=auto: models of transformers from their config.json, with the weights of a folder as transformers reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rows, run

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.axes.dataset.loading import eval_batches
from lawa_exp.axes.dataset.masked import PydocsMLMSettings
from lawa_exp.axes.dataset.text import PydocsSettings
from lawa_exp.axes.model.auto import AutoSettings
from lawa_exp.axes.objective.task_loss import Scorer
from lawa_exp.config.rules import build
from lawa_exp.convert.weights import load_weights
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.system.errors import UserError

transformers = pytest.importorskip("transformers")
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZE |= {"vocab_size": 300, "max_position_embeddings": 34}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 34, "vocab_size": 300}
GPT2 |= {"bos_token_id": None, "eos_token_id": None}
WORDS = [
    "batch.size=4",
    "steps=2",
    "evaluate.every=2",
    "evaluate.samples=8",
    "avg=none",
    "trainer.threads=1",
    "lr.warmup_steps=1",
]
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # class, its configuration, what that is given
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZE | {"tie_word_embeddings": False}),
    "tied": ("LlamaForCausalLM", "LlamaConfig", SIZE | {"tie_word_embeddings": True}),
    "bert": ("BertForMaskedLM", "BertConfig", SIZE),
    "mixtral": (  # its files have each expert by itself, the model all of a layer in one tensor
        "MixtralForCausalLM",
        "MixtralConfig",
        SIZE | {"num_local_experts": 2, "num_key_value_heads": 2},
    ),
    "classes": ("BertForSequenceClassification", "BertConfig", SIZE | {"num_labels": 3}),
}


def made(kind: str, cls: str | None = None) -> Any:
    torch.manual_seed(0)
    own, config, given = KINDS[kind]
    return getattr(transformers, cls or own)(getattr(transformers, config)(**given))


def settings(config: object, **others: object) -> AutoSettings:
    given = {"name": "auto", "config": config, "context": 32, "vocab_size": None}
    return build(AutoSettings, given | others, "model")


def loaded(folder: Path, weights: Path | None = None) -> torch.nn.Module:
    torch.manual_seed(1)
    model = settings(str(folder)).build()
    load_weights(model, live_tensors(model), weights or folder)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_transformers_reads(kind: str, tmp_path: Path) -> None:
    whole, sharded, binary = (tmp_path / name for name in ("whole", "sharded", "binary"))
    source = made(kind)
    source.save_pretrained(whole)
    source.save_pretrained(sharded, max_shard_size="8KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    binary.mkdir()
    shutil.copy(whole / "config.json", binary)
    torch.save(source.state_dict(), binary / "pytorch_model.bin")
    tokens = torch.randint(0, 300, (2, 32))
    for folder in (whole, sharded, binary):
        theirs = type(source).from_pretrained(folder).eval()
        assert torch.equal(loaded(folder)(tokens).logits, theirs(tokens).logits)


def test_the_base_models_names_are_those_of_the_whole(tmp_path: Path) -> None:
    """As the hub's gpt2 has them, with its masks, which no model holds any more."""
    from safetensors.torch import load_file, save_file

    made("gpt2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    base = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    save_file(base | {"h.0.attn.bias": torch.ones(1, 1, 34, 34)}, file)
    tokens = torch.randint(0, 300, (2, 32))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tmp_path)(tokens).logits, theirs(tokens).logits)
    assert torch.equal(theirs.transformer.wte.weight, base["wte.weight"])


def test_old_names_and_dtypes_of_their_own(tmp_path: Path) -> None:
    """LayerNorm's gamma and beta, as old files of BERT have them, and one tensor in bfloat16."""
    source = made("bert")
    source.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    old = {
        n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
        for n, t in source.state_dict().items()
    }
    rounded = "bert.embeddings.word_embeddings.weight"
    torch.save({rounded: old.pop(rounded).bfloat16(), **old}, tmp_path / "pytorch_model.bin")
    weights = loaded(tmp_path).state_dict()
    assert all(
        torch.equal(weights[n], t.bfloat16().float() if n == rounded else t)
        for n, t in source.state_dict().items()
        if "decoder" not in n
    )


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_the_first_loss_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    made(kind).save_pretrained(tmp_path)
    data = (PydocsMLMSettings("pydocs_mlm") if kind == "bert" else PydocsSettings("pydocs")).open(32)
    indices = fixed_set(data.sizes["val"], 8)
    ((inputs, targets),) = eval_batches(data, "val", iter([indices]), torch.device("cpu"))
    theirs = type(made(kind)).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        if kind == "bert":
            expected = theirs(inputs, labels=targets).loss.item()
        else:  # it shifts the labels itself
            whole = torch.cat([inputs, targets[:, -1:]], 1)
            expected = theirs(whole, labels=whole).loss.item()
        loss, count = Scorer(loaded(tmp_path), data.task)(inputs, targets)[:2].tolist()
    assert loss / count == pytest.approx(expected, rel=1e-6)
    if kind == "gpt2":
        trained = [
            f"model.config={tmp_path}",
            f"init.from={tmp_path}",
            "model.context=32",
            f"run_dir={tmp_path / 'run'}",
        ]
        done = run("model=auto", *trained, *WORDS)
        assert done.returncode == 0, done.stderr
        assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(loss / count, rel=1e-6)
        out = tmp_path / "out"
        done = run(str(tmp_path / "run"), "--to", "huggingface", "--out", str(out), module="lawa_exp.export")
        assert done.returncode == 0 and "GPT2LMHeadModel of step 2" in done.stdout, done.stderr


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    base = tmp_path / "base"
    made("bert", "BertModel").save_pretrained(base)
    done = run("model=auto", f"model.config={base}", "dataset=pydocs_mlm", "model.context=32", *WORDS, "plan=true")
    said = "error: model=auto: the model returns BaseModelOutputWithPoolingAndCrossAttentions; expected a tensor"
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1
    whole = tmp_path / "whole"
    made("bert").save_pretrained(whole)
    done = run("model=auto", f"model.config={whole}", "dataset=pydocs_mlm", "model.context=32", *WORDS, "plan=true")
    assert done.returncode == 0 and "it attends to the padding of short samples" in done.stdout, done.stderr
    done = run("model=auto", f"model.config={whole}", "dataset=pydocs", "model.context=32", *WORDS, "plan=true")
    said = "error: model=auto: the scores of BertForMaskedLM for a token depend on later tokens"
    assert done.returncode == 2 and done.stderr.startswith(said), done.stderr
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2/tokenizer.json").write_text("{}")
    made("gpt2").save_pretrained(tmp_path / "gpt2")
    from_it = ["model=auto", f"model.config={tmp_path / 'gpt2'}", f"init.from={tmp_path / 'gpt2'}", "model.context=32"]
    done = run(*from_it, "dataset=pydocs", *WORDS, "plan=true")
    assert done.returncode == 0 and "its tokenizer.json is not used; dataset=pydocs has tokens of its" in done.stdout
    shape = ["model.layers=2", "model.width=16", "model.heads=2", "model.context=34", "model.vocab_size=300"]
    done = run("model=gpt_tiny", *shape, "model.bias=true", f"init.from={tmp_path / 'gpt2'}", *WORDS, "plan=true")
    assert "activation_function=gelu_new; our model has the exact GELU" in done.stdout, done.stderr
    with pytest.raises(UserError, match=r"init.from=.*: the weights do not fit the model: .* is only in the"):
        loaded(whole, base)  # its head would be of the seed
    content = json.loads((whole / "config.json").read_text())
    for wrong, message in (
        ({"context": 35}, "model: context=35: config.json has 34 positions; choose at most these"),
        ({"vocab_size": 7}, "model: vocab_size=7: config.json has vocab_size=300; null follows it"),
        ({"config": str(tmp_path)}, "expected a folder with transformers' config.json"),
        ({"config": {"model_type": "bert"}}, "model: config: has no architectures"),
        ({"config": {"model_type": "bert", "architectures": "BertModel"}}, "architectures=BertModel: expected a list"),
    ):
        with pytest.raises(UserError, match=message):
            settings(**{"config": str(whole)} | wrong)
    for content_of_others, message in (
        ({"architectures": ["Own"]}, "has no model Own; choose model=custom"),
        ({"architectures": ["pipeline"]}, "has no model pipeline; choose model=custom"),
        ({"model_type": ["bert"]}, r"model_type=\['bert'\] is none of this version"),
        ({"model_type": "own", "auto_map": {}}, "model_type=own is none .* auto_map names, is not run; choose"),
        ({"num_attention_heads": 3}, r"transformers cannot build this model \(ValueError: The hidden size"),
    ):
        with pytest.raises(UserError, match=f"model.config: .*{message}"):
            settings(content | content_of_others).build()


def test_the_id_is_of_the_content_of_the_configuration(tmp_path: Path) -> None:
    made("bert").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    again = settings(content | {"transformers_version": "0", "dtype": "bfloat16"})
    assert again == settings(str(tmp_path)) and again.vocab_size == 300
    assert again.build().get_input_embeddings().weight.dtype == torch.float32
