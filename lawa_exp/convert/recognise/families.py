"""The families of models that are recognised, and which of them a checkpoint is of."""

from __future__ import annotations

from collections.abc import Callable

from lawa_exp.convert.recognise import builder, hugging_face, nanogpt, timm, torchvision
from lawa_exp.convert.recognise.recognised import Looked, Recognised
from lawa_exp.system.errors import UserError

FAMILIES: dict[str, Callable[[Looked], Recognised | None]] = {  # by the sign that each is known by
    "nanoGPT's model_args": nanogpt.recognise,
    "a Hugging Face config.json": hugging_face.recognise,
    "timm's arch": timm.recognise,
    "torchvision's args.model": torchvision.recognise,
}


def recognise(looked: Looked, reference: str | None = None) -> Recognised:
    """The model of a checkpoint. reference: `module:function` that builds it, which the user named.

    UserError: no family knows it, or one does and cannot build it.
    """
    if reference is not None:
        return builder.named(looked, reference)
    for family in FAMILIES.values():
        if (known := family(looked)) is not None:
            return known
    inside = ", ".join(map(str, list(looked.content)[:8])) or ", ".join(list(looked.shapes)[:3])
    raise UserError(
        f"{looked.path}: which model this is of is not known ({' or '.join(FAMILIES)} would say it; it has {inside}); "
        "give --model MODULE:FUNCTION, a function without arguments that returns the torch.nn.Module"
    )
