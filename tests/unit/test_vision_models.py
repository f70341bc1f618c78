"""Models of images against torchvision's modules, published parameter counts and plain operations."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lawa_exp.axes.dataset.digits import DigitsSettings
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.dataset.tasks import Classes
from lawa_exp.axes.lr.cosine import Cosine
from lawa_exp.axes.model.cct.cct import sine_positions
from lawa_exp.axes.model.images import forward_flops
from lawa_exp.axes.objective.task_loss import Scorer, TaskLoss
from lawa_exp.config.parts import NoAmounts
from lawa_exp.config.rules import Amount
from lawa_exp.evaluation.evaluate import Evaluation, evaluate
from lawa_exp.launch.compose import compose, read
from lawa_exp.runs.prepare import prepare
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import UserError

NAMES = ("resnet18", "resnet34", "resnet50", "resnet20", "cct_2", "cct_7")
SHAPES = {"cifar10": (3, 32, 10), "imagenet": (3, 224, 1000), "digits": (1, 8, 10), "fashion": (1, 28, 10)}


def settings(name, data="cifar10", *overrides):
    """The settings of a model as the data set would complete them."""
    ((values, given),), _ = compose([f"model={name}", "dataset=digits", *overrides])
    channels, image_size, classes = SHAPES[data]
    return replace(read(values, given)[0].model, channels=channels, image_size=image_size, classes=classes)


def seeded(s):
    torch.manual_seed(0)
    return s.build()


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name, published", [("cct_2", 0.284), ("cct_7", 3.76), ("resnet20", 0.27)]
)  # Hassani et al. 2021, table 2; He et al. 2016, table 6
def test_parameter_counts_as_published(name, published):
    found = count(settings(name).build())
    decimals = len(str(published).split(".")[1])
    assert round(found / 1e6, decimals) == published


def test_lenet_parameters_and_sizes():
    """Layer by layer, as in LeCun et al. 1998 but for C3, which here sees all maps."""
    layers = 6 * 26 + 16 * (6 * 25 + 1) + 120 * 401 + 84 * 121 + 10 * 85
    model = seeded(settings("lenet", "fashion"))
    assert count(model) == layers == 61_706
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(UserError, match=r"model.image_size=8: LeNet needs images of at least 12 pixels"):
        settings("lenet", "digits")


def test_parameter_counts_by_arithmetic():
    """CCT: convolutions, positions, pooling, blocks (three norms' worth less one), norm, head."""
    for name, d, hidden, layers, tokens, tokenizer in (
        ("cct_2", 128, 128, 2, 64, 3 * 64 * 9 + 64 * 128 * 9),
        ("cct_7", 256, 512, 7, 256, 3 * 256 * 9),
    ):
        block = 4 * d + 3 * d * d + d * d + d + d * hidden + hidden + hidden * d + d
        assert count(settings(name).build()) == tokenizer + tokens * d + d + 1 + layers * block + 2 * d + 10 * d + 10
    stages = [(16, 16), (16, 32), (32, 64)]
    convolutions = 3 * 16 * 9 + sum(9 * (a * b + 5 * b * b) + 12 * b for a, b in stages) + 2 * 16
    assert count(settings("resnet20").build()) == convolutions + 64 * 10 + 10 == 269_722


@pytest.mark.parametrize("layers", [18, 34, 50])
def test_resnets_are_torchvisions(layers):
    torch.manual_seed(1)
    theirs = getattr(torchvision.models, f"resnet{layers}")()
    ours = seeded(settings(f"resnet{layers}", "imagenet", "model.stem=imagenet"))
    assert type(ours) is type(theirs)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_a_resnets_first_layer_follows_the_images():
    theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    for data, stem, shape in (
        ("digits", "imagenet", (64, 1, 7, 7)),
        ("digits", "small", (64, 1, 3, 3)),
        ("cifar10", "small", (64, 3, 3, 3)),
    ):
        model = seeded(settings("resnet18", data, f"model.stem={stem}"))
        state = model.state_dict()
        assert list(state) == list(theirs) and state["conv1.weight"].shape == shape
        assert {n: t.shape for n, t in state.items() if n != "conv1.weight"} == {
            n: t.shape for n, t in theirs.items() if n != "conv1.weight"
        }
        fan_out = shape[0] * shape[2] * shape[3]
        assert state["conv1.weight"].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
    small = seeded(settings("resnet18", "cifar10", "model.stem=small")).eval()
    assert small.maxpool(torch.zeros(1, 1, 8, 8)).shape[-1] == 8 and small.conv1(torch.zeros(1, 3, 8, 8)).shape[-1] == 8


def test_resnet20_with_plain_operations():
    model = seeded(settings("resnet20")).eval()
    w = model.state_dict()
    for tensor in w.values():
        if tensor.dim() == 1:
            tensor.copy_(torch.rand_like(tensor) + 0.5)  # statistics and scales that are not those of a new network

    def convolved(x, conv, norm, stride=1):
        x = F.conv2d(x, w[conv + ".weight"], stride=stride, padding=1)
        mean, var, scale, shift = (w[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return ((x.movedim(1, 3) - mean) / (var + 1e-5).sqrt() * scale + shift).movedim(3, 1)

    images = torch.randn(4, 3, 32, 32)
    x = convolved(images, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(3):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = convolved(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
            y = convolved(y, f"{at}.conv2", f"{at}.bn2")
            if stride == 2:
                zeros = torch.zeros_like(y[:, : y.shape[1] // 4])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = (x + y).relu()
    expected = x.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def cct_by_hand(w, s, images):
    x = images
    for i in range(s.convolutions):
        x = F.conv2d(x, w[f"tokenizer.conv_layers.{i}.0.weight"], padding=1).relu()
        x = F.max_pool2d(x, 3, 2, 1)
    batch, d = len(images), s.width
    x = x.reshape(batch, d, -1).transpose(1, 2) + w["classifier.positional_emb"]
    norm = lambda x, name: F.layer_norm(x, (d,), w[name + ".weight"], w[name + ".bias"])  # noqa: E731
    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]  # noqa: E731
    for i in range(s.layers):
        b = f"classifier.blocks.{i}."
        q, k, v = (norm(x, b + "pre_norm") @ w[b + "self_attn.qkv.weight"].T).chunk(3, dim=-1)
        heads = []
        for j in range(s.heads):
            part = slice(j * d // s.heads, (j + 1) * d // s.heads)
            scores = (q[..., part] @ k[..., part].transpose(1, 2)) / (d // s.heads) ** 0.5
            heads.append(scores.softmax(-1) @ v[..., part])
        x = norm(x + linear(torch.cat(heads, -1), b + "self_attn.proj"), b + "norm1")
        x = x + linear(F.gelu(linear(x, b + "linear1")), b + "linear2")
    x = norm(x, "classifier.norm")
    pooled = (linear(x, "classifier.attention_pool").softmax(1).transpose(1, 2) @ x)[:, 0]
    return linear(pooled, "classifier.fc")


@pytest.mark.parametrize("name, data", [("cct_2", "cifar10"), ("cct_7", "digits"), ("cct_2", "fashion")])
def test_cct_with_plain_operations(name, data):
    s = settings(name, data)
    model = seeded(s).eval()
    w = dict(model.named_parameters())
    with torch.no_grad():
        for p in w.values():
            p.add_(0.1 * torch.randn_like(p))  # so that attention and pooling are far from uniform
    images = torch.randn(3, s.channels, s.image_size, s.image_size)
    torch.testing.assert_close(model(images), cct_by_hand(w, s, images), rtol=1e-4, atol=1e-4)


def test_sine_positions():
    table = sine_positions(7, 6)[0]
    for place in range(7):
        for i in range(6):
            angle = place / 10000 ** (2 * (i // 2) / 6)
            assert table[place, i].item() == pytest.approx(np.sin(angle) if i % 2 == 0 else np.cos(angle), abs=1e-5)
    model = settings("cct_2", "cifar10", "model.positions=sine").build()
    assert not model.classifier.positional_emb.requires_grad
    assert "classifier.positional_emb" not in settings("cct_2", "digits", "model.positions=none").build().state_dict()


def test_stochastic_depth_rises_to_the_last_layer():
    model = settings("cct_7").build()
    assert [block.drop_path.p for block in model.classifier.blocks] == pytest.approx([0.1 * i / 6 for i in range(7)])
    assert settings("cct_2", "cifar10", "model.layers=1").build().classifier.blocks[0].drop_path.p == 0


@pytest.mark.parametrize("data", ["digits", "fashion"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_takes_small_images_as_it_is(name, data):
    s = settings(name, data)
    with torch.device("meta"):  # as the plan does
        s.build()
    model = seeded(s)
    logits = model(torch.randn(4, s.channels, s.image_size, s.image_size))
    assert logits.shape == (4, 10)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_flops_are_counted_in_the_operations():
    """Multiplications and additions: 41 million of the former for ResNet-20 (He et al.), 1.8 billion for ResNet-18."""
    assert forward_flops(settings("resnet20").build(), settings("resnet20")) == pytest.approx(2 * 40.8e6, rel=0.01)
    large = settings("resnet18", "imagenet", "model.stem=imagenet")
    assert forward_flops(large.build(), large) == pytest.approx(2 * 1.8e9, rel=0.02)


def prepared(*overrides):
    ((values, given),), _ = compose(list(overrides))
    return prepare(*read(values, given), *start_device("cpu"))


def test_the_shape_is_the_data_sets():
    model = prepared("model=resnet20", "dataset=digits").config.model
    assert (model.channels, model.image_size, model.classes) == (1, 8, 10)
    assert prepared("model=resnet20", "dataset=digits", "model.classes=10").config.model == model
    for key, value in (("channels", 3), ("image_size", 32), ("classes", 100)):
        with pytest.raises(UserError, match=rf"model\.{key}={value}: the images of dataset=digits have \d+"):
            prepared("model=cct_2", "dataset=digits", f"model.{key}={value}")


def test_a_model_and_a_data_set_that_do_not_go_together():
    for model, data, said in (
        (
            "gpt_tiny",
            "digits",
            "model=gpt_tiny takes tokens, dataset=digits holds images: choose another model, or a data",
        ),
        (
            "cct_2",
            "pydocs",
            "model=cct_2 takes images, dataset=pydocs holds tokens: choose another model, or a data set",
        ),
    ):
        with pytest.raises(UserError, match=said):
            prepared(f"model={model}", f"dataset={data}")
    with pytest.raises(UserError, match="layers=21: expected 6n"):
        prepared("model=resnet20", "dataset=digits", "model.layers=21")
    with pytest.raises(UserError, match=r"model\.layers=101: expected 18, 34 or 50"):
        prepared("model=resnet50", "dataset=digits", "model.layers=101")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_other_choices_of_its_groups(name):
    ramp = ("batch=ramp", "batch.over=1", "batch.first=64", "batch.increment=64")  # of a recipe's norm_group
    prepared(f"model={name}", "dataset=digits", "lr=constant", "optimizer=lamb", *ramp)


def test_accuracy_is_counted_over_every_sample_once():
    """Of the true logits over the whole split, in batches that do not go into it evenly."""
    p = prepared("model=cct_2", "dataset=digits", "evaluate.batch_size=50")
    model = seeded(p.config.model)
    device, ranks = start_device("cpu")
    scorer = Scorer(model, p.data.task)
    found = evaluate(Evaluation(scorer, p.data, p.config.evaluate, ranks, device, nullcontext), "val")
    model.eval()
    with torch.no_grad():
        images, labels = (torch.from_numpy(a) for a in p.data.eval_batch("val", np.arange(179)))
        logits = model(images)
    assert found["eval_samples"] == 179 and found["accuracy"] == (logits.argmax(1) == labels).sum().item() / 179
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert list(found) == ["loss", "accuracy", "eval_samples"]


class Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, inputs):
        return self.logits


def test_the_objective_takes_classes_and_probabilities():
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, IGNORE])
    expected = F.cross_entropy(logits[:5], classes[:5], reduction="sum")
    torch.testing.assert_close(TaskLoss(Fixed(logits), Classes())(None, classes)["loss"], expected)
    loss, count, correct = Scorer(Fixed(logits), Classes())(None, classes)
    torch.testing.assert_close(loss, expected.double())
    assert count == 5 and correct == (logits[:5].argmax(1) == classes[:5]).sum()
    soft = torch.rand(6, 4)
    expected = -(soft * logits.log_softmax(1)).sum()
    torch.testing.assert_close(TaskLoss(Fixed(logits), Classes())(None, soft)["loss"], expected)


def test_training_targets_are_soft_and_evaluation_is_plain():
    changes = {"flip": False, "mixup": 0.2, "label_smoothing": 0.1, "crop_padding": 0}
    data = DigitsSettings(name="digits", **changes).open(None)
    model = seeded(settings("resnet20", "digits"))
    batch = data.train_batch(0, in_epochs(0, 8, data.sizes["train"], 0))
    loss = TaskLoss(model, data.task)(*map(torch.from_numpy, batch))["loss"]
    loss.backward()
    assert loss.isfinite() and model.conv1.weight.grad.norm() > 0


@pytest.mark.parametrize(
    "model, dataset, decay, epochs, k",
    [("resnet50", "imagenet", 1e-4, 90, 6), ("resnet34", "cifar100", 5e-4, 200, 10)],
)
@pytest.mark.parametrize("recipe", ["as_published", "fair"])
def test_recipes_are_kaddours(model, dataset, decay, epochs, k, recipe):
    """Kaddour 2022, section 4 and appendix B (the weight decay of CIFAR-100 is ours)."""
    ((values, given),), _ = compose([f"model={model}", f"recipe={recipe}"])
    assert values["dataset"]["name"] == dataset
    config, _ = read(values, given)
    assert config.budget == ("epochs", epochs) and config.batch.size == 256 and config.recipe == recipe
    optimizer = config.optimizer.resolved(NoAmounts())
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert optimizer.weight_decay == decay and optimizer.clip_norm == 0
    lr, evaluate = config.lr.values, config.evaluate.values
    assert (config.lr.cls, lr["peak"], lr["final_ratio"]) == (Cosine, 0.1, 0)
    assert lr["warmup_steps"] == 0 and lr["horizon"] is None
    windows = [a.values for a in config.averagers if a.cls.kind == "lawa"]
    epoch = Amount(1, "epochs", "1epoch")
    assert [(a["k"], a["spacing"]) for a in windows] == [(k, epoch)]
    assert evaluate["bn"] == "recalibrate" and evaluate["every"] == epoch
    assert evaluate["bn_samples"] == ("all" if recipe == "as_published" else 10000)
    kinds = {a.cls.kind for a in config.averagers}
    assert kinds == ({"lawa"} if recipe == "as_published" else {"lawa", "ema", "swa"})


@pytest.mark.parametrize("name", ["lenet", "resnet18", "resnet20", "cct_2"])
def test_channels_may_lie_innermost(name):
    """As a folder of images and a GPU have them: the same function."""
    model = seeded(
        settings(name, "cifar10", *(["model.stem=small"] if name.startswith("resnet") and name != "resnet20" else []))
    )
    images = torch.randn(4, 3, 32, 32)
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(1)
        plain = model(images)
        torch.manual_seed(1)
        innermost = model(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(innermost, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_convolutions_see_channels_innermost():
    model = seeded(settings("resnet18", "imagenet", "model.stem=imagenet")).cuda()
    seen = []
    model.layer1.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(torch.randn(2, 3, 64, 64, device="cuda"))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen[0])
    assert all(p.is_contiguous() for p in model.parameters()), "what is saved keeps its order"
