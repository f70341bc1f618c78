"""The models: a name, a typed dataclass and a builder for each; torch is imported only when one is built.

A builder takes its settings and returns a `torch.nn.Module` whose `forward(inputs)` gives logits [..., vocabulary] of
tokens, or [batch, classes] of images; one with `computes_loss` gives the summed loss in `forward(inputs, targets)`.
Settings say what they take in `inputs`, and `fitted(data, name)` gives them with what follows from the open data set,
or raises UserError where the two contradict each other.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.config import Rule, UserError, boolean, integer, mapping, number, one_of, optional, setting, text

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GPTSettings:
    """GPT-2 (Radford et al. 2019), pre-norm; parameter names are nanoGPT's."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(text())
    layers: int = setting(integer(1))
    heads: int = setting(integer(1))
    width: int = setting(integer(1))
    context: int = setting(integer(1))
    vocab_size: int = setting(integer(1))
    bias: bool = setting(boolean())
    dropout: float = setting(number(low=0, high=0.999))
    scale_attn_by_inverse_layer_idx: bool = setting(boolean())

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")

    def fitted(self, data: Any, name: str) -> GPTSettings:
        check_vocabulary(self.vocab_size, data, name)
        return self


@dataclass(frozen=True)
class RobertaSettings:
    """RoBERTa (Liu et al. 2019) as a masked language model, transformers' `RobertaForMaskedLM`.

    context: tokens with <s>; vocab_size: with <mask>, null: the data set's.
    """

    inputs: ClassVar[str] = "masked tokens"
    name: str = setting(text())
    layers: int = setting(integer(1))
    heads: int = setting(integer(1))
    width: int = setting(integer(1))
    context: int = setting(integer(2))
    vocab_size: int | None = setting(optional(integer(6)))
    dropout: float = setting(number(low=0, high=0.999))
    attention_dropout: float = setting(number(low=0, high=0.999))

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")

    def fitted(self, data: Any, name: str) -> RobertaSettings:
        return replace(self, vocab_size=same_vocabulary(self.vocab_size, data, name))


@dataclass(frozen=True)
class AdaptiveLMSettings:
    """fairseq's `transformer_lm` with adaptive input embedding and adaptive softmax, tied (Baevski and Auli 2019).

    vocab_size: null: the data set's. cutoffs: the first token of each band after the first, whose embeddings are
    `factor` times narrower than those of the band before.
    """

    inputs: ClassVar[str] = "tokens"
    name: str = setting(text())
    layers: int = setting(integer(1))
    heads: int = setting(integer(1))
    width: int = setting(integer(4))
    hidden: int = setting(integer(1))
    context: int = setting(integer(1))
    vocab_size: int | None = setting(optional(integer(6)))
    cutoffs: Any = setting(Rule("a list of rising integers", lambda v: _rising([integer(2).parse(c) for c in v])))
    factor: int = setting(integer(1))
    dropout: float = setting(number(low=0, high=0.999))
    attention_dropout: float = setting(number(low=0, high=0.999))
    activation_dropout: float = setting(number(low=0, high=0.999))
    softmax_dropout: float = setting(number(low=0, high=0.999))

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.width % 2:
            raise UserError(f"model.width={self.width}: expected an even one, half of it sines, half cosines")
        if self.width < self.factor ** len(self.cutoffs):
            raise UserError(
                f"model.width={self.width}: too narrow for {len(self.cutoffs) + 1} bands of factor={self.factor}"
            )
        if self.vocab_size is not None and self.vocab_size <= self.cutoffs[-1]:
            raise UserError(f"model.cutoffs={list(self.cutoffs)}: expected all below vocab_size={self.vocab_size}")
        edges = [*self.cutoffs, *([self.vocab_size] if self.vocab_size else [])]
        if any(stop - start < 2 for start, stop in itertools.pairwise(edges)):
            raise UserError(f"model.cutoffs={list(self.cutoffs)}: expected bands of at least two tokens")

    def fitted(self, data: Any, name: str) -> AdaptiveLMSettings:
        return replace(self, vocab_size=same_vocabulary(self.vocab_size, data, name))


def _rising(values: list[int]) -> tuple[int, ...]:
    if not values or sorted(set(values)) != values:
        raise ValueError
    return tuple(values)


@dataclass(frozen=True)
class PythiaSettings:
    """Pythia (Biderman et al. 2023): a GPT-NeoX with parallel residuals and untied embeddings."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(text())
    layers: int = setting(integer(1))
    heads: int = setting(integer(1))
    width: int = setting(integer(1))
    context: int = setting(integer(1))
    vocab_size: int = setting(integer(1))
    dropout: float = setting(number(low=0, high=0.999))

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 8:
            raise UserError(
                f"width={self.width}: expected a multiple of 8 times heads={self.heads}, a quarter of a head is rotated"
            )

    def fitted(self, data: Any, name: str) -> PythiaSettings:
        check_vocabulary(self.vocab_size, data, name)
        return self


@dataclass(frozen=True)
class CustomSettings:
    """A model from outside: `builder=package.module:function`, called as `function(**args)`."""

    inputs: ClassVar[str] = "any"
    name: str = setting(text())
    builder: str = setting(text())
    args: dict[str, Any] | None = setting(optional(mapping()))
    context: int = setting(integer(1))
    vocab_size: int = setting(integer(1))

    def fitted(self, data: Any, name: str) -> CustomSettings:
        check_vocabulary(self.vocab_size, data, name)
        return self


def check_vocabulary(vocab_size: int, data: Any, name: str) -> None:
    if data.classes is None and data.vocab_size > vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size}: expected at least {data.vocab_size}, the vocabulary of dataset={name}"
        )


def same_vocabulary(vocab_size: int | None, data: Any, name: str) -> int:
    """The vocabulary of the data set, which that of the model must be: its last tokens mean something."""
    if vocab_size not in (None, data.vocab_size):
        raise UserError(
            f"model.vocab_size={vocab_size}: the dictionary of dataset={name} has {data.vocab_size:,} symbols; "
            "null follows it"
        )
    return int(data.vocab_size)


@dataclass(frozen=True)
class ImageModelSettings:
    """What every model of images has: the shape of its data, where null the data set's."""

    inputs: ClassVar[str] = "images"
    context: ClassVar[None] = None
    name: str = setting(text())
    channels: int | None = setting(optional(integer(1)))
    image_size: int | None = setting(optional(integer(1)))
    classes: int | None = setting(optional(integer(1)))

    def fitted(self, data: Any, name: str) -> ImageModelSettings:
        found = {key: getattr(data, key) for key in ("channels", "image_size", "classes")}
        for key, there in found.items():
            here = getattr(self, key)
            if here not in (None, there):
                raise UserError(f"model.{key}={here}: the images of dataset={name} have {there}; null follows them")
        return replace(self, **found)


@dataclass(frozen=True)
class LeNetSettings(ImageModelSettings):
    """LeNet-5 (LeCun et al. 1998), for images of 12 pixels or more."""

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 12:
            raise UserError(f"model.image_size={self.image_size}: LeNet needs images of at least 12 pixels")


@dataclass(frozen=True)
class CifarResNetSettings(ImageModelSettings):
    """The ResNet for small images (He et al. 2016, section 4.2) of 6n+2 `layers`, shortcuts without parameters."""

    layers: int = setting(integer(8))

    def __post_init__(self) -> None:
        if self.layers % 6 != 2:
            raise UserError(f"layers={self.layers}: expected 6n+2, such as 20, 32, 44, 56 or 110")


def _resnet_layers() -> Rule:
    def parse(value: Any) -> int:
        if value not in (18, 34, 50):
            raise ValueError
        return int(value)

    return Rule("18, 34 or 50", parse)


@dataclass(frozen=True)
class ResNetSettings(ImageModelSettings):
    """torchvision's ResNet of 18, 34 or 50 `layers`.

    stem: `imagenet`, a 7x7 convolution of stride 2 and a pooling, or `small`, a 3x3 convolution, for small images.
    """

    layers: int = setting(_resnet_layers())
    stem: str = setting(one_of("imagenet", "small"))


@dataclass(frozen=True)
class CCTSettings(ImageModelSettings):
    """The Compact Convolutional Transformer (Hassani et al. 2021): CCT-layers/kernel x convolutions.

    positions: `learned`, `sine` or `none`. stochastic_depth: the share of samples that skip the last layer's branches.
    """

    layers: int = setting(integer(1))
    heads: int = setting(integer(1))
    width: int = setting(integer(1))
    mlp_ratio: float = setting(number(above=0))
    kernel: int = setting(integer(1))
    convolutions: int = setting(integer(1))
    positions: str = setting(one_of("learned", "sine", "none"))
    dropout: float = setting(number(low=0, high=0.999))
    attention_dropout: float = setting(number(low=0, high=0.999))
    stochastic_depth: float = setting(number(low=0, high=0.999))

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")


MODELS: dict[str, tuple[type, str]] = {
    "lenet": (LeNetSettings, "lawa_exp.models.lenet:LeNet"),
    "gpt": (GPTSettings, "lawa_exp.models.gpt:GPT"),
    "roberta": (RobertaSettings, "lawa_exp.models.roberta:Roberta"),
    "adaptive_lm": (AdaptiveLMSettings, "lawa_exp.models.adaptive_lm:AdaptiveLM"),
    "pythia": (PythiaSettings, "lawa_exp.models.pythia:Pythia"),
    "resnet": (ResNetSettings, "lawa_exp.models.resnet:build_resnet"),
    "cct": (CCTSettings, "lawa_exp.models.cct:CCT"),
    "cifar_resnet": (CifarResNetSettings, "lawa_exp.models.cifar_resnet:CifarResNet"),
    "custom": (CustomSettings, "lawa_exp.models:build_custom"),
}


PAPERS_NAMES = {  # by model.name: what the papers call it, which a plan shows beside the true number of parameters
    "gpt2_small": "125M in Sanyal et al.",
    "gpt2_medium": "335M in Sanyal et al.",
    "gpt2_large": "770M in Sanyal et al.",
    "pythia_14m": "Pythia 14M",
    "pythia_31m": "Pythia 31M",
    "pythia_70m": "Pythia 70M",
    "pythia_160m": "Pythia 160M",
    "pythia_410m": "Pythia 410M",
    "pythia_1b": "Pythia 1B",
    "pythia_1.4b": "Pythia 1.4B",
    "pythia_2.8b": "Pythia 2.8B",
    "pythia_6.9b": "Pythia 6.9B",
    "pythia_12b": "Pythia 12B",
    "roberta_base": "RoBERTa-base, 125M in Liu et al.",
    "transformer_lm_wiki103": "247M in fairseq's README",
    "resnet34": "ResNet-34, 21.8M in torchvision for ImageNet",
    "resnet50": "ResNet-50, 25.6M in torchvision for ImageNet",
}


def build_model(settings: Any) -> nn.Module:
    """The module for `settings`, initialised from torch's current random state, on torch's current default device."""
    for cls, builder in MODELS.values():
        if isinstance(settings, cls):
            model = load(builder)(settings)
            if isinstance(settings, ImageModelSettings):
                model.register_forward_pre_hook(channels_last_on_gpu)
            return model
    raise AssertionError(f"no model for {settings}")


def channels_last_on_gpu(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Images with their channels innermost, where a GPU's convolutions want them; what follows has them likewise.

    Weights keep their order, and with it what is saved: they are little beside the images.
    """
    if not inputs[0].is_cuda:
        return None
    import torch

    return inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]


def forward_flops(model: nn.Module, settings: ImageModelSettings) -> int:
    """Of one image, counted by torch in the operations themselves; `model` may be on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    channels, size = settings.channels or 0, settings.image_size or 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, channels, size, size, device=device))
    return counter.get_total_flops()


def build_custom(settings: CustomSettings) -> nn.Module:
    from lawa_exp import custom

    arguments = settings.args or {}
    with custom.imports_checked(settings.builder, "model.builder"):
        builder = custom.load(settings.builder, arguments, "model.builder")
        try:
            inspect.signature(builder).bind(**arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.args={arguments}: {settings.builder} does not take them ({error})") from None
        model = builder(**arguments)
    if not callable(getattr(model, "named_parameters", None)):
        raise UserError(f"model.builder={settings.builder}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def load(reference: str) -> Any:
    """The object behind `package.module:name`."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
