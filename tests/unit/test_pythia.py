"""Pythia: its published sizes, the same numbers as transformers' own GPT-NeoX, its tokenizer."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lawa_exp.axes.dataset.tokenizers import load_tokenizer
from lawa_exp.axes.model.pythia.pythia import settings_in, write_configuration
from lawa_exp.axes.model.pythia.settings import PythiaSettings
from lawa_exp.export import TARGETS, Source
from lawa_exp.launch.compose import compose, read
from lawa_exp.system.errors import UserError

transformers = pytest.importorskip("transformers")
TOKENIZER = Path(os.environ.get("LAWA_DATA", "")) / "neox_tokenizer" / "20B_tokenizer.json"
PUBLISHED = {  # total parameters of the checkpoints on the hub
    "14m": 14_067_712,
    "31m": 30_494_720,
    "70m": 70_426_624,
    "160m": 162_322_944,
    "410m": 405_334_016,
    "1b": 1_011_781_632,
    "1.4b": 1_414_647_808,
    "2.8b": 2_775_208_960,
    "6.9b": 6_857_302_016,
    "12b": 11_846_072_320,
}
TINY = PythiaSettings(name="tiny", layers=2, heads=2, width=32, context=16, vocab_size=64, dropout=0.0)


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_size_has_the_published_number_of_parameters(size: str) -> None:
    config, _ = read(*compose([f"model=pythia_{size}"])[0][0])
    with torch.device("meta"):
        model = config.model.build()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[size]
    assert config.dataset.name == "pile" and config.batch.size * config.model.context == 2**21
    assert config.budget == ("steps", 143000) and config.lr.values["final_ratio"] == 0.1


def test_our_weights_are_a_checkpoint_that_transformers_opens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TINY.build()
    out = tmp_path / "exported"
    TARGETS[PythiaSettings]["huggingface"](Source(model.state_dict(), TINY, step=3), out, None)
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told.values())
    tokens = torch.randint(64, (3, 16))
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens), theirs.eval()(tokens).logits)
    assert settings_in(out / "config.json") == {
        k: getattr(TINY, k) for k in ("layers", "heads", "width", "context", "vocab_size")
    }


def test_first_weights_are_small_and_what_blocks_add_up_smaller() -> None:
    torch.manual_seed(0)
    model = PythiaSettings("m", layers=4, heads=4, width=128, context=16, vocab_size=512, dropout=0.0).build()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1 if name.endswith("norm.weight") else 0)).all(), name
            continue
        summed = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
        wanted = 2 / 4 / 128**0.5 if summed else (2 / (5 * 128)) ** 0.5
        assert abs(parameter.std().item() / wanted - 1) < 0.03, name


def test_a_configuration_that_is_not_pythia_is_named(tmp_path: Path) -> None:
    write_configuration(tmp_path, TINY)
    config = tmp_path / "config.json"
    whole = json.loads(config.read_text())
    for change, said in (
        ({"model_type": "llama"}, "model_type=llama"),
        ({"use_parallel_residual": False}, "use_parallel_residual=False"),
        ({"rope_parameters": None, "rotary_pct": 1.0}, "rotary_pct=1.0"),
        ({"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 1000000}, "rotary_emb_base=1000000"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type=linear"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06"),
    ):
        config.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=said):
            settings_in(config)
    config.write_text("{")
    with pytest.raises(UserError, match=r"no configuration of a GPT-NeoX|is damaged: no JSON"):
        settings_in(config)


def test_heads_that_cannot_be_rotated_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 8 times heads=4"):
        compose_tiny("model.heads=4", "model.width=48")


def compose_tiny(*overrides: str) -> object:
    return read(*compose(["model=pythia_14m", *overrides])[0][0])


@pytest.mark.data
@pytest.mark.skipif(not TOKENIZER.is_file(), reason="needs neox_tokenizer in LAWA_DATA")
def test_an_exported_model_generates_text_with_its_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = PythiaSettings("m", layers=1, heads=2, width=32, context=32, vocab_size=50304, dropout=0.0)
    source = Source(settings.build().state_dict(), settings, 3, "neox", str(TOKENIZER.parent))
    told = TARGETS[PythiaSettings]["huggingface"](source, tmp_path / "exported", None)
    assert told.endswith("GPTNeoXForCausalLM of step 3, tokenizer neox")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = "Caf\u00e9, 12 apples:\n\n    if x:"
    assert tokenizer(text)["input_ids"] == load_tokenizer("neox", str(TOKENIZER.parent)).encode(text).tolist()
    generate = transformers.pipeline("text-generation", model=str(tmp_path / "exported"))
    (found,) = generate(text, max_new_tokens=8, do_sample=False)
    assert generate.model.generation_config.eos_token_id == 0 == tokenizer.eos_token_id
    assert found["generated_text"].startswith(text) and len(found["generated_text"]) > len(text)


@pytest.mark.data
@pytest.mark.skipif(not TOKENIZER.is_file(), reason="needs neox_tokenizer in LAWA_DATA")
def test_the_tokenizer_gives_the_ids_of_its_package(tmp_path: Path) -> None:
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(TOKENIZER))
    ours = load_tokenizer("neox", str(TOKENIZER.parent))
    assert (ours.vocab_size, ours.end_of_text) == (50277, 0)
    text = "Café, 12 apples:\n\n    if x:\n        return\n \n= Heading =\n" * 3000
    assert np.array_equal(ours.encode(text), theirs.encode(text, add_special_tokens=False).ids)
    assert ours.encode("<|endoftext|>").tolist() != [0], "the text of a special token is text"
    renamed = tmp_path / "tokenizer.json"
    renamed.write_bytes(TOKENIZER.read_bytes())
    assert load_tokenizer("neox", str(renamed)).fingerprint == ours.fingerprint
    renamed.write_bytes(TOKENIZER.read_bytes()[:10_000])
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer("neox", str(tmp_path))
    with pytest.raises(UserError, match=r"20B_tokenizer.json or tokenizer.json not found; looked in .*none"):
        load_tokenizer("neox", str(tmp_path / "none"))
