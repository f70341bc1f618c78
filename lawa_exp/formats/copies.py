"""Second copies of the weights in a checkpoint: an EMA, the best so far, an optimizer's master weights.

A loader may take one of them first, as timm's takes `state_dict_ema`, and would then load no average. Their keys have
to say what they are: a second network of the same architecture (`model2`, `G_B`) is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence

from lawa_exp.formats.matching import canonical, common_prefix
from lawa_exp.formats.pickles import Inert, Tensor, walk
from lawa_exp.formats.stored import STATISTICS, count

Shape = tuple[int, ...]
SAID = re.compile(  # that it is a copy; with EMA anywhere, as in ModelEMA
    r"(?i:(?<![a-z])(emas?|swag?|lawa|averaged?|averages|averaging|avg|shadow|polyak|best|master|fp32"
    r"|current_model_state|slow_(weights|params|parameters|buffers?))(?![a-z]))|EMA|SWA"  # Lightning's; Lookahead's
)
KEPT = re.compile(
    r"(^|_)(teacher|target|discriminator|critic|fisher|importance|masks?|old|init|initial|grads?|gradients)(_|$)",
    re.IGNORECASE,
)


class Copies:
    """Tells second copies of `weights` (shapes by name) from everything else, by their keys and structure.

    shape_of: the shape of a floating-point tensor that is none of the weights themselves; None of anything else. A copy
    is a mapping in which at least half of the weights have their names (behind a common prefix) and shapes, and which
    they are at least half of; a list or an object with at least nine tenths of the weights' shapes and no others, which
    lacks buffers and the second names of tied weights; or a tuple with one of these. Tensors of one element
    (`n_averaged`, `steps`) say nothing. Mappings whose keys say that they are something else (`KEPT`) are none.
    """

    def __init__(self, weights: Mapping[str, Shape], shape_of: Callable[[object], Shape | None]) -> None:
        full = {canonical(name): shape for name, shape in weights.items() if count(shape) > 1}
        common = common_prefix(list(full))
        self.shape_by_name = {name.removeprefix(common): shape for name, shape in full.items()} | full
        self.shapes = Counter(full.values())
        self.averaged = sum(not STATISTICS.search(name) for name in full)
        self.shape_of = shape_of
        self.judged: dict[int, bool] = {}  # by id: a list may hold another a million times

    def drop(self, content: object, seen: set[tuple[int, bool]] | None = None, is_said: bool = False) -> list[str]:
        """Takes the copies out of nested mappings and lists, in place; returns where they were.

        is_said: by a key above it.
        """
        seen = set() if seen is None else seen
        seen.add((id(content), is_said))
        dropped = []
        for key, value in _entries(content):
            if KEPT.search(str(key)):
                continue
            is_its = is_said or SAID.search(str(key)) is not None
            if is_its and self.is_copy(value):
                dropped.append(str(key))
                _delete(content, key)
            elif (id(value), is_its) not in seen:
                inside = self.drop(value, seen, is_its)
                dropped += [f"{key}.{where}" for where in inside]
                if inside and not value and not isinstance(content, tuple):
                    _delete(content, key)
        return dropped

    def is_copy(self, value: object) -> bool:
        if id(value) not in self.judged:
            self.judged[id(value)] = self._is_copy(value)
        return self.judged[id(value)]

    def _is_copy(self, value: object) -> bool:
        if isinstance(value, Mapping):
            return self._is_named(dict(self._tensors(value.items())))
        if isinstance(value, tuple) and any(self.is_copy(part) for part in value):
            return True
        if isinstance(value, Inert):
            return self._has_shapes([part for part in walk(value) if isinstance(part, Tensor)])
        if isinstance(value, list | tuple):
            inner = {id(part): part for part in value if isinstance(part, list | tuple)}
            return self._has_shapes([item for part in (value, *inner.values()) for item in part])
        return False

    def _has_shapes(self, values: Sequence[object]) -> bool:
        shapes = Counter(shape for _, shape in self._tensors(enumerate(values)))
        return 0 < 9 * self.averaged <= 10 * shapes.total() and shapes <= self.shapes

    def _tensors(self, items: Iterable[tuple[object, object]]) -> Iterator[tuple[object, Shape]]:
        for key, value in items:
            shape = self.shape_of(value)
            if shape is not None and count(shape) > 1:
                yield key, shape

    def _is_named(self, tensors: Mapping[object, Shape]) -> bool:
        by_prefix: dict[str, dict[str, str]] = {}  # names of weights by names of tensors
        for name, shape in tensors.items():
            parts = canonical(str(name)).split(".")
            for i in range(len(parts)):
                weight = ".".join(parts[i:])
                if self.shape_by_name.get(weight) == shape:
                    by_prefix.setdefault(".".join(parts[:i]), {})[str(name)] = weight
        copied: set[str] = set()
        for names in by_prefix.values():
            if 0 < self.averaged <= 2 * sum(not STATISTICS.search(weight) for weight in names.values()):
                copied |= names.keys()
        return 0 < len(tensors) <= 2 * len(copied)


def _entries(content: object) -> list[tuple[object, object]]:
    """Of a mapping but for an optimizer's state; of a list, from its end, so that entries can be deleted."""
    if isinstance(content, Mapping):
        return [(k, v) for k, v in content.items() if not (k == "state" and "param_groups" in content)]
    numbered: list[tuple[object, object]] = []
    if isinstance(content, list | tuple):
        numbered += enumerate(content)
    return numbered[::-1]


def _delete(content: object, key: object) -> None:
    """Takes out an entry that `_entries` gave."""
    if isinstance(content, MutableMapping):
        del content[key]
    else:
        assert isinstance(content, list) and isinstance(key, int)
        del content[key]
