"""Tables of choices: a name and the address of a settings class for each, which is imported when it is looked up."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

T_co = TypeVar("T_co", covariant=True)  # what the classes of a table have in common


class Table(Mapping[str, type[T_co]]):
    """`Table(__name__, cosine="cosine:Cosine")` in the package of a group: table["cosine"] is its `cosine.Cosine`.

    An address, "module:Class", starts in the package, and is where the class is defined. Length, order and `in` import
    nothing; a choice that is not looked up costs nothing.
    """

    def __init__(self, package: str, /, **addresses: str) -> None:
        self._addresses = {name: f"{package}.{address}" for name, address in addresses.items()}
        self._names = {address: name for name, address in self._addresses.items()}

    def __getitem__(self, name: str) -> type[T_co]:
        module, _, cls = self._addresses[name].partition(":")
        settings: type[T_co] = getattr(importlib.import_module(module), cls)
        return settings

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)

    def __contains__(self, name: object) -> bool:
        return name in self._addresses

    def kind_of(self, settings: object) -> str:
        """The name of the choice that `settings` are of, by the address of their class: no other class is imported."""
        return self.name_of(type(settings))

    def name_of(self, cls: type) -> str:
        """The name of a choice's class."""
        address = f"{cls.__module__}:{cls.__qualname__}"
        assert address in self._names, f"{address} is in no line of this table: {', '.join(self)}"
        return self._names[address]
