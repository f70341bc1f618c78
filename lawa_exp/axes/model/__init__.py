"""The models: a name, a typed dataclass and a builder for each; torch is imported only when one is built.

A builder takes its settings and returns a `torch.nn.Module` whose `forward(inputs)` gives logits [..., vocabulary] of
tokens, or [batch, classes] of images; one with `computes_loss` gives the summed loss in `forward(inputs, targets)`.
Settings say what they take in `inputs`, and `fitted(data, name)` gives them with what follows from the open data set,
or raises UserError where the two contradict each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

from lawa_exp.axes.model.adaptive_lm.settings import AdaptiveLMSettings
from lawa_exp.axes.model.cct.settings import CCTSettings
from lawa_exp.axes.model.cifar_resnet.settings import CifarResNetSettings
from lawa_exp.axes.model.custom import CustomSettings
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.axes.model.images import ImageModelSettings, channels_last_on_gpu
from lawa_exp.axes.model.lenet.settings import LeNetSettings
from lawa_exp.axes.model.pythia.settings import PythiaSettings
from lawa_exp.axes.model.resnet.settings import ResNetSettings
from lawa_exp.axes.model.roberta.settings import RobertaSettings
from lawa_exp.system.addresses import load

MODELS: dict[str, tuple[type, str]] = {
    "lenet": (LeNetSettings, "lawa_exp.axes.model.lenet.lenet:LeNet"),
    "gpt": (GPTSettings, "lawa_exp.axes.model.gpt.gpt:GPT"),
    "roberta": (RobertaSettings, "lawa_exp.axes.model.roberta.roberta:Roberta"),
    "adaptive_lm": (AdaptiveLMSettings, "lawa_exp.axes.model.adaptive_lm.adaptive_lm:AdaptiveLM"),
    "pythia": (PythiaSettings, "lawa_exp.axes.model.pythia.pythia:Pythia"),
    "resnet": (ResNetSettings, "lawa_exp.axes.model.resnet.resnet:build_resnet"),
    "cct": (CCTSettings, "lawa_exp.axes.model.cct.cct:CCT"),
    "cifar_resnet": (CifarResNetSettings, "lawa_exp.axes.model.cifar_resnet.cifar_resnet:CifarResNet"),
    "custom": (CustomSettings, "lawa_exp.axes.model.custom:build_custom"),
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
