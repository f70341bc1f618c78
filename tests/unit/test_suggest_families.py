"""`suggest FOLDER --data DATA` on what transformers, timm and torchvision write: it reports what they compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import TEXT, answer, around, refusal, single, suggestion, written_by
from torch.nn import functional as F

from lawa_exp.convert.recognise.encoder import Encoder, of_transformers
from lawa_exp.convert.validation.samples import MaskedTokens
from lawa_exp.seams.task import IGNORE

DOCUMENTS = [f"{TEXT[i * 7 : i * 7 + 90]} number {i}{'!' if i % 3 else '.'}" for i in range(60)]
SPECIAL = ["<pad>", "<s>", "</s>", "<mask>"]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level BPE of 300 tokens, in <s> and </s>."""
    pytest.importorskip("transformers", reason="needs lawa_exp[transformers]")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        DOCUMENTS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "cls_token": "<s>", "bos_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="<mask>", **names)


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


def documents(where: Path) -> Iterator[Path]:
    """One corpus in the forms that are read."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    where.mkdir()
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(DOCUMENTS)]
    (where / "val.jsonl").write_text("\n".join(lines) + "\n")
    yield where / "val.jsonl"
    table = pyarrow.table({"body": DOCUMENTS, "title": ["x"] * len(DOCUMENTS)})
    pyarrow.parquet.write_table(table.slice(0, 20), where / "validation-00000-of-00002.parquet")
    pyarrow.parquet.write_table(table.slice(20), where / "validation-00001-of-00002.parquet")
    (where / "val.jsonl").unlink()
    yield Path(f"{where}:body")
    both = {"train": DOCUMENTS[:3], "validation": DOCUMENTS}
    made = datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": of}) for split, of in both.items()})
    made.save_to_disk(str(where / "disk"))
    yield where / "disk"


def test_gpt2_of_a_real_trainer(tokenizer: Any, inside: Path) -> None:
    """What Trainer writes, on one corpus in three forms; the loss is transformers' own."""
    import datasets
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_layer=1, n_head=2, n_embd=16, n_positions=16))
    ids = [i for text in DOCUMENTS for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    blocks = [ids[i : i + 16] for i in range(0, 800, 16)]
    data = datasets.Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    settings = TrainingArguments(
        "out", max_steps=8, save_steps=2, learning_rate=0.02, use_cpu=True, report_to=[], disable_tqdm=True
    )
    Trainer(model, settings, train_dataset=data, processing_class=tokenizer).train()
    made = [answer("out", "--data", place) for place in documents(inside / "corpus")]
    assert made[0]["values"] == made[1]["values"] == made[2]["values"]
    assert made[0]["samples"] == made[0]["samples"] > 30
    tokens = torch.tensor(
        [i for text in DOCUMENTS for i in (*tokenizer(text, add_special_tokens=False)["input_ids"], 2)]
    )
    count = (len(tokens) - 1) // 16
    x, y = tokens[: count * 16].view(count, 16), tokens[1 : count * 16 + 1].view(count, 16)

    def loss_of(folder: Path) -> float:
        with torch.no_grad():
            scores = AutoModelForCausalLM.from_pretrained(folder).eval()(x).logits
        return float(F.cross_entropy(scores.flatten(0, 1), y.flatten()))

    assert count <= 256 and made[0]["values"]["live"] == pytest.approx(loss_of(inside / "out/checkpoint-8"), rel=1e-5)
    code, out, _ = suggestion("out", "--data", "corpus/disk")
    assert code == 0 and "split validation, column text, 60 rows" in out
    if made[0]["command"]:
        folder = written_by(made[0]["command"], inside)
        assert made[0]["values"][made[0]["id"]] == pytest.approx(loss_of(folder), rel=1e-5)
        assert single(folder, "--data", "corpus/disk")["loss"] == pytest.approx(loss_of(folder), rel=1e-5)


def test_llama_averages_to_a_folder_that_opens(tokenizer: Any, inside: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    config = LlamaConfig(vocab_size=300, hidden_size=16, intermediate_size=16, **sizes)
    saved(LlamaForCausalLM(config), tokenizer, inside / "llama")
    (inside / "val.txt").write_text(TEXT)
    made = answer("llama", "--data", "val.txt")
    tokens = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    count = (len(tokens) - 1) // 16
    x, y = tokens[: count * 16].view(count, 16), tokens[1 : count * 16 + 1].view(count, 16)
    with torch.no_grad():
        scores = AutoModelForCausalLM.from_pretrained(inside / "llama/checkpoint-60").eval()(x).logits
    assert made["values"]["live"] == pytest.approx(float(F.cross_entropy(scores.flatten(0, 1), y.flatten())), rel=1e-5)


def test_bert_has_the_same_masks_for_all_weights(tokenizer: Any, inside: Path) -> None:
    from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=300, hidden_size=16, **sizes))
    paths = saved(model, tokenizer, inside / "bert")
    (inside / "val.txt").write_text(TEXT)
    made = answer("bert", "--data", "val.txt", "--samples", "all")
    encoder = of_transformers([paths[0]])
    assert isinstance(encoder, Encoder) and (encoder.mask, encoder.first, encoder.last) == (3, 1, 2)
    data = MaskedTokens(encoder.encode(TEXT), 16, encoder, "", "")
    numbers = np.arange(data.sizes["val"])
    inputs, targets = data.eval_batch("val", numbers)
    assert isinstance(inputs, np.ndarray)
    again, _ = data.eval_batch("val", numbers[::-1])
    assert (again == inputs[::-1]).all()  # whatever batch a block is in
    masked = targets != IGNORE
    assert 0.13 < masked[:, 1:-1].mean() < 0.17 and not masked[:, [0, -1]].any()
    assert (inputs[:, 0] == 1).all() and (inputs[:, -1] == 2).all() and (inputs[~masked] >= 0).all()
    assert 0.7 < (inputs[masked] == 3).mean() < 0.9 and 0.03 < (inputs[masked] == targets[masked]).mean() < 0.2
    whole = np.where(masked, targets, inputs)[:, 1:-1].flatten()
    assert (whole == encoder.encode(TEXT)[: len(whole)]).all()
    with torch.no_grad():
        own = AutoModelForMaskedLM.from_pretrained(paths[-1]).eval()
        loss = own(torch.from_numpy(inputs), labels=torch.from_numpy(targets)).loss
    assert made["values"]["live"] == pytest.approx(float(loss), rel=1e-5) and made["unit"] == "nats per masked token"


def test_classes_of_texts(tokenizer: Any, inside: Path) -> None:
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}
    names = {"id2label": {0: "calm", 1: "loud"}, "label2id": {"calm": 0, "loud": 1}}
    model = BertForSequenceClassification(BertConfig(vocab_size=300, hidden_size=16, **sizes, **names))
    paths = saved(model, tokenizer, inside / "bert")
    labels = [int(text.endswith("!")) for text in DOCUMENTS]
    lines = [
        json.dumps({"said": t, "how": ("calm", "loud")[n], "n": i})
        for i, (t, n) in enumerate(zip(DOCUMENTS, labels, strict=True))
    ]
    (inside / "val.jsonl").write_text("\n".join(lines))
    made = answer("bert", "--data", "val.jsonl:said,how")
    own = AutoModelForSequenceClassification.from_pretrained(paths[-1]).eval()
    with torch.no_grad():
        batch = tokenizer(DOCUMENTS, truncation=True, max_length=32, padding=True, return_tensors="pt")
        scores = own(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert made["values"]["live"] == pytest.approx(float((scores.argmax(-1) == torch.tensor(labels)).double().mean()))
    row = single(paths[-1], "--data", "val.jsonl:said,how")
    assert row["loss"] == pytest.approx(float(F.cross_entropy(scores, torch.tensor(labels))), rel=1e-5)
    unclear = refusal("bert", "--data", "val.jsonl")
    assert "which column holds the texts is not clear (said, how)" in unclear and "val.jsonl:TEXT,LABEL" not in unclear
    (inside / "val.jsonl").write_text(lines[0].replace("loud", "x").replace("calm", "x"))
    assert "row 1 has class 'x'; the model's are 0 to 1 (calm, loud)" in refusal("bert", "--data", "val.jsonl:said,how")
