"""Masked language models and adaptive softmax, by what they are defined as; fairseq itself is in tests/fidelity."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lawa_exp.axes.dataset.fairseq import BOS, EOS, PAD, Lines
from lawa_exp.axes.dataset.masked import IGNORE, MaskedBlocks, PydocsMLMSettings, complete_blocks
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.dataset.tasks import Tokens
from lawa_exp.axes.dataset.text import PydocsSettings
from lawa_exp.axes.lr import rates
from lawa_exp.axes.model import dropout
from lawa_exp.axes.model.adaptive_lm.settings import AdaptiveLMSettings
from lawa_exp.axes.model.roberta.settings import RobertaSettings
from lawa_exp.config.parts import NoAmounts
from lawa_exp.config.rules import Amount
from lawa_exp.evaluation.evaluate import fields_of
from lawa_exp.launch import compose
from lawa_exp.system.errors import UserError

DATA = Path(__file__).parents[1] / "fidelity" / "recorded" / "fairseq" / "data"


def composed(*arguments):
    ((values, overrides),), _ = compose.compose(list(arguments))
    return compose.read(values, overrides)[0]


def rate(config, step):
    lr, scaling, fault = (part.resolved(NoAmounts()) for part in (config.lr, config.scaling, config.fault))
    return rates.rate(lr, scaling, fault, config.batch.batches(512, 10**6), step)


def kinds(config):
    return {a.cls.kind for a in config.averagers}


def test_the_recipe_of_roberta_as_published_and_fair():
    config = composed("model=roberta_base")
    assert config.batch.size * config.model.context == 2048 * 512 and config.budget == ("steps", 200 * 136)
    o = config.optimizer.resolved(NoAmounts())
    assert (o.beta1, o.beta2, o.eps, o.weight_decay, o.decays, o.clip_norm) == (0.9, 0.98, 1e-6, 0.01, "all", 0)
    assert rate(config, 10_000) == 5e-4
    assert rate(config, 27_200) == pytest.approx(5e-4 * (125_000 - 27_200) / 115_000)  # it stops at 85% of the peak
    fair = composed("model=roberta_base", "recipe=fair")
    lr = fair.lr.values
    assert lr["horizon"] is None and str(lr["warmup_steps"]) == "8%" and fair.batch == config.batch
    assert kinds(fair) == {"lawa", "ema", "swa"}


def random_lines(count, seed=0):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(2, 60, count)
    tokens = draw.integers(4, 1000, int(sizes.sum()))
    tokens[np.cumsum(sizes) - 1] = EOS
    return Lines(tokens, sizes)


def test_blocks_are_whole_lines_as_many_as_fit():
    lines, longest = random_lines(400), 100
    blocks = complete_blocks(lines.sizes, longest)
    ends = np.cumsum(lines.sizes)
    assert blocks[0, 0] == 0 and blocks[-1, 1] == ends[-1] and (blocks[1:, 0] == blocks[:-1, 1]).all()
    assert np.isin(blocks[:, 1], ends).all() and (blocks[:, 1] - blocks[:, 0] <= longest).all()
    following = ends[np.searchsorted(ends, blocks[:-1, 1]) + 1]
    assert (following - blocks[:-1, 0] > longest).all()  # the next line did not fit
    assert complete_blocks(np.array([5, 300, 7]), longest).tolist() == [[0, 5], [5, 305], [305, 312]]


def test_15_percent_are_masked_80_10_10():
    ids = {f"s{n}": n for n in range(1000)}
    lines = random_lines(20_000)
    data = MaskedBlocks(dict.fromkeys(("train", "val", "test"), lines), ids, 128, "", "x", "")
    count = data.sizes["train"]
    inputs, targets = data.train_batch(3, in_epochs(0, count, count, 3))
    chosen, real = targets != IGNORE, inputs != PAD
    assert data.vocab_size == 1001 and data.mask == 1000
    assert chosen.sum() / real.sum() == pytest.approx(0.15, abs=2e-4) and not (chosen & ~real).any()
    assert (inputs[chosen] == data.mask).mean() == pytest.approx(0.8, abs=0.005)
    assert (inputs[chosen] == targets[chosen]).mean() == pytest.approx(0.1, abs=0.005)
    replaced = inputs[chosen & (inputs != data.mask) & (inputs != targets)]
    assert replaced.min() >= 4 and len(np.unique(replaced)) > 950  # any symbol but the special ones
    assert data.train_targets(3, in_epochs(0, count, count, 3)) == chosen.sum()
    again = data.train_batch(3, in_epochs(7, 5, count, 3))[0]
    others = data.train_batch(3, in_epochs(count, count, count, 3))[1]
    assert (
        np.array_equal(again, inputs[7:12]) and (others != IGNORE).sum() != chosen.sum()
    )  # another epoch, other masks
    assert np.array_equal(data.eval_batch("val", np.arange(3))[0], data.eval_batch("val", np.arange(3))[0])


def test_the_embedded_text_is_that_of_pydocs_line_by_line():
    data, plain = PydocsMLMSettings("x").open(160), PydocsSettings("x").open(160)
    assert (data.vocab_size, data.mask) == (261, 260) and not data.note.count("left out")
    for split in ("train", "val", "test"):
        inputs, targets = data.eval_batch(split, np.arange(data.sizes[split]))
        chosen, real = targets != IGNORE, inputs != PAD
        clean = np.where(chosen, targets, inputs)
        assert (clean[:, 0] == BOS).all() and (clean[:, 1:] != BOS).all()
        text = bytes(10 if token == EOS else token - 4 for token in clean[:, 1:][real[:, 1:]].tolist())
        expected = bytes(plain.splits[split].astype(np.uint8))
        assert text == expected + b"\n" * (not expected.endswith(b"\n"))
        assert chosen.sum() / real.sum() == pytest.approx(0.15, abs=0.002) and not (chosen & ~real).any()
        replaced = inputs[chosen & (inputs != data.mask) & (inputs != targets)]
        assert replaced.min() >= 4 and (inputs[chosen] == data.mask).mean() == pytest.approx(0.8, abs=0.02)
    again = PydocsMLMSettings("x").open(160)
    assert again.fingerprint == data.fingerprint != plain.fingerprint
    samples = in_epochs(40, 8, data.sizes["train"], 5)
    for one, other in zip(data.train_batch(5, samples), again.train_batch(5, samples), strict=True):
        assert np.array_equal(one, other)
    first = [data.train_batch(seed, in_epochs(0, 8, data.sizes["train"], seed))[0] for seed in (5, 6)]
    assert not np.array_equal(*first)


def test_the_small_recipe_of_roberta_as_published_and_fair(tmp_path):
    """conf/experiment/mini_mlm.yaml has the shares of conf/model/roberta_base.yaml."""
    large, config = composed("model=roberta_base"), composed("experiment=mini_mlm")
    (_, published), (_, budget) = large.budget, config.budget
    lr, of_large = config.lr.values, large.lr.values
    assert lr["horizon"] == round(budget * of_large["horizon"] / published)
    assert lr["warmup_steps"] == round(lr["horizon"] * of_large["warmup_steps"] / of_large["horizon"])
    assert rate(config, budget) / lr["peak"] == pytest.approx(rate(large, published) / of_large["peak"], abs=1e-3)
    assert config.optimizer == large.optimizer and config.model.dropout == large.model.dropout
    spacings = {a.values["spacing"] for a in config.averagers if a.cls.kind == "lawa"}
    assert spacings == {round(budget * 136 / published), 50}
    fair = composed("experiment=mini_mlm", "lr.horizon=null", "lr.warmup_steps=8%")
    assert fair.lr == config.lr.changed(horizon=None, warmup_steps=Amount(8, "%", "8%"))
    assert fair.averagers == config.averagers
    small = ["model.layers=1", "model.width=16", "model.heads=2", "steps=60", "lr.horizon=null", "lr.warmup_steps=10"]
    asked = ["experiment=mini_mlm", "lr.peak=1e-2", "evaluate.samples=16", "evaluate.every=60", *small]
    assert compose.main([*asked, f"run_dir={tmp_path / 'run'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = (r["loss"] for r in rows if (r["split"], r["weights"]) == ("val", "live"))
    assert abs(first - np.log(261)) < 0.3 and last < first - 1


def tiny(*overrides):
    return [
        *("model=roberta_base", "model.layers=1", "model.width=16", "model.heads=2", "model.context=48"),
        *("model.vocab_size=null", f"dataset.path={DATA}", "batch.size=8", "steps=6", "avg=none", "evaluate.every=6"),
        *("lr.warmup_steps=2", "lr.horizon=null", "trainer.threads=1", "logger.every=1", "model.dropout=0"),
        *("model.attention_dropout=0", "trajectory.keep=none", *overrides),
    ]


def test_the_loss_is_a_mean_over_the_masked_tokens_of_the_whole_batch(tmp_path):
    """However it is cut: micro-batches hold different numbers of them."""
    found = []
    for micro in (8, 2):
        run = tmp_path / str(micro)
        assert compose.main(tiny(f"trainer.micro_batch={micro}", f"run_dir={run}")) == 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append([(r["loss"], r["grad_norm"]) for r in rows if r["split"] == "train"])
    assert len(found[0]) == 6
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    val = [r for r in rows if r["split"] == "val"]
    assert all(r["loss_bits"] == pytest.approx(r["loss"] / np.log(2)) for r in val) and len(val) == 2


def test_padding_changes_nothing_and_only_targets_are_projected():
    torch.manual_seed(0)
    settings = RobertaSettings("r", 2, 2, 16, 24, 100, 0.1, 0.1)
    model = settings.build().eval()
    assert settings.computes_loss(model)
    tokens = torch.randint(4, 100, (3, 24))
    tokens[1, 10:] = PAD
    targets = torch.full_like(tokens, IGNORE)
    targets[0, 3], targets[1, 5], targets[2, 7] = 50, 60, 70
    with torch.no_grad():
        logits = model(tokens)
        assert torch.allclose(logits[1, :10], model(tokens[1:2, :10])[0], atol=1e-5)
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        assert torch.allclose(model(tokens, targets), expected, rtol=1e-5)


def adaptive(**changes):
    sizes = {"layers": 2, "heads": 2, "width": 32, "hidden": 64, "context": 16, "vocab_size": 100}
    rates = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "softmax_dropout"), 0.1)
    return AdaptiveLMSettings(**{"name": "a", **sizes, "cutoffs": (20, 60), "factor": 4, **rates, **changes})


def test_the_adaptive_softmax_is_a_distribution_and_its_loss_that_of_it():
    torch.manual_seed(0)
    model = adaptive().build().eval()
    assert adaptive().computes_loss(model)
    tokens, targets = torch.randint(4, 100, (2, 2, 16))
    targets[0, 3] = IGNORE
    log_probabilities = model(tokens)
    assert torch.allclose(log_probabilities.exp().sum(-1), torch.ones(2, 16), atol=1e-5)
    expected = F.nll_loss(log_probabilities.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    assert torch.allclose(model(tokens, targets), expected, rtol=1e-5)
    later = tokens.clone()
    later[:, 9:] = 5
    assert torch.equal(model(later)[:, :9], log_probabilities[:, :9])  # causal
    model(tokens.clamp(max=19), targets.clamp(0, 19)).backward()  # bands that no token is in have a gradient of 0
    assert all(p.grad is not None for p in model.parameters())


def test_the_published_sizes():
    with torch.device("meta"):
        for name, size in (("roberta_base", 124_697_433), ("transformer_lm_wiki103", 246_933_504)):
            assert sum(p.numel() for p in composed(f"model={name}").model.build().parameters()) == size


def test_mistakes_are_told_in_a_line(capsys):
    elsewhere = [setting for setting in tiny("dataset=pydocs", "plan=true") if not setting.startswith("dataset.")]
    for arguments, parts in (
        (elsewhere, ["roberta_base takes masked tokens", "dataset=pydocs holds tokens", "masked_lm"]),
        (tiny("plan=true", "model.heads=5"), ["width=16", "heads=5"]),
        (tiny("plan=true", "dataset.format=bin"), ["dataset.format=bin", "auto, fairseq, text"]),
        (tiny("plan=true", "dataset.path=nowhere"), ["dataset=wikitext103_mlm", "looked in", "fairseq-preprocess"]),
    ):
        assert compose.main(arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    with pytest.raises(UserError, match=r"evaluate.samples: none of the 3 samples has a target"):
        fields_of(Tokens("masked token"), np.zeros((2, 2)), 3)
    lines = dict.fromkeys(("train", "val", "test"), random_lines(5))
    with pytest.raises(UserError, match=r"no line of its train split fits into model.context=2"):
        MaskedBlocks(lines, {f"s{n}": n for n in range(1000)}, 2, "", "x", "")
    big = ["model=transformer_lm_wiki103", "model.context=64", f"dataset.path={DATA}", "plan=true"]
    assert compose.main([*big, "model.vocab_size=null"]) == 2
    assert "expected all below vocab_size=" in capsys.readouterr().err
    assert compose.main([*big, "model.cutoffs=[60,20]"]) == 2
    assert "model.cutoffs=[60, 20]: expected a list of rising integers" in capsys.readouterr().err
    assert compose.main([*big, "model.cutoffs=[60,61]"]) == 2
    assert "model.cutoffs=[60, 61]: expected bands of at least two tokens" in capsys.readouterr().err
    assert compose.main([*big, "model.width=1031", "model.heads=1"]) == 2
    assert "model.width=1031: expected an even one" in capsys.readouterr().err


def test_padding_costs_nothing_in_training_and_dropout_is_unbiased():
    """The context is cut to the longest sample; dropped elements are p of all, and what stays is scaled up for it."""
    torch.manual_seed(0)
    assert dropout.chosen(torch.Size((1001, 333)), 0.1).float().mean().item() == pytest.approx(0.1, abs=2e-3)
    x, layer = torch.ones(1000, 301, requires_grad=True), dropout.Dropout(0.3)
    y = layer(x)
    y.sum().backward()
    assert set(y.unique().tolist()) == {0.0, (torch.ones(1) / 0.7).item()} and torch.equal(x.grad, y.detach())
    assert y.mean().item() == pytest.approx(1, abs=0.01) and torch.equal(layer.eval()(x), x)
    q, k, v = torch.randn(3, 2, 2, 12, 8)
    seen = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    seen[1, :, :, 9:] = False
    draws = torch.stack([dropout.attention(q, k, v, seen, 0.2, 0.3) for _ in range(4000)])
    error = draws.std(0) / len(draws) ** 0.5
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3)
    assert ((draws.mean(0) - expected).abs() < 5 * error).all() and (error > 1e-4).all()
    v[1, :, 9:] = 1e30  # which nobody sees
    assert dropout.attention(q, k, v, seen, 0.2, 0.3).abs().max() < 100
    model = RobertaSettings("r", 2, 2, 16, 24, 100, 0.1, 0.1).build()
    assert sum(type(m) is dropout.Dropout for m in model.modules()) == 2 * 3 + 1
    assert not [m for m in model.modules() if type(m) is torch.nn.Dropout]
    widths = []
    model.roberta.embeddings.register_forward_hook(lambda *given: widths.append(given[2].shape[1]))
    tokens = torch.randint(4, 100, (3, 24))
    tokens[:, 17:] = PAD
    targets = torch.full_like(tokens, IGNORE)
    targets[:, 4] = 50
    first, other = (model(tokens, targets) for _ in range(2))
    assert widths == [17, 17] and first != other
    torch.manual_seed(1)
    first = model(tokens, targets)
    torch.manual_seed(1)
    assert model(tokens, targets) == first
