"""Exported weights are the same function in transformers and in nanoGPT, and theirs are in ours."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rows, run, tiny

from lawa_exp.averaging.tensors import live_tensors, load_live
from lawa_exp.axes.dataset.fairseq import read_dictionary
from lawa_exp.axes.dataset.tokenizers import find_gpt2, load_tokenizer
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.axes.model.roberta.settings import RobertaSettings
from lawa_exp.convert.card import public
from lawa_exp.convert.tokenizers import carried, carried_roberta
from lawa_exp.convert.weights import load_weights
from lawa_exp.export import TARGETS, Source, export, of_nanogpt
from lawa_exp.storage.safetensors import map_stored, read_tensors, stored
from lawa_exp.system.errors import UserError

NANOGPT = Path(os.environ.get("NANOGPT", Path(__file__).parents[3] / "nanoGPT"))
ASKED = tiny("model.scale_attn_by_inverse_layer_idx=true", "model.layers=3", "steps=40")
TEXT = "An average (LAWA) of\n\tweights, na\u00efve \u4e2d\u6587."


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt") / "run"
    done = run(*ASKED, f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


def settings(**changed: Any) -> GPTSettings:
    given = dict(name="gpt", layers=3, heads=2, width=32, context=32, vocab_size=256, bias=False, dropout=0.0)
    return GPTSettings(**{**given, "scale_attn_by_inverse_layer_idx": True, **changed})


def ours(weights: Path, s: GPTSettings | None = None) -> torch.nn.Module:
    model = (s or settings()).build()
    load_live(live_tensors(model), read_tensors(weights / "model.safetensors"))
    return model.eval()


def test_a_snapshot_in_shards_is_exported_as_a_whole_one(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "exported"
    asked = [*tiny("steps=10"), "trajectory.shard_size=20000", f"run_dir={folder}"]
    assert run(*asked, warm=True).returncode == 0
    snapshot = folder / "trajectory" / "step_00000010"
    assert len(stored(snapshot)) > 1
    for number, source in enumerate((folder, snapshot)):
        export(source, "nanogpt", out / str(number))
        saved = torch.load(out / str(number) / "ckpt.pt", weights_only=True)["model"]
        for name, tensor in map_stored(snapshot).items():
            assert torch.equal(saved[name], tensor)


@pytest.mark.parametrize("weights", ["live", "lawa-k3-s10"])
def test_hugging_face_opens_ours(weights: str, trained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "exported"
    done = run(str(trained), "--to", "huggingface", "--out", str(out), "--weights", weights, module="lawa_exp.export")
    assert done.returncode == 0 and "step 40" in done.stdout, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    tokens = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert tokens[0].tolist() == list(TEXT.encode()) and tokenizer.decode(tokens[0]) == TEXT
    tokens = tokens[:, :32]
    place = trained / ("trajectory" if weights == "live" else f"averages/{weights}") / "step_00000040"
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, ours(place)(tokens), rtol=1e-5, atol=2e-6)
    written = transformers.pipeline("text-generation", model=str(out))("The ", max_new_tokens=8, do_sample=False)
    assert written[0]["generated_text"].startswith("The ") and len(written[0]["generated_text"]) > 4
    card = pytest.importorskip("huggingface_hub").ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.tags == (["lawa_exp"] if weights == "live" else ["weight-averaging", "lawa", "lawa_exp"])
    loss = next(r for r in rows(trained) if (r["step"], r["split"], r["weights"]) == (40, "val", weights))["loss"]
    assert f"{loss:.4f}" in card.text and str(trained.parent) not in card.text and "run_dir=..." in card.text
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    written_files = {"model.safetensors", "config.json", "README.md", "manifest.json"}
    assert {path.name for path in out.iterdir()} == written_files | tokenizer_files
    again = settings().build()
    load_weights(again, live_tensors(again), out)  # init.from
    assert all(torch.equal(t, live_tensors(ours(place))[n]) for n, t in live_tensors(again).items())


def test_an_evaluator_reads_an_export_by_its_config_json(trained: Path, tmp_path: Path) -> None:
    """Of any causal model of transformers, and with the run's own loss of the same text."""
    pytest.importorskip("transformers")
    text, out = tmp_path / "text.txt", tmp_path / "exported"
    text.write_text(TEXT * 8)
    export(trained, "huggingface", out, "lawa-k3-s10")
    asked = ["--evaluate", "perplexity", "--text", str(text), "--tokenizer", "bytes"]
    for source, folder, more in ((trained, "a", ["--avg", "lawa", "--k", "3", "--spacing", "10"]), (out, "b", [])):
        done = run(str(source), *asked, *more, "--out", str(tmp_path / folder), module="lawa_exp.readout", warm=True)
        assert done.returncode == 0, done.stderr
    (expected,) = {
        r["loss"] for r in rows(tmp_path / "a") if r["step"] == 40 and r["weights"] == "lawa-k3-s10" and "loss" in r
    }
    assert next(r["loss"] for r in rows(tmp_path / "b") if "loss" in r) == pytest.approx(expected, rel=1e-6)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2ForSequenceClassification"]}))
    done = run(str(out), *asked, module="lawa_exp.readout", warm=True)
    assert done.returncode == 2 and "expected a causal language model" in done.stderr


def test_a_run_goes_on_from_an_export(trained: Path, tmp_path: Path) -> None:
    export(trained, "huggingface", tmp_path / "exported")
    for scaled in ("true", "false"):  # in a model without the scale the query weights have it
        folder = tmp_path / scaled
        asked = [o for o in ASKED if not o.startswith("model.scale")] + [
            f"model.scale_attn_by_inverse_layer_idx={scaled}"
        ]
        done = run(*asked, "seed=1", f"init.from={tmp_path / 'exported'}", f"run_dir={folder}", warm=True)
        assert done.returncode == 0, done.stderr
        (begins,) = (r["loss"] for r in rows(folder) if r["step"] == 0 and r["split"] == "val")
        (ended,) = (
            r["loss"] for r in rows(trained) if r["step"] == 40 and r["weights"] == "live" and r["split"] == "val"
        )
        assert begins == pytest.approx(ended, abs=1e-5)


def nanogpt() -> Any:
    if not (NANOGPT / "model.py").is_file():
        pytest.skip("no checkout of nanoGPT (NANOGPT=DIR)")
    found = importlib.util.spec_from_file_location("nanogpt_model", NANOGPT / "model.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules["nanogpt_model"] = module
    found.loader.exec_module(module)
    return module


def test_an_average_in_a_folder_of_another_name_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    mine = shutil.copytree(tmp_path / "run/averages/ema-d0.9-e1/step_00000040", tmp_path / "run/mine")
    with pytest.raises(UserError, match="mine: expected a snapshot's or average's own folder, step_00001000"):
        export(mine, "nanogpt", tmp_path / "out")


def test_nanogpt_opens_ours(trained: Path, tmp_path: Path) -> None:
    theirs = nanogpt()
    done = run(
        str(trained / "averages/ema-d0.9-e1/step_00000040"),
        "--to",
        "nanogpt",
        "--out",
        str(tmp_path / "out"),
        module="lawa_exp.export",
    )
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    model = theirs.GPT(theirs.GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    tokens = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, loss = model(tokens, tokens)
        expected = ours(trained / "averages/ema-d0.9-e1/step_00000040")(tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-6)
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens.flatten()).item(), abs=1e-6
    )
    assert saved["iter_num"] == 40


# What sample.py of https://github.com/karpathy/nanoGPT (MIT licence, commit 3adf61e) does to encode and decode.
SAMPLE = """
load_meta = False
if init_from == 'resume' and 'config' in checkpoint and 'dataset' in checkpoint['config']:
    meta_path = os.path.join('data', checkpoint['config']['dataset'], 'meta.pkl')
    load_meta = os.path.exists(meta_path)
if load_meta:
    with open(meta_path, 'rb') as f:
        meta = pickle.load(f)
    stoi, itos = meta['stoi'], meta['itos']
    encode = lambda s: [stoi[c] for c in s]
    decode = lambda l: ''.join([itos[i] for i in l])
"""


def codec_of(folder: Path) -> dict[str, Any]:
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    names: dict[str, Any] = {"init_from": "resume", "checkpoint": checkpoint, "os": os, "pickle": pickle}
    exec(SAMPLE, names)
    return names


def test_nanogpts_codec_of_an_export_is_that_of_bytes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the lines of its sample.py, from another folder, and after the export has moved."""
    monkeypatch.chdir(tmp_path)
    said = export(trained, "nanogpt", Path("out"))
    assert "if the folder moves, set config['dataset'] in ckpt.pt" in said
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    codec = codec_of(tmp_path / "out")
    text = TEXT.encode().decode("latin-1")
    assert codec["encode"](text) == list(TEXT.encode()) and codec["decode"](list(TEXT.encode())) == text
    assert codec["encode"](codec["decode"](range(256))) == list(range(256))
    (tmp_path / "out").rename(tmp_path / "moved")
    assert "decode" not in codec_of(tmp_path / "moved"), "sample.py would go for GPT-2's BPE"
    saved = torch.load(tmp_path / "moved" / "ckpt.pt", weights_only=True)
    saved["config"]["dataset"] = str(tmp_path / "moved")  # as the command says
    torch.save(saved, tmp_path / "moved" / "ckpt.pt")
    assert codec_of(tmp_path / "moved")["encode"](text) == list(TEXT.encode())


def test_nanogpts_own_sample_py_writes_bytes(trained: Path, tmp_path: Path) -> None:
    nanogpt()
    export(trained, "nanogpt", tmp_path / "out")
    settings = [f"--out_dir={tmp_path / 'out'}", "--device=cpu", "--dtype=float32", "--num_samples=1"]
    asked = [sys.executable, "sample.py", *settings, "--max_new_tokens=20", "--start=The "]
    done = subprocess.run(asked, cwd=NANOGPT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = done.stdout.partition("meta.pkl...\n")[2].partition("\n---------------")[0]
    assert written.startswith("The ") and len(written) == 24


def test_an_export_to_nanogpt_keeps_what_says_its_tokens(trained: Path, tmp_path: Path) -> None:
    """Of nanoGPT's own checkpoint its data set; of GPT-2's tokens none that has a meta.pkl; never bytes as GPT-2's."""
    export(trained, "nanogpt", tmp_path / "ours")
    saved = torch.load(tmp_path / "ours" / "ckpt.pt", weights_only=True)
    torch.save({**saved, "config": {"dataset": "shakespeare_char"}}, tmp_path / "theirs.pt")
    said = export(tmp_path / "theirs.pt", "nanogpt", tmp_path / "again")
    assert "tokens are those of shakespeare_char: without a meta.pkl" in said
    again = torch.load(tmp_path / "again" / "ckpt.pt", weights_only=True)
    assert again["config"] == {"dataset": "shakespeare_char"} and again["model_args"] == saved["model_args"]
    assert all(torch.equal(again["model"][n], t) for n, t in saved["model"].items())
    source = Source(again["model"], settings(), 1, "gpt2")
    TARGETS[GPTSettings]["nanogpt"](source, tmp_path / "bpe", None)
    assert torch.load(tmp_path / "bpe" / "ckpt.pt", weights_only=True)["config"] == {"dataset": "openwebtext"}
    TARGETS[GPTSettings]["nanogpt"](replace(source, tokenizer="neox"), tmp_path / "neox", None)
    assert torch.load(tmp_path / "neox" / "ckpt.pt", weights_only=True)["config"] == {}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_ours_opens_nanogpts(bias: bool, scaled: bool, tmp_path: Path) -> None:
    theirs = nanogpt()
    torch.manual_seed(1)
    arguments = {
        "n_layer": 3,
        "n_head": 2,
        "n_embd": 32,
        "block_size": 32,
        "bias": bias,
        "vocab_size": 256,
        "dropout": 0.0,
    }
    model = theirs.GPT(theirs.GPTConfig(**arguments)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases, too
    state = {f"_orig_mod.{n}": t for n, t in model.state_dict().items()}  # as of a compiled model
    torch.save({"model": state, "model_args": arguments, "iter_num": 7, "config": {}}, tmp_path / "ckpt.pt")
    assert "step 7" in export(tmp_path / "ckpt.pt", "huggingface", tmp_path / "out")
    mine = settings(bias=bias, scale_attn_by_inverse_layer_idx=scaled).build().eval()
    load_weights(mine, live_tensors(mine), tmp_path / "out")
    tokens = torch.randint(256, (4, 32))
    with torch.no_grad():
        torch.testing.assert_close(mine(tokens), model(tokens, tokens)[0], rtol=1e-4, atol=1e-5)
    back = of_nanogpt(tmp_path / "ckpt.pt").tensors
    assert torch.equal(back["transformer.wte.weight"], model.lm_head.weight)


@pytest.mark.data
def test_gpt2s_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not os.environ.get("LAWA_DATA"):
        pytest.skip("LAWA_DATA is not set")
    found = carried("gpt2", None, 1024)
    assert found and (found.vocab_size, found.end_of_text) == (50257, 50256)
    for name, content in found.files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = TEXT + "  it's   1234 \n\n done"
    assert tokenizer(text)["input_ids"] == load_tokenizer("gpt2", None).encode(text).tolist()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text and tokenizer.eos_token_id == 50256


@pytest.mark.data
def test_robertas_tokenizer_is_the_published_one(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not os.environ.get("LAWA_DATA"):
        pytest.skip("LAWA_DATA is not set")
    torch.manual_seed(0)
    model = RobertaSettings("m", 1, 2, 16, 32, 50265, 0.1, 0.1)
    told = TARGETS[RobertaSettings]["huggingface"](Source(model.build().state_dict(), model, 0), tmp_path / "m", None)
    assert told.endswith("tokenizer GPT-2's BPE with fairseq's numbers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer("Hello world")["input_ids"] == [0, 31414, 232, 2], "as roberta-base's"
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, len(tokenizer)) == (50264, 1, 50265)
    numbers = read_dictionary(find_gpt2(None) / "dict.txt")
    tokens = [numbers[str(token)] for token in load_tokenizer("gpt2", None).encode(TEXT)]
    assert tokenizer(TEXT)["input_ids"] == [0, *tokens, 2]
    filled = transformers.pipeline("fill-mask", model=str(tmp_path / "m"))("The<mask> fox.")
    assert len(filled) == 5 and all(f["sequence"].startswith("The") for f in filled)
    assert carried_roberta(None, None, 32, 50264) is None, "of another size"


def test_mistakes(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already; choose a new folder"):
        export(trained, "nanogpt", tmp_path)
    with pytest.raises(UserError, match=r"--weights lawa: .* has none; it has live, ema-d0.9-e1, lawa-k3-s10"):
        export(trained, "nanogpt", tmp_path / "out", "lawa")
    with pytest.raises(UserError, match=r"--step 41: .* has 5, 10"):
        export(trained, "nanogpt", tmp_path / "out", step=41)
    with pytest.raises(UserError, match=r"expected a run, a snapshot or average in one, or nanoGPT's ckpt.pt"):
        export(tmp_path, "nanogpt", tmp_path / "out")
    with pytest.raises(UserError, match="absent: there is no such file or folder"):
        export(tmp_path / "absent", "nanogpt", tmp_path / "out")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no checkpoint of nanoGPT"):
        export(tmp_path / "other.pt", "huggingface", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "word",
    [
        *("dataset.path=/home/alice/data", "dataset.path='/home/alice/data'", "init.from=[/home/alice/a,b]"),
        *(
            "run_dir=../alice/x",
            "dataset.path=alice",
            "runs_root=~/runs",
            "x={dir: /home/alice}",
            "dataset.path=${oc.env:HOME}/r",
        ),
    ],
)
def test_a_model_card_has_no_paths(word: str) -> None:
    assert public(word) == f"{word.partition('=')[0]}=..." and public("lr.peak=1e-3") == "lr.peak=1e-3"
    assert public("--config-dir") == "--config-dir" and public("/home/alice/conf") == "..."
