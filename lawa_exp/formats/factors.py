"""Tensors that mean something only together: factors of a product, and codes with their scales.

The mean of a product is not the product of the means. It is where one factor alone differs between the inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lawa_exp.formats.dtypes import FLOATS, OPAQUE
from lawa_exp.formats.stored import Place, count

LORA = re.compile(
    r"(?<![^._/])(lora_(embedding_)?(A|B|a|b|up|down|mid)|lora_magnitude_vector|(hada|lokr)_[wt]\d(_[ab])?|vera_lambda_[bd])"
    r"(?![^._])"
)
NORM = re.compile(r"(?P<stem>.+_)g$|(?P<parametrized>(.+[./])?parametrizations\.[^.]+\.original)0$")  # weight_norm's g
SCALE = re.compile(
    r"(?<![^._/])(scales?(_inv)?|zero_points?|q?zeros|q?scales|absmax|nested_absmax|quant_map|quant_state|SCB)(?![^._])"
)
CODES = {"int8", "uint8", "int16", "int32", *(dtype for dtype in FLOATS if dtype.startswith("float8")), *OPAQUE}


@dataclass(frozen=True)
class Group:
    """names: of the tensors that belong together; codes: of those among them that are no numbers by themselves.

    factors: whether a mean of each by itself is something that one may want.
    """

    names: tuple[str, ...]
    why: str
    factors: bool = True
    codes: tuple[str, ...] = ()


def groups(places: Mapping[str, Place]) -> list[Group]:
    """The groups among a checkpoint's tensors."""
    products: dict[str, list[str]] = {}
    for name in places:
        if LORA.search(name):
            products.setdefault(LORA.sub("*", name).replace(".*.default.", ".*."), []).append(name)
    made = [Group(tuple(names), _LORA) for names in products.values() if len(names) > 1]
    for name in places:
        if g := NORM.match(name):
            v = f"{g['stem']}v" if g["stem"] else f"{g['parametrized']}1"
            if v in places and _fits(places[name].shape, places[v].shape):
                made.append(Group((name, v), _NORM))
    by_module: dict[str, list[str]] = {}
    for name in places:
        if SCALE.search(name):
            by_module.setdefault(_module(name), []).append(name)
    for name, place in places.items():
        scales = [s for s in by_module.get(name.rpartition(".")[0], []) if s != name and not SCALE.search(name)]
        if scales and place.dtype in CODES and count(place.shape) > 1:
            made.append(Group((name, *scales), _CODES, False, () if place.dtype in FLOATS else (name,)))
    return made


def inseparable(group: Group, differs: Callable[[str], bool]) -> bool:
    """Whether a mean of each of its tensors is no mean of what they stand for; differs: between the inputs."""
    if any(differs(name) for name in group.codes):
        return True
    varying = 0
    for name in group.names:
        varying += differs(name)
        if varying > 1:
            return True
    return False


def _module(name: str) -> str:
    """Of a scale: `layer` of `layer.weight_scale` and of `layer.weight.absmax`."""
    parts = name.split(".")
    first = next(i for i, part in enumerate(parts) if SCALE.search(part))
    last = first - 1 if first and parts[first - 1] in ("weight", "qweight") else first
    return ".".join(parts[:last])


def _fits(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Whether g can be the norms of v: as many dimensions, all but one of size 1; or one number."""
    if not g:
        return True
    return len(g) == len(v) and all(a in (1, b) for a, b in zip(g, v, strict=True)) and g != v


_LORA = (
    "are factors of one product, and the mean of A times the mean of B is not the mean of BA, whose rank is the sum of "
    "theirs; merge each adapter into its base model (PEFT: merge_and_unload) and average these, or --each-factor "
    "averages the factors one by one"
)
_NORM = (
    "are weight_norm's length and direction of one weight; take weight_norm off in each checkpoint "
    "(remove_weight_norm, remove_parametrizations) and average these, or --each-factor averages the two one by one"
)
_CODES = (
    "are the codes of quantised weights and what these are scaled by, which have no mean; average the checkpoints from "
    "before they were quantised, or dequantised ones"
)
