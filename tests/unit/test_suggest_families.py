"""`suggest FOLDER --data DATA` on what transformers, timm and torchvision write: it reports what they compute."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import TEXT, answer, pictures, refusal, saved, single, suggestion, written_by
from torch.nn import functional as F

from lawa_exp.convert.recognise.encoder import Encoder, of_transformers
from lawa_exp.convert.recognise.recognised import Recognised
from lawa_exp.convert.validation.classes import numbered_classes
from lawa_exp.convert.validation.content import Place
from lawa_exp.convert.validation.masked import masked_blocks, masked_rows
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.errors import UserError

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


def test_a_vocab_json_alone_is_no_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    """Other tools write one. A GPT-2's has its merges next to it."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    assert of_transformers([tmp_path]) is None
    tokenizer.save_pretrained(tmp_path / "own")
    found = of_transformers([tmp_path, tmp_path / "own"])
    assert found is not None and str(tmp_path / "own") in found.name


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
    data = masked_blocks(encoder.encode(TEXT), 16, encoder, "", "")
    numbers = np.arange(data.sizes["val"])
    batch, targets = data.eval_batch("val", numbers)
    again, _ = data.eval_batch("val", numbers[::-1])
    assert isinstance(batch, dict) and isinstance(again, dict) and batch["attention_mask"].all()
    inputs = batch["input_ids"]
    assert (again["input_ids"] == inputs[::-1]).all()  # whatever batch a block is in
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


def test_masked_rows_are_judged_each_by_itself(tokenizer: Any, inside: Path) -> None:
    """As a Trainer evaluates examples: cut off and padded. Transformers gets one row at a time."""
    from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    paths = saved(BertForMaskedLM(BertConfig(vocab_size=300, hidden_size=16, **sizes)), tokenizer, inside / "bert", 3)
    texts = [text[: 3 + 7 * (i % 5)] for i, text in enumerate(DOCUMENTS)]
    lines = [json.dumps({"text": text}) for text in [*texts, " "]]
    (inside / "val.jsonl").write_text("\n".join(lines))
    code, out, err = suggestion("bert", "--data", "val.jsonl")
    assert code == 0, err
    assert "each row by itself, 16 tokens at most" in out and "Evaluated: 60 of 60 rows." in out
    encoder = of_transformers([paths[0]])
    assert isinstance(encoder, Encoder)
    data = masked_rows(texts, 16, encoder, "", "")
    own = AutoModelForMaskedLM.from_pretrained(paths[-1]).eval()
    loss, count = 0.0, 0
    for i, text in enumerate(texts):
        batch, targets = data.eval_batch("val", np.array([i]))
        assert isinstance(batch, dict) and batch["attention_mask"].all()
        whole = np.where(targets != IGNORE, targets, batch["input_ids"])[0].tolist()
        assert whole == tokenizer(text, truncation=True, max_length=16)["input_ids"]
        if (masked := int((targets != IGNORE).sum())) > 0:
            with torch.no_grad():
                made = own(torch.from_numpy(batch["input_ids"]), labels=torch.from_numpy(targets)).loss
            loss, count = loss + float(made) * masked, count + masked
    assert count > 30
    made = json.loads((inside / "readouts/bert-suggest-data-val/suggestion.json").read_text())
    assert made["values"]["live"] == pytest.approx(loss / count, rel=1e-5)


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
    header, *rest = ["said,how", *(f'"{t}",{("calm", "loud")[n]}' for t, n in zip(DOCUMENTS, labels, strict=True))]
    (inside / "val.csv").write_text("\n".join([header, *rest]))
    assert single(paths[-1], "--data", "val.csv:said,how") == row
    unclear = refusal("bert", "--data", "val.jsonl")
    assert "which column holds the texts is not clear (said, how)" in unclear and "val.jsonl:TEXT,LABEL" in unclear
    (inside / "val.jsonl").write_text(lines[0].replace("loud", "x").replace("calm", "x"))
    assert "row 1 has class 'x'; the model's are 0 to 1 (calm, loud)" in refusal("bert", "--data", "val.jsonl:said,how")


def test_classes_by_their_names() -> None:
    place, labels = Place(Path("val.csv")), ["b", "a", "b"]
    model = Recognised("x", None, torch.nn.Identity, classes=2, labels={"a": 1, "b": 0})
    numbers, count, said = numbered_classes(labels, None, model, place)
    assert numbers.tolist() == [0, 1, 0] and count == 2 and said == "classes 0 b, 1 a, as the model numbers them"
    bare = Recognised("x", None, torch.nn.Identity, classes=2, labels={"LABEL_0": 0, "LABEL_1": 1})
    numbers, _, said = numbered_classes(labels, None, bare, place)
    assert numbers.tolist() == [1, 0, 1] and "0 a, 1 b, in alphabetical order, as the model has no names" in said
    assert numbered_classes(["1", "0"], None, bare, place)[0].tolist() == [1, 0]
    assert numbered_classes([0, 1], ["b", "c"], bare, place)[2] == "classes 0 b, 1 c, in the data's order"
    own = {"entailment": 0, "neutral": 1, "contradiction": 2}
    named = Recognised("x", None, torch.nn.Identity, classes=3, labels=own)
    for names, numbers_of in ((["Neutral", "Contradiction", "Entailment"], [1, 2, 0]), (["2", "0", "1"], [2, 0, 1])):
        assert numbered_classes([0, 1, 2], names, named, place)[0].tolist() == numbers_of
    assert numbered_classes(["Contradiction", "NEUTRAL"], None, named, place)[0].tolist() == [2, 1]
    from_1 = Recognised("x", None, torch.nn.Identity, classes=2, labels={"1": 0, "2": 1})
    for labels_, names in ((["0", "1"], None), ([0, 1], ["0", "1"])):
        with pytest.raises(UserError, match="class '0'; the model's are"):
            numbered_classes(labels_, names, from_1, place)  # type: ignore[arg-type]
    exact = Recognised("x", None, torch.nn.Identity, classes=2, labels={"A": 1, "a": 0})
    assert numbered_classes(["A", "a"], None, exact, place)[0].tolist() == [1, 0]
    with pytest.raises(UserError, match=r"\(no, yes\) is one of the model's \(entail.*numbers, or label2id in config"):
        numbered_classes([0, 1], ["no", "yes"], named, place)
    several = Recognised("x", None, torch.nn.Identity, classes=3, labels={f"LABEL_{i}": i for i in range(3)})
    with pytest.raises(
        UserError, match=r"gives 3 scores, and the data have 2 classes .*numbers, or label2id in config"
    ):
        numbered_classes(["b", "a"], None, several, place)
    assert numbered_classes([0, 1], None, several, place)[:2][1] == 3
    for wrong, names in ((["a", "c"], None), ([0, 1], ["b", "c"]), ([0, -1], None), ([0, 2], None), ([0, "a"], None)):
        with pytest.raises(UserError, match="class"):
            numbered_classes(wrong, names, model, place)  # type: ignore[arg-type]


def test_nothing_of_the_folder_runs(tokenizer: Any, inside: Path) -> None:
    """Code beside the weights, pickles that call, and configurations that name code."""
    from transformers import GPT2Config, GPT2LMHeadModel

    class Calls:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (inside / "ran",)

    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, **sizes))
    code = f"open({str(inside / 'ran')!r}, 'w')\nfrom transformers import GPT2Config as C, GPT2LMHeadModel as M\n"
    (inside / "val.txt").write_text(TEXT)
    paths = saved(model, tokenizer, inside / "out", 3)
    for path in paths:
        (path / "modeling.py").write_text(code)
        (path / "pytorch_model.bin").write_bytes(pickle.dumps(Calls()))
        (path / "training_args.bin").write_bytes(pickle.dumps(Calls()))
        config = json.loads((path / "config.json").read_text())
        config |= {"auto_map": {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"}}
        config |= {"attn_implementation": "somebody/kernels", "_attn_implementation": "somebody/kernels"}
        (path / "config.json").write_text(json.dumps(config))
        names = json.loads((path / "tokenizer_config.json").read_text())
        names["auto_map"] = {"AutoTokenizer": ["modeling.T", None]}
        (path / "tokenizer_config.json").write_text(json.dumps(names))
    assert answer("out", "--data", "val.txt")["values"]
    for path in paths:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    assert "model_type=unheard_of is none of this version of transformers; its own code" in refusal(
        "out", "--data", "val.txt"
    )
    (inside / "bad").mkdir()
    for i in (1, 2):
        torch.save({"model": {"w": torch.zeros(2)}, "arch": "hf-hub:somebody/model", "epoch": i}, f"bad/model_{i}.pth")
    assert "is no model of timm" in refusal("bad", "--data", "val.txt")
    for i in (1, 2):
        (inside / f"bad/model_{i}.pth").write_bytes(pickle.dumps({"model": Calls(), "epoch": i}))
    refusal("bad", "--data", "val.txt")
    assert not (inside / "ran").exists()


def test_what_does_not_go_together_is_one_line(tokenizer: Any, inside: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertForTokenClassification

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    config = BertConfig(vocab_size=300, hidden_size=16, **sizes)
    saved(BertForMaskedLM(config), tokenizer, inside / "bert", 2)
    saved(BertForTokenClassification(config), tokenizer, inside / "tagger", 2)
    (inside / "val.txt").write_text(TEXT)
    (inside / "few.txt").write_text("Too short a text.")
    (inside / "two").mkdir()
    for name in ("a.txt", "b.txt"):
        (inside / "two" / name).write_text(TEXT)
    np.arange(400, dtype=np.uint16).tofile(inside / "val.bin")
    (inside / "rows.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    pictures(inside / "images", 4)
    cases = {
        "expected a class that ends with ForCausalLM": ("tagger", "--data", "val.txt"),
        "no such file or folder": ("bert", "--data", "nowhere"),
        "several files, and none is called val or test: a.txt, b.txt": ("bert", "--data", "two"),
        "tokens are too few": ("bert", "--data", "few.txt"),
        "BertForMaskedLM predicts masked tokens: give text": ("bert", "--data", "val.bin"),
        "BertForMaskedLM predicts masked tokens": ("bert", "--data", "images"),
        "line 2 is not a JSON object with text": ("bert", "--data", "rows.jsonl"),
        "no column nothing; its columns are text": ("bert", "--data", "good.jsonl:nothing"),
        "expected a data set that `datasets` saved": ("bert", "--data", "bert"),
        "--samples=0: expected a whole number": ("bert", "--data", "val.txt", "--samples", "0"),
        "needs --data DATA": ("bert",),
        "--model=m:f: is for --data": ("bert", "--evaluate", "m:g", "--model", "m:f"),
        "--evaluate=zeroshot: expected MODULE:FUNCTION": ("bert", "--evaluate", "zeroshot"),
        "--evaluate=m:g: not with --data": ("bert", "--data", "val.txt", "--evaluate", "m:g"),
        "an average takes 2 checkpoints or more": ("bert/checkpoint-10", "--data", "val.txt"),
        "expected MODULE:FUNCTION": ("bert", "--data", "val.txt", "--model", "gpt2_small"),
    }
    (inside / "good.jsonl").write_text('{"text": "a"}\n')
    for expected, arguments in cases.items():
        assert expected in (line := refusal(*arguments)), (expected, line)
    for path in (inside / "bert").glob("*/tokenizer*"):
        path.unlink()
    assert "the tokenizer of BertForMaskedLM is not known" in refusal("bert", "--data", "val.txt")
