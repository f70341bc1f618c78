"""The models: a name and a typed dataclass for each (`ModelSettings`); torch is imported when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.axes.model.settings import ModelSettings

MODELS: Table[ModelSettings] = Table(
    __name__,
    lenet="lenet:LeNetSettings",
    gpt="gpt.settings:GPTSettings",
    roberta="roberta.settings:RobertaSettings",
    adaptive_lm="adaptive_lm.settings:AdaptiveLMSettings",
    pythia="pythia.settings:PythiaSettings",
    resnet="resnet:ResNetSettings",
    cct="cct.settings:CCTSettings",
    cifar_resnet="cifar_resnet.settings:CifarResNetSettings",
    auto="auto:AutoSettings",
    custom="custom:CustomSettings",
)
