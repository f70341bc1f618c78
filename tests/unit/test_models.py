"""The GPT against an independent computation, and a model from outside."""

import math
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lawa_exp.averaging.swap import Swap
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.axes.dataset.tasks import Tokens
from lawa_exp.axes.model.custom import CustomSettings
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.axes.objective.task_loss import Scorer, TaskLoss
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.launch.compose import compose, read
from lawa_exp.seams.task import IGNORE

SMALL = GPTSettings("small", 2, 2, 16, 12, 50, False, 0.0, True)


@pytest.mark.parametrize(
    "name, parameters",
    [("gpt_tiny", 836_736), ("gpt2_small", 124_373_760), ("gpt2_medium", 354_599_936), ("gpt2_large", 773_582_080)],
)
def test_parameter_counts(name, parameters):
    """By the arithmetic of GPT-2 without biases: V*d + T*d + L*(12*d*d + 2*d) + d, the embedding tied."""
    ((values, overrides),), _ = compose([f"model={name}"])
    s = read(values, overrides)[0].model
    with torch.device("meta"):
        model = s.build()
    d = s.width
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert parameters == s.vocab_size * d + s.context * d + s.layers * (12 * d * d + 2 * d) + d


def by_hand(model, s, tokens):
    """The same network in plain operations: softmax(q k' / sqrt(head width) / layer number) v, causal."""
    w = dict(model.named_parameters())
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: tokens.shape[1]]
    norm = lambda x, name: F.layer_norm(x, (s.width,), w[name])  # noqa: E731
    mask = torch.ones(tokens.shape[1], tokens.shape[1]).tril().bool()
    for i in range(s.layers):
        h = f"transformer.h.{i}."
        q, k, v = (norm(x, h + "ln_1.weight") @ w[h + "attn.c_attn.weight"].T).chunk(3, dim=-1)
        heads = []
        for j in range(s.heads):
            part = slice(j * s.width // s.heads, (j + 1) * s.width // s.heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(s.width // s.heads)
            if s.scale_attn_by_inverse_layer_idx:
                scores = scores / (i + 1)
            heads.append(scores.masked_fill(~mask, -math.inf).softmax(-1) @ v[..., part])
        x = x + torch.cat(heads, -1) @ w[h + "attn.c_proj.weight"].T
        x = x + F.gelu(norm(x, h + "ln_2.weight") @ w[h + "mlp.c_fc.weight"].T) @ w[h + "mlp.c_proj.weight"].T
    return norm(x, "transformer.ln_f.weight") @ w["transformer.wte.weight"].T


@pytest.mark.parametrize("inverse", [True, False])
def test_logits_against_plain_operations(inverse):
    s = GPTSettings("small", 3, 2, 16, 12, 50, False, 0.0, inverse)
    torch.manual_seed(0)
    model = s.build()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)  # so that attention is far from uniform
    tokens = torch.randint(0, 50, (2, 12))
    torch.testing.assert_close(model(tokens), by_hand(model, s, tokens), rtol=1e-4, atol=1e-4)


def test_the_loss_is_a_sum_over_the_targets_that_count():
    torch.manual_seed(0)
    model = SMALL.build()
    inputs, targets = torch.randint(0, 50, (3, 12)), torch.randint(0, 50, (3, 12))
    objective = TaskLoss(model, Tokens())
    whole = objective(inputs, targets)["loss"]
    assert whole.item() == pytest.approx(36 * math.log(50), rel=0.05)
    targets[2:] = IGNORE
    first = objective(inputs[:2], targets[:2])["loss"]
    torch.testing.assert_close(objective(inputs, targets)["loss"], first, rtol=1e-6, atol=1e-5)
    sums = Scorer(model, Tokens())(inputs, targets)
    assert sums.dtype == torch.float64 and sums.tolist() == pytest.approx([first.item(), 24], rel=1e-6)


def test_a_model_may_compute_its_loss_itself():
    class Own(nn.Module):  # of a user
        computes_loss = True

        def forward(self, inputs, targets):
            return (inputs - targets).sum()

    outside = CustomSettings("own", "own:Own", None, 12, 50)
    inputs, targets = torch.randn(2, 3), torch.randn(2, 3)
    computed = outside.computes_loss(Own())
    loss = TaskLoss(Own(), Tokens(), computed)(inputs, targets)["loss"]
    assert loss == (inputs - targets).sum()
    assert Scorer(Own(), Tokens(), computed)(inputs, targets).tolist() == [loss.item(), 6]
    assert not outside.computes_loss(nn.Identity()) and not SMALL.computes_loss(SMALL.build())


def test_tied_weights_are_stored_once_under_their_first_name():
    model = SMALL.build()
    live = live_tensors(model)
    assert "transformer.wte.weight" in live and "lm_head.weight" not in live
    assert averaged_names(model) == set(live)


def test_a_swap_changes_what_is_computed_and_gives_the_same_bytes_back():
    torch.manual_seed(0)
    model = SMALL.build()
    tokens = torch.randint(0, 50, (2, 12))
    live = live_tensors(model)
    before, logits = {n: t.clone() for n, t in live.items()}, model(tokens)
    other = {n: torch.randn_like(t) for n, t in live.items()}
    swap = Swap(model)
    with swap.applied(other):
        assert swap.away and not torch.allclose(model(tokens), logits)
        assert model.lm_head.weight.data_ptr() == model.transformer["wte"].weight.data_ptr()
        with pytest.raises(AssertionError, match="already swapped"), swap.applied(other):
            pass
    assert all(torch.equal(before[n], t) for n, t in live.items()) and torch.equal(model(tokens), logits)
    with pytest.raises(RuntimeError, match="in the middle"), swap.applied(other):
        raise RuntimeError("in the middle")
    assert not swap.away and all(torch.equal(before[n], t) for n, t in live.items())


class InterruptedHalfWay(dict):
    """Tensors in whose third reading the user presses Control-C after the first one."""

    readings = 0

    def items(self):
        self.readings += 1
        for i, item in enumerate(super().items()):
            if self.readings == 3 and i == 1:
                signal.raise_signal(signal.SIGINT)
            yield item


def test_an_interrupt_waits_until_the_live_weights_are_back(request):
    model = SMALL.build()
    live = live_tensors(model)
    before = {n: t.clone() for n, t in live.items()}
    swap = Swap(model, InterruptedHalfWay(live))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # another test may have run a command
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    with pytest.raises(KeyboardInterrupt), swap.applied({n: torch.randn_like(t) for n, t in live.items()}):
        pass
    assert not swap.away and all(torch.equal(before[n], t) for n, t in live.items())


def test_the_evaluated_set_is_fixed_and_has_no_sample_twice():
    assert fixed_set(10, "all").tolist() == list(range(10))
    assert fixed_set(10, 50).tolist() == list(range(10))
    assert fixed_set(1000, 4).tolist() == [0, 250, 500, 750]
    assert len(set(fixed_set(997, 500).tolist())) == 500
