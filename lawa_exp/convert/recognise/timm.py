"""timm: its training script writes `arch` and `args`; the model's evaluation transform is timm's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lawa_exp.convert.recognise.recognised import IMAGES, Looked, Recognised
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SCRIPT = {"global_pool": "gp", "bn_eps": "bn_eps"}  # what create_model takes, and as timm's script has it
DATA = (
    "img_size",
    "input_size",
    "in_chans",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "crop_mode",
)  # as its validate.py takes


def recognise(looked: Looked) -> Recognised | None:
    """UserError: timm is not installed, or has no such model."""
    arch, args = looked.content.get("arch"), looked.arguments("args")
    if not isinstance(arch, str):
        return None
    try:
        import timm
    except ImportError:
        raise UserError(f"{looked.path}: arch={arch} looks like timm's: pip install timm") from None
    if not timm.is_model(arch):  # names of the hub are none: nothing is fetched
        raise UserError(
            f"{looked.path}: arch={arch} is no model of timm {timm.__version__}; give --model MODULE:FUNCTION"
        )
    channels = args.get("in_chans")
    given: dict[str, Any] = {"in_chans": channels} if isinstance(channels, int) else {}
    classes = _classes(looked, arch)
    given |= {"num_classes": classes} if classes else {}
    given |= {name: v for name, key in SCRIPT.items() if (v := args.get(key)) is not None}
    more = args.get("model_kwargs") or {}
    if not isinstance(more, dict):
        raise UserError(f"{looked.path}: args.model_kwargs is {type(more).__name__}; give --model MODULE:FUNCTION")
    given |= more
    image_size = args.get("img_size")

    def build() -> nn.Module:
        sizes: list[dict[str, Any]] = [{"img_size": image_size}, {}] if isinstance(image_size, int) else [{}]
        for size in sizes:  # convolutional networks take none
            try:
                return timm.create_model(arch, pretrained=False, **given, **size)
            except TypeError as error:
                if not size:
                    raise UserError(f"{looked.path}: timm cannot build {arch} ({error})") from None
        raise AssertionError

    def transform(model: nn.Module) -> tuple[Callable[[Any], Tensor], str]:
        from timm.data import create_transform, resolve_data_config

        config = resolve_data_config({k: v for k in DATA if (v := args.get(k)) is not None}, model=model)
        size = "x".join(map(str, config["input_size"]))
        how = f"timm's evaluation transform of {arch}: {size}, {config['interpolation']}, crop {config['crop_pct']:g}"
        made: Callable[[Any], Tensor] = create_transform(**config, is_training=False)
        return made, how

    return Recognised(
        f"timm's {arch}", IMAGES, build, classes=classes, transform=transform, channels=given.get("in_chans", 3)
    )


def _classes(looked: Looked, arch: str) -> int | None:
    """From the weights of the classifier; None where timm does not name it."""
    import timm

    config = timm.get_pretrained_cfg(arch)
    name = config.classifier if config is not None else None
    name = name[0] if isinstance(name, list | tuple) and name else name
    shape = looked.shape_of(f"{name}.weight") if name else None
    return shape[0] if shape else None
