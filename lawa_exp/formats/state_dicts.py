"""Which of the mappings in a checkpoint is the state dict that is averaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from lawa_exp.formats.dtypes import FLOATS
from lawa_exp.formats.pickles import Inert, Storage, address_of
from lawa_exp.system.errors import UserError

Tensor = TypeVar("Tensor")
Key = tuple[object, ...]  # from the top
PLAIN = (Mapping, list, tuple)  # containers that may be part of a state dict
CONTAINERS = (*PLAIN, set, frozenset, Inert)
LONGEST_KEY, LONGEST_NAME = 20, 1 << 16  # parts, letters; what lies deeper is of the key so far, or refused

WEIGHTS = ("model", "state_dict", "model_state_dict")  # nanoGPT and fairseq, Lightning, many loops
TOP = "."  # --key of the top level
DEPTH = 3  # of mappings in which state dicts are looked for
NO_WEIGHTS = re.compile(  # keys of a training's own state, whatever tensors are under them
    r"optimi[sz]er|scheduler|(^|[_.])(optims?|sched|scaler|rngs?|random_?states?|hyper_?parameters|h_?params(_\w+)?|configs?|"
    r"args|grads?|gradients|loops|callbacks?|stats|metrics)([_.]?(states?|dicts?|all|\d+))*$",
    re.IGNORECASE,
)
SECOND = re.compile(r"(?i:(?<![a-z])(ema|swa|averaged?|avg|shadow|polyak|best)(?![a-z]))|EMA")


@dataclass(frozen=True)
class StateDict(Generic[Tensor]):
    """key: where it is. tensors: by name, of containers in it with dots. others: the names of what is no tensor."""

    key: Key
    tensors: dict[str, Tensor]
    others: list[str]


class Finder(Generic[Tensor]):
    """Finds state dicts in nested mappings and lists.

    tensor_of: the tensor that a value is; floats: the elements of one of floating-point numbers, 0 of another.
    """

    def __init__(self, tensor_of: Callable[[object], Tensor | None], floats: Callable[[Tensor], int]) -> None:
        self.tensor_of, self.floats = tensor_of, floats

    def find(self, top: Mapping[object, object], key: str | None = None) -> StateDict[Tensor]:
        """That under `key`, dots between the levels; else under one of `WEIGHTS`, on top, or the only one there is.

        An EMA and the like is none while there is another. UserError lists the keys where there are several, or none,
        and what a state dict holds in mappings, lists or objects: with `key` mappings and lists belong to it.
        """
        if key is not None:
            return self._at(top, key)
        chosen: Key | None = next(((word,) for word in WEIGHTS if self._has_tensors(top.get(word))), None)
        if chosen is None:
            keys = list(self.keys(top))
            keys = [k for k in keys if not is_second(k)] or keys
            if len(keys) > 1:
                raise UserError(f"several state dicts; choose one with --key: {_listed(keys)}")
            if not keys and not self._has_tensors(top):
                raise UserError(f"no state dict found; it has {', '.join(str(k) for k in list(top)[:10]) or 'nothing'}")
            chosen = keys[0] if keys else ()
        made = self._read(chosen, value_at(top, chosen))
        if made.key:
            self._refuse_hidden(top, made, is_keyed=False)
        return made

    def keys(self, top: object, depth: int = DEPTH, seen: set[tuple[int, int]] | None = None) -> Iterator[Key]:
        """Where mappings with weights of their own are; those in a state dict belong to it. seen: places and depths."""
        seen = set() if seen is None else seen
        if (id(top), depth) in seen:
            return
        seen.add((id(top), depth))
        if isinstance(top, Mapping) and "param_groups" not in top:
            if any(self.floats(tensor) > 1 for tensor in self._tensors(top)):
                yield ()
                if depth < DEPTH:
                    return
        elif not isinstance(top, list | tuple):
            return
        for key, value in parts_of(top):
            if depth and not NO_WEIGHTS.search(str(key)):
                yield from ((key, *inner) for inner in self.keys(value, depth - 1, seen))

    def others(self, top: object, is_taken: Callable[[Tensor], bool], is_whole: bool = True) -> dict[Key, object]:
        """The containers and objects that hold floating-point tensors, and those on the top level themselves.

        is_taken: whether a tensor does not count. Optimizers' states are passed over, and of a whole file the single
        numbers where a key says that there are no weights, such as the scores of `callbacks`.
        """
        found: dict[Key, object] = {}
        seen = {id(top)}
        stack: list[tuple[object, Key, object]] = [(top, (), top)]  # what is in an object has the object's key
        while stack:
            container, own, holder = stack.pop()
            inner: list[tuple[object, Key, object]] = []
            for key, value in parts_of(container):
                if (tensor := self.tensor_of(value)) is not None:
                    is_score = is_whole and self.floats(tensor) == 1 and _is_no_weights((*own, key))
                    if self.floats(tensor) and not is_score and not is_taken(tensor):
                        found.setdefault(own or (key,), holder)
                elif isinstance(value, Storage) and (value.dtype or "float32") in FLOATS:
                    found.setdefault(own or (key,), holder)
                elif isinstance(value, CONTAINERS) and id(value) not in seen and not is_optimizer(value):
                    seen.add(id(value))
                    is_inside = isinstance(holder, Inert) or len(own) == LONGEST_KEY
                    inner.append((value, own, holder) if is_inside else (value, (*own, key), value))
            stack += reversed(inner)
        return found

    def _at(self, top: Mapping[object, object], key: str) -> StateDict[Tensor]:
        found = () if key == TOP else _resolved(top, key)
        value = None if found is None else value_at(top, found)
        if found is None or not (made := self._read(found, value, True)).tensors:
            what = "there is no such key" if found is None else "no state dict"
            keys = list(self.keys(top))
            raise UserError(f"--key={key}: {what}; state dicts: {_listed(keys) if keys else 'none'}")
        self._refuse_hidden(top, made, is_keyed=True)
        return made

    def _read(self, key: Key, container: object, deep: bool = False) -> StateDict[Tensor]:
        """deep: with the mappings and lists in it, each once."""
        made: StateDict[Tensor] = StateDict(key, {}, [])
        seen = {id(container)}
        stack = [("", part, value) for part, value in parts_of(container)] if isinstance(container, PLAIN) else []
        stack.reverse()
        while stack:
            before, part, value = stack.pop()
            name = f"{before}{part}"
            if len(name) > LONGEST_NAME:
                raise UserError(f"{name[:40]}... is a name of more than {LONGEST_NAME:,} letters")
            tensor = self.tensor_of(value)
            if tensor is not None and made.tensors.setdefault(name, tensor) is not tensor:
                raise UserError(f"two tensors in {text_of(key)} are called {name}")
            is_part = deep and isinstance(value, PLAIN) and not (is_optimizer(value) or NO_WEIGHTS.search(str(part)))
            if tensor is None and is_part:
                if id(value) not in seen:
                    seen.add(id(value))
                    stack += [(f"{name}.", *entry) for entry in parts_of(value)][::-1]
            elif tensor is None and key:  # beside the tensors of a plain file there may be anything
                made.others.append(name)
        return made

    def _refuse_hidden(self, top: object, made: StateDict[Tensor], is_keyed: bool) -> None:
        """UserError names what is no tensor in the state dict, but holds some that would not be averaged."""
        own = set(map(id, made.tensors.values()))
        for key, holder in self.others(value_at(top, made.key), lambda tensor: id(tensor) in own, False).items():
            if is_keyed and (not made.key or _is_no_weights(key)):
                continue
            name = text_of(key)
            if isinstance(holder, Inert):
                raise UserError(f"{name} is {kind_of(holder)}, which holds tensors that are not averaged")
            if not is_keyed:
                whole, part = text_of(made.key), text_of((*made.key, *key))
                raise UserError(f"{part} has weights, too; --key={whole} averages all in {whole}, --key={part} these")

    def _has_tensors(self, container: object) -> bool:
        return isinstance(container, Mapping) and any(True for _ in self._tensors(container))

    def _tensors(self, mapping: Mapping[object, object]) -> Iterator[Tensor]:
        return (tensor for tensor in map(self.tensor_of, mapping.values()) if tensor is not None)


def parts_of(holder: object) -> Iterable[tuple[object, object]]:
    """What a mapping, a list or an object that is carried along holds, by keys, places, or `*`."""
    if isinstance(holder, Mapping):
        return holder.items()
    if isinstance(holder, Inert):
        return (("*", part) for part in holder.inside())
    assert isinstance(holder, list | tuple | set | frozenset)
    return enumerate(holder)


def kind_of(value: object) -> str:
    """For messages."""
    address = address_of(value)
    return ".".join(address) if address else f"a {type(value).__name__}"


def is_optimizer(value: object) -> bool:
    return isinstance(value, Mapping) and "param_groups" in value


def _is_no_weights(key: Key) -> bool:
    return any(NO_WEIGHTS.search(str(part)) for part in key)


def is_second(key: Key) -> bool:
    """Whether a key says that it has a second copy of the weights."""
    return any(SECOND.search(str(part)) for part in key)


def value_at(top: object, key: Key) -> object:
    for part in key:
        top = top[part]  # type: ignore[index]
    return top


def text_of(key: Key) -> str:
    """As --key takes it."""
    return ".".join(map(str, key)) or TOP


def _resolved(top: object, text: str) -> Key | None:
    """The keys that `text` names, the longest first where keys have dots themselves."""
    if not isinstance(top, PLAIN):
        return None
    parts = text.split(".")
    by_text = {str(key): key for key, _ in parts_of(top)}
    for i in range(len(parts), 0, -1):
        own = by_text.get(".".join(parts[:i]))
        if own is not None:
            rest = () if i == len(parts) else _resolved(value_at(top, (own,)), ".".join(parts[i:]))
            if rest is not None:
                return (own, *rest)
    return None


def _listed(keys: list[Key]) -> str:
    texts = [text_of(key) for key in keys]
    parents = {text_of(key[:-1]) for key in keys if key}
    several = [p for p in sorted(parents) if sum(text_of(k[:-1]) == p for k in keys if k) > 1]
    more = f" (or all of them: {several[0]})" if len(several) == 1 else ""
    return ", ".join(texts[:10]) + (", ..." if len(texts) > 10 else "") + more
