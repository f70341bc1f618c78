"""Second copies of the weights in a checkpoint: an EMA, the best so far, an optimizer's master weights.

A loader may take one of them first, as timm's takes `state_dict_ema`, and would then load no average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lawa_exp.formats.matching import canonical
from lawa_exp.formats.stored import count

Shape = tuple[int, ...]


class Copies:
    """Tells second copies of `weights` (shapes by name) from everything else, by structure.

    shape_of: the shape of a floating-point tensor that is none of the weights themselves; None of anything else. A copy
    is a mapping whose tensors all have a weight's name, perhaps behind a prefix, and its shape; or lists of tensors of
    the weights' shapes, of at least half of them. Tensors of one element (`n_averaged`, `steps`) say nothing.
    """

    def __init__(self, weights: Mapping[str, Shape], shape_of: Callable[[Any], Shape | None]) -> None:
        full = {canonical(name): shape for name, shape in weights.items()}
        common = _common_prefix(list(full))
        self.shape_by_name = {name.removeprefix(common): shape for name, shape in full.items()} | full
        self.shapes = Counter(shape for shape in full.values() if count(shape) > 1)
        self.shape_of = shape_of

    def drop(self, content: Any, seen: set[int] | None = None) -> list[str]:
        """Takes the copies out of nested mappings and lists, in place; returns where they were."""
        seen = set() if seen is None else seen
        seen.add(id(content))
        dropped = []
        for key, value in _entries(content):
            if self.is_copy(value):
                dropped.append(str(key))
                del content[key]
            elif id(value) not in seen:
                inside = self.drop(value, seen)
                dropped += [f"{key}.{where}" for where in inside]
                if inside and not value:
                    del content[key]
        return dropped

    def is_copy(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            tensors = [(str(name), shape) for name, shape in self._tensors(value.items())]
            return bool(tensors) and all(self._is_weight(name, shape) for name, shape in tensors)
        if isinstance(value, list | tuple):
            inner = [part for part in value if isinstance(part, list | tuple)]
            shapes = Counter(shape for part in (value, *inner) for _, shape in self._tensors(enumerate(part)))
            return 0 < self.shapes.total() <= 2 * shapes.total() and shapes <= self.shapes
        return False

    def _tensors(self, items: Any) -> Iterator[tuple[Any, Shape]]:
        for key, value in items:
            shape = self.shape_of(value)
            if shape is not None and count(shape) > 1:
                yield key, shape

    def _is_weight(self, name: str, shape: Shape) -> bool:
        parts = canonical(name).split(".")
        return any(self.shape_by_name.get(".".join(parts[i:])) == shape for i in range(len(parts)))


def _entries(content: Any) -> list[tuple[Any, Any]]:
    """Of a mapping but for an optimizer's state; of a list, from its end, so that entries can be deleted."""
    if isinstance(content, Mapping):
        return [(k, v) for k, v in content.items() if not (k == "state" and "param_groups" in content)]
    return list(enumerate(content))[::-1] if isinstance(content, list) else []


def _common_prefix(names: list[str]) -> str:
    """What all names begin with, up to a dot (`model.`)."""
    parts = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return "".join(f"{part}." for part in common)
