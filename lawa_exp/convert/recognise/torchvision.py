"""torchvision's reference script for classification: `args.model` in model_*.pth and checkpoint.pth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lawa_exp.convert.recognise.recognised import IMAGES, Looked, Recognised
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

OLD_SCRIPT = {"pretrained", "cache_dataset", "test_only"}  # before 0.12; `pretrained` others' scripts have too


def recognise(looked: Looked) -> Recognised | None:
    """UserError: torchvision has a model of this name for something else than classification."""
    args = looked.arguments("args")
    name = args.get("model")
    if not isinstance(name, str) or not ("weights" in args or args.keys() >= OLD_SCRIPT):
        return None
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(
            f"{looked.path}: args.model={name} is no model of torchvision for classification; give --model "
            "MODULE:FUNCTION, and --evaluate where it is no classifier"
        )
    classes = _classes(looked, name)

    def build() -> nn.Module:
        made: nn.Module = models.get_model(name, weights=None, num_classes=classes)
        return made

    return Recognised(
        f"torchvision's {name}", IMAGES, build, classes=classes, transform=lambda _: _transform(name, args)
    )


def _classes(looked: Looked, name: str) -> int:
    """From the weights of the last layer that has some."""
    import torch
    from torch import nn
    from torchvision import models

    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if (shape := looked.shape_of(f"{last}.weight")) is None:
        raise UserError(f"{looked.path}: it has no {last}.weight, which torchvision's {name} has")
    return shape[0]


def _transform(name: str, args: Mapping[str, Any]) -> tuple[Callable[[Any], Tensor], str]:
    """The script's own evaluation, with its sizes; else that of the published weights of this model."""
    from torchvision import models
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    resize, crop = args.get("val_resize_size"), args.get("val_crop_size")
    if "weights" not in args and resize is None:  # a script of before 0.12, which had these sizes for all models
        resize, crop = (342, 299) if name == "inception_v3" else (256, 224)
    if isinstance(resize, int) and isinstance(crop, int):
        interpolation = InterpolationMode(str(args.get("interpolation", "bilinear")))
        made = ImageClassification(crop_size=crop, resize_size=resize, interpolation=interpolation)
        return made, f"the script's evaluation transform: resize {resize}, centre crop {crop}, {interpolation.value}"
    made = models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    return made, f"the transform of torchvision's published {name}: {' '.join(str(made).split())}"
