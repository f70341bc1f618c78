"""Which of the mappings in a checkpoint is the state dict that is averaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from lawa_exp.system.errors import UserError

Tensor = TypeVar("Tensor")
Key = tuple[object, ...]  # from the top

WEIGHTS = ("model", "state_dict", "model_state_dict")  # nanoGPT and fairseq, Lightning, many loops
TOP = "."  # --key of the top level
DEPTH = 3  # of mappings in which state dicts are looked for
NO_WEIGHTS = re.compile(
    r"optim|sched|scaler|rng|random|hyper|hparams|config|(^|_)(args|grads?|gradients|loops|callbacks?|stats|metrics)(_|$)",
    re.IGNORECASE,
)
SECOND = re.compile(r"(?i:(?<![a-z])(ema|swa|averaged?|avg|shadow|polyak|best)(?![a-z]))|EMA")


@dataclass(frozen=True)
class StateDict(Generic[Tensor]):
    """key: where it is. tensors: by name, of mappings in it with dots. others: the names of what is no tensor."""

    key: Key
    tensors: dict[str, Tensor]
    others: list[str]


class Finder(Generic[Tensor]):
    """Finds state dicts in nested mappings. tensor_of: the tensor that a value is; large: may be weights."""

    def __init__(self, tensor_of: Callable[[object], Tensor | None], large: Callable[[Tensor], bool]) -> None:
        self.tensor_of, self.large = tensor_of, large

    def find(self, top: Mapping[object, object], key: str | None = None) -> StateDict[Tensor]:
        """That under `key`, dots between the levels; else under one of `WEIGHTS`, on top, or the only one there is.

        An EMA and the like is none while there is another. UserError lists the keys where there are several, or none.
        """
        if key is not None:
            return self._at(top, key)
        for word in WEIGHTS:
            if isinstance(inner := top.get(word), Mapping) and self._tensors(inner):
                return self._read((word,), inner)
        nested = any(isinstance(value, Mapping) and self._tensors(value) for value in top.values())
        if self._tensors(top) and not nested:
            return self._read((), top)
        keys = list(self.keys(top))
        keys = [k for k in keys if not is_second(k)] or keys
        if len(keys) == 1:
            return self._read(keys[0], value_at(top, keys[0]))
        if keys:
            raise UserError(f"several state dicts; choose one with --key: {_listed(keys)}")
        raise UserError(f"no state dict found; it has {', '.join(str(k) for k in list(top)[:10]) or 'nothing'}")

    def keys(self, top: object, depth: int = DEPTH) -> Iterator[Key]:
        """Where mappings with weights of their own are; those in a state dict belong to it."""
        if not isinstance(top, Mapping) or "param_groups" in top:
            return
        if any(map(self.large, self._tensors(top).values())):
            yield ()
            if depth < DEPTH:
                return
        for key, value in top.items():
            if depth and not NO_WEIGHTS.search(str(key)):
                yield from ((key, *inner) for inner in self.keys(value, depth - 1))

    def _at(self, top: Mapping[object, object], key: str) -> StateDict[Tensor]:
        found = () if key == TOP else _resolved(top, key)
        value = None if found is None else value_at(top, found)
        if found is None or not isinstance(value, Mapping) or not (made := self._read(found, value, True)).tensors:
            what = "there is no such key" if found is None else "no state dict"
            keys = list(self.keys(top))
            raise UserError(f"--key={key}: {what}; state dicts: {_listed(keys) if keys else 'none'}")
        return made

    def _read(self, key: Key, mapping: object, deep: bool = False) -> StateDict[Tensor]:
        """deep: with the mappings in it."""
        assert isinstance(mapping, Mapping)
        tensors: dict[str, Tensor] = {}
        others: list[str] = []
        for name, value in mapping.items():
            tensor = self.tensor_of(value)
            if tensor is not None:
                tensors[str(name)] = tensor
            elif deep and isinstance(value, Mapping) and not ("param_groups" in value or NO_WEIGHTS.search(str(name))):
                inner = self._read((), value, True)
                tensors |= {f"{name}.{n}": t for n, t in inner.tensors.items()}
            elif key:  # beside the tensors of a plain file there may be anything
                others.append(str(name))
        return StateDict(key, tensors, others)

    def _tensors(self, mapping: Mapping[object, object]) -> dict[str, Tensor]:
        entries = ((str(name), self.tensor_of(value)) for name, value in mapping.items())
        return {name: tensor for name, tensor in entries if tensor is not None}


def is_second(key: Key) -> bool:
    """Whether a key says that it has a second copy of the weights."""
    return any(SECOND.search(str(part)) for part in key)


def value_at(top: object, key: Key) -> object:
    for part in key:
        assert isinstance(top, Mapping)
        top = top[part]
    return top


def text_of(key: Key) -> str:
    """As --key takes it."""
    return ".".join(map(str, key)) or TOP


def _resolved(top: object, text: str) -> Key | None:
    """The keys that `text` names, the longest first where keys have dots themselves."""
    if not isinstance(top, Mapping):
        return None
    parts = text.split(".")
    by_text = {str(key): key for key in top}
    for i in range(len(parts), 0, -1):
        own = by_text.get(".".join(parts[:i]))
        if own is not None:
            rest = () if i == len(parts) else _resolved(top[own], ".".join(parts[i:]))
            if rest is not None:
                return (own, *rest)
    return None


def _listed(keys: list[Key]) -> str:
    texts = [text_of(key) for key in keys]
    parents = {text_of(key[:-1]) for key in keys if key}
    several = [p for p in sorted(parents) if sum(text_of(k[:-1]) == p for k in keys if k) > 1]
    more = f" (or all of them: {several[0]})" if len(several) == 1 else ""
    return ", ".join(texts[:10]) + (", ..." if len(texts) > 10 else "") + more
