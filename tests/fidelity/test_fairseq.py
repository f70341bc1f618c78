"""Against fairseq 0.12.2: its data, masks, models, checkpoints and updates.

The everyday tests read what real runs wrote (recorded/fairseq, by record_fairseq.py); those marked `fairseq` run them
anew in fairseq's environment (`make fairseq-env`, or FAIRSEQ=FOLDER), and give it what ours wrote.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from record_fairseq import ADAPTIVE, CONTEXT, MASKED, Fairseq, record
from torch.nn import functional as F

from lawa_exp import average, export
from lawa_exp.axes.dataset.fairseq import count_dictionary, read_dictionary, read_indexed
from lawa_exp.axes.dataset.masked import MaskedLMSettings
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.dataset.words import WordsSettings
from lawa_exp.axes.model.roberta.roberta import from_fairseq
from lawa_exp.convert.fairseq import read, settings_of
from lawa_exp.launch import compose
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.errors import UserError

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "recorded" / "fairseq"
ENVIRONMENT = Path(os.environ.get("FAIRSEQ", ROOT / ".fairseq"))
SMALL = [
    "model=roberta_base",
    "model.layers=2",
    "model.width=8",
    "model.heads=2",
    f"model.context={CONTEXT}",
    "model.vocab_size=null",
    "evaluate.samples=all",
    "trainer.threads=1",
]


@pytest.fixture(scope="module")
def fairseq():
    if not (ENVIRONMENT / "bin" / "fairseq-train").exists():
        pytest.skip(f"no fairseq in {ENVIRONMENT}: make fairseq-env, or FAIRSEQ=FOLDER")
    script = os.environ.get("FAIRSEQ_AVERAGE")
    return Fairseq(ENVIRONMENT, Path(script) if script else None)


@pytest.fixture(scope="module", params=["recorded", pytest.param("anew", marks=pytest.mark.fairseq)])
def runs(request, tmp_path_factory):
    """A folder of fairseq's runs, see record_fairseq.record."""
    if request.param == "recorded":
        return RECORDED
    folder = tmp_path_factory.mktemp("fairseq") / "runs"
    record(request.getfixturevalue("fairseq"), folder)
    return folder


def opened(runs, **settings):
    return MaskedLMSettings(
        **{"name": "small", "path": str(runs / "data"), "folder": None, "format": "auto", "tokenizer_path": None}
        | settings
    ).open(CONTEXT)


def model_of(checkpoint):
    tensors, settings, *_ = read(checkpoint)
    model = settings.build()
    model.load_state_dict(tensors, strict=False)
    assert not {n for n, _ in model.named_parameters()} - tensors.keys()
    return model.eval()


def test_what_fairseq_preprocess_writes_is_read_and_made_alike(runs):
    ids = read_dictionary(runs / "data" / "dict.txt")
    assert list(ids)[:5] == list(count_dictionary((runs / "text" / "train.txt").read_text()))[:5] and len(ids) > 100
    for split, stem in (("train", "train"), ("val", "valid"), ("test", "test")):
        lines, text = read_indexed(runs / "data" / stem), (runs / "text" / f"{stem}.txt").read_text()
        assert lines.tokens.tolist() == [i for line in text.splitlines() for i in [*map(ids.get, line.split()), 2]]
        assert lines.sizes.tolist() == [len(line.split()) + 1 for line in text.splitlines()], split
    binary, raw = (WordsSettings("small", str(runs / folder), None, "auto").open(16) for folder in ("data", "text"))
    assert binary.vocab_size == raw.vocab_size == len(ids)
    for split in ("train", "val", "test"):
        assert binary.splits[split].tolist() == raw.splits[split].tolist()


def test_blocks_and_masks_are_fairseqs_own(runs):
    data, theirs = opened(runs), np.load(runs / "step_3.npz")
    pad = data.context - theirs["valid_1_source"].shape[1]
    inputs, targets = data.eval_batch("val", np.arange(data.sizes["val"]))
    assert np.array_equal(inputs, np.pad(theirs["valid_1_source"], ((0, 0), (0, pad)), constant_values=1))
    assert np.array_equal(np.where(targets == IGNORE, 1, targets)[:, : inputs.shape[1] - pad], theirs["valid_1_target"])
    assert IGNORE == IGNORE
    size = data.sizes["train"]
    for epoch in (1, 2):  # training visits them in an order of ours: compared as sets of rows
        width = theirs["train_1_source"].shape[1]
        inputs, targets = (
            a[:, :width] for a in data.train_batch(1, in_epochs((epoch - 1) * size, size, data.sizes["train"], 1))
        )
        ours = rows_of(inputs, np.where(targets == IGNORE, 1, targets))
        assert (
            ours == rows_of(*(theirs[f"train_{epoch}_{name}"] for name in ("source", "target"))) and len(ours) == size
        )
        assert (
            data.train_targets(1, in_epochs((epoch - 1) * size, size, data.sizes["train"], 1))
            == (targets != IGNORE).sum()
        )


def rows_of(sources, targets):
    return {(tuple(s), tuple(t)) for s, t in zip(sources.tolist(), targets.tolist(), strict=True)}


def test_the_logits_and_losses_of_a_roberta_of_fairseqs(runs):
    model, theirs, facts = model_of(runs / "step_3.pt"), np.load(runs / "step_3.npz"), facts_of(runs)
    with torch.no_grad():
        logits = model(torch.from_numpy(theirs["valid_1_source"][:4]))
    there = theirs["valid_1_source"][:4] != 1  # what fairseq makes of padding is nobody's
    assert np.abs(logits.numpy() - theirs["logits"])[there].max() < 1e-4
    data = opened(runs)
    inputs, targets = (torch.from_numpy(a) for a in data.eval_batch("val", np.arange(data.sizes["val"])))
    with torch.no_grad():
        loss = model(inputs, targets) / (targets != IGNORE).sum()
    assert loss.item() == pytest.approx(float(theirs["loss"]), abs=1e-5)
    assert int((targets != IGNORE).sum()) == theirs["targets"]
    assert loss.item() / np.log(2) == pytest.approx(facts["valid_loss_bits"]["step_3"], abs=6e-4)  # printed to 1e-3


def test_the_adaptive_model_of_fairseqs(runs):
    model, theirs = model_of(runs / "adaptive.pt"), np.load(runs / "adaptive.npz")
    source, target = (torch.from_numpy(theirs[name]) for name in ("source", "target"))
    with torch.no_grad():
        found = model(source)
        loss = model(source, target)
    assert np.abs(found.numpy() - theirs["log_probabilities"]).max() < 1e-4
    expected = F.nll_loss(
        torch.from_numpy(theirs["log_probabilities"]).flatten(0, 1), target.flatten(), reduction="sum"
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    data = WordsSettings("small", str(runs / "data"), None, "auto").open(CONTEXT)
    inputs, targets = data.eval_batch("val", np.arange(4))
    assert np.array_equal(inputs, source.numpy()) and np.array_equal(targets, target.numpy())


def run_ours(tmp_path, runs, *overrides):
    """Our training from fairseq's first weights on its whole training set; returns the run directory."""
    start, folder = tmp_path / "start", tmp_path / "run"
    assert export.main([str(runs / "start.pt"), "--to", "huggingface", "--out", str(start)]) == 0
    size = opened(runs).sizes["train"]
    overrides = [
        *SMALL,
        f"dataset.path={runs / 'data'}",
        "model.dropout=0",
        "model.attention_dropout=0",
        f"init.from={start}",
        "seed=1",
        f"batch.size={size}",
        "optimizer=sgd",
        "optimizer.weight_decay=0",
        "lr=constant",
        "lr.horizon=null",
        "lr.warmup_steps=0",
        "lr.peak=0.5",
        "steps=3",
        "avg=lawa",
        "k=3",
        "spacing=1",
        "evaluate.every=1",
        "logger.every=1",
        f"run_dir={folder}",
        *overrides,
    ]
    assert compose.main(overrides) == 0
    return folder


@pytest.fixture(scope="module")
def ours(runs, tmp_path_factory):
    return run_ours(tmp_path_factory.mktemp("ours"), runs)


def test_three_updates_are_fairseqs(runs, ours):
    """From the same weights, on the same batches with the same masks: losses, weights and average."""
    from lawa_exp.storage.safetensors import read_tensors

    for step in (1, 2, 3):
        mine = read_tensors(ours / "trajectory" / f"step_{step:08d}" / "model.safetensors")
        theirs = read(runs / f"step_{step}.pt")[0]
        assert mine.keys() == theirs.keys()
        assert max((mine[n] - theirs[n]).abs().max().item() for n in mine) < 1e-5
    rows = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] / np.log(2) for r in rows if r["split"] == "train"]
    assert losses == pytest.approx(facts_of(runs)["train_loss_bits"], abs=1e-3) and len(losses) == 3
    val = [r for r in rows if r["split"] == "val" and r["weights"] == "live"]
    assert all(r["loss_bits"] == pytest.approx(r["loss"] / np.log(2)) for r in val)
    assert val[-1]["loss_bits"] == pytest.approx(facts_of(runs)["valid_loss_bits"]["step_3"], abs=1e-3)
    assert not any("perplexity" in key or "ppl" in key for row in rows for key in row)
    average_of = ours / "averages" / "lawa-k3-s1" / "step_00000003" / "model.safetensors"
    mine, theirs = read_tensors(average_of), read(runs / "average.pt")[0]
    assert max((mine[n] - theirs[n]).abs().max().item() for n in mine) < 1e-5


def facts_of(runs):
    return json.loads((runs / "facts.json").read_text())


def test_averaging_its_files_gives_what_average_checkpoints_gives(runs, tmp_path):
    files = [str(runs / f"step_{step}.pt") for step in (1, 2, 3)]
    assert average.main([*files, "--out", str(tmp_path)]) == 0
    mine, theirs = read(tmp_path / "step_3.pt")[0], read(runs / "average.pt")[0]
    assert mine.keys() == theirs.keys()
    assert max((mine[n] - theirs[n]).abs().max().item() for n in mine) < 2.5e-7  # theirs sums in float32


def test_a_read_out_of_fairseqs_checkpoints(runs, tmp_path, capsys):
    """Files under fairseq's names, straight into our model: the live row is fairseq's loss."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2, 3):
        (folder / f"checkpoint_1_{step}.pt").write_bytes((runs / f"step_{step}.pt").read_bytes())
    command = [
        sys.executable, "-m", "lawa_exp.readout", str(folder),
        "--model", "roberta_base", "--dataset", "wikitext103_mlm",
        "--k", "3", "--spacing", "1", "--out", str(tmp_path / "out"), f"dataset.path={runs / 'data'}", *SMALL[1:],
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    live = next(r for r in rows if r["step"] == 3 and r["weights"] == "live" and r["split"] == "val")
    assert live["loss"] == pytest.approx(float(np.load(runs / "step_3.npz")["loss"]), abs=1e-5)


def test_export_and_back_is_the_same_tensors(runs, ours, tmp_path):
    out = tmp_path / "ours.pt"
    assert export.main([str(ours), "--to", "fairseq", "--out", str(out)]) == 0
    theirs = torch.load(runs / "step_3.pt", weights_only=False)["model"]
    mine = torch.load(out, weights_only=False)["model"]
    assert mine.keys() <= theirs.keys() and all(mine[n].shape == theirs[n].shape for n in mine)
    unused = re.compile(r"(in_proj|out_proj|fc1|fc2)_(weight|bias)$|version$")  # which fairseq writes and never reads
    assert all(unused.search(n) for n in theirs.keys() - mine.keys())
    (back, settings, *_), (snapshot, *_) = read(out), read(runs / "step_3.pt")
    assert settings == read(runs / "step_3.pt")[1] and back.keys() == snapshot.keys()


def test_what_does_not_fit_is_told_in_a_line(runs, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for path in (runs / "data").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    lines = (data / "dict.txt").read_text().splitlines()
    (data / "dict.txt").rename(tmp_path / "dict.txt")
    with pytest.raises(UserError, match=r"dict.txt is missing: fairseq-preprocess writes it"):
        opened(tmp_path)
    (data / "dict.txt").write_text("\n".join(lines[:20]) + "\n")
    with pytest.raises(UserError, match=r"holds token \d+, beyond the 24 symbols of .*another dictionary's"):
        opened(tmp_path)
    (data / "dict.txt").write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(UserError, match="has a symbol twice"):
        opened(tmp_path)
    (data / "dict.txt").write_text("\n".join(lines) + "\n")
    with (data / "valid.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"valid.bin is cut short: it has 1,000 bytes, its index says"):
        opened(tmp_path)
    head = (data / "valid.idx").read_bytes()
    (data / "valid.idx").write_bytes(head[:26] + bytes(len(head) - 26))
    (data / "valid.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"valid.idx has no tokens"):
        opened(tmp_path)
    (data / "valid.idx").write_bytes(head[:-4])
    with pytest.raises(UserError, match=r"valid.idx is damaged or cut short"):
        opened(tmp_path)
    (data / "valid.idx").write_bytes(b"TNTIDX\x00\x00" + bytes(40))
    with pytest.raises(UserError, match="--dataset-impl mmap"):
        opened(tmp_path)
    size = opened(runs).vocab_size
    arguments = [*SMALL, f"dataset.path={runs / 'data'}", "model.vocab_size=50265", "plan=true"]
    assert compose.main(arguments) == 2
    assert f"model.vocab_size=50265: the dictionary of dataset=wikitext103_mlm has {size} symbols" in (
        capsys.readouterr().err
    )
    cut = tmp_path / "cut.pt"
    cut.write_bytes((runs / "step_3.pt").read_bytes()[:30_000])
    with pytest.raises(UserError, match=r"cut.pt cannot be read as a checkpoint of fairseq's"):
        read(cut)
    wide = torch.load(runs / "step_3.pt", weights_only=False)
    first = "encoder.sentence_encoder.layers.0.fc1.weight"
    wide["model"][first] = torch.cat([wide["model"][first]] * 2)
    torch.save(wide, tmp_path / "wide.pt")
    with pytest.raises(UserError, match=r"wide.pt: encoder_ffn_embed_dim=\d+: expected 4 times the width"):
        read(tmp_path / "wide.pt")
    for file, changed, said in (
        ("step_3.pt", {"activation_fn": "relu"}, "activation_fn=relu: expected gelu"),
        ("adaptive.pt", {"activation_fn": "gelu"}, "activation_fn=gelu: expected relu"),
        ("step_3.pt", {"encoder_normalize_before": True}, "encoder_normalize_before=True: expected False"),
    ):
        with pytest.raises(UserError, match=said):
            settings_of(read(runs / file)[0], {"args": argparse.Namespace(**changed)})
    normed = torch.load(runs / "step_3.pt", weights_only=False)["model"]
    normed["encoder.sentence_encoder.layer_norm.weight"] = torch.ones(2)
    with pytest.raises(UserError, match=r"sentence_encoder\.layer_norm\.weight is no part of a plain RoBERTa"):
        from_fairseq(normed)


def test_checkpoints_of_older_versions_are_the_same(runs, tmp_path):
    """PyTorch's format from before 1.6, fairseq's older names, and its joined projections."""
    content = torch.load(runs / "step_3.pt", weights_only=False)
    old = {re.sub("^encoder", "decoder", n).replace("layernorm_embedding", "emb_layer_norm"): t
           for n, t in content["model"].items()}  # fmt: skip
    for name in [name for name in old if ".self_attn.q_proj." in name]:
        parts = [old.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        old[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    torch.save({**content, "model": old}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (found, settings, *_), (same, known, *_) = read(tmp_path / "old.pt"), read(runs / "step_3.pt")
    assert settings == known and found.keys() == same.keys()
    assert all(torch.equal(found[name], same[name]) for name in same)


def test_what_cannot_be_exported_is_told_in_a_line(runs, tmp_path, capsys):
    assert export.main([str(runs / "adaptive.pt"), "--to", "huggingface", "--out", str(tmp_path / "x")]) == 2
    assert "--to huggingface" in (line := capsys.readouterr().err) and "expected fairseq" in line


@pytest.mark.fairseq
def test_fairseq_opens_ours(fairseq, ours, tmp_path):
    """`fairseq-validate` and fairseq's own module on a checkpoint that we wrote, both models."""
    data = RECORDED / "data"
    out, found = tmp_path / "ours.pt", tmp_path / "ours.npz"
    assert export.main([str(ours), "--to", "fairseq", "--out", str(out)]) == 0
    fairseq(Path(__file__).parent / "in_fairseq.py", data, found, out)
    theirs, model = np.load(found), model_of(out)
    with torch.no_grad():
        logits = model(torch.from_numpy(theirs["valid_1_source"][:4]))
    there = theirs["valid_1_source"][:4] != 1
    assert np.abs(logits.numpy() - theirs["logits"])[there].max() < 1e-4
    bits = fairseq.validate(data, out, MASKED)
    rows = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    live = [r for r in rows if r["split"] == "val" and r["weights"] == "live"][-1]
    assert live["loss_bits"] == pytest.approx(bits, abs=6e-4)


@pytest.mark.fairseq
def test_fairseq_opens_our_adaptive_model(fairseq, tmp_path):
    out, run = tmp_path / "ours.pt", tmp_path / "run"
    settings = {"layers": 2, "width": 16, "heads": 2, "hidden": 64, "context": CONTEXT, "vocab_size": "null"}
    overrides = ["model=transformer_lm_wiki103", "model.cutoffs=[40,100]", f"dataset.path={RECORDED / 'data'}"]
    overrides += [f"model.{name}={value}" for name, value in settings.items()]
    overrides += ["steps=4", "batch.size=4", "lr.warmup_steps=1", "spacing=2", "evaluate.every=4", "trainer.threads=1"]
    assert compose.main([*overrides, "lr.peak=0.1", f"run_dir={run}"]) == 0
    assert export.main([str(run), "--to", "fairseq", "--out", str(out)]) == 0
    fairseq(Path(__file__).parent / "in_fairseq.py", RECORDED / "data", tmp_path / "found.npz", out)
    theirs, model = np.load(tmp_path / "found.npz"), model_of(out)
    with torch.no_grad():
        found = model(torch.from_numpy(theirs["source"]))
    assert np.abs(found.numpy() - theirs["log_probabilities"]).max() < 1e-4
    assert fairseq.validate(RECORDED / "data", out, ADAPTIVE) > 0


ENCODE = """
import sys
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
folder, source, target = sys.argv[1:]
encoder = get_encoder(f"{folder}/encoder.json", f"{folder}/vocab.bpe")
with open(source, encoding="utf-8") as lines, open(target, "w") as out:
    for line in lines:
        print(*encoder.encode(line.strip()), file=out)
"""


@pytest.mark.fairseq
@pytest.mark.data
def test_raw_text_is_what_its_bpe_and_preprocess_make_of_it(fairseq, tmp_path):
    """The beginning of WikiText-2, by fairseq's way to RoBERTa's data and by ours."""
    if not os.environ.get("LAWA_DATA"):
        pytest.skip("LAWA_DATA is not set")
    shared, script = Path(os.environ["LAWA_DATA"]), tmp_path / "encode.py"
    script.write_text(ENCODE)
    (tmp_path / "raw").mkdir()
    pairs = []
    for split in ("train", "valid", "test"):
        raw = tmp_path / "raw" / f"{split}.txt"
        raw.write_text("".join((shared / "wikitext-2" / f"{split}.txt").open().readlines()[:120]))
        fairseq(script, shared / "gpt2_bpe", raw, tmp_path / f"{split}.bpe")
        pairs += [f"--{split}pref", tmp_path / f"{split}.bpe"]
    dictionary = shared / "gpt2_bpe" / "dict.txt"
    destination = ["--destdir", tmp_path / "data"]
    fairseq("fairseq-preprocess", "--only-source", "--srcdict", dictionary, "--workers", 1, *pairs, *destination)
    binary, raw = (
        MaskedLMSettings("wikitext", str(tmp_path / f), None, "auto", str(shared / "gpt2_bpe")).open(512)
        for f in ("data", "raw")
    )
    assert binary.vocab_size == raw.vocab_size == 50265 and binary.sizes == raw.sizes
    for mine, theirs in zip(
        *(d.train_batch(1, in_epochs(0, 20, d.sizes["train"], 1)) for d in (raw, binary)), strict=True
    ):
        assert np.array_equal(mine, theirs)
    for split in ("val", "test"):
        assert np.array_equal(raw.tokens[split], binary.tokens[split])
