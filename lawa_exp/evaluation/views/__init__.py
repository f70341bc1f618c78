"""Views: other ways to evaluate the same weights, `readout --view NAME`. One file is one view, made of tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from lawa_exp.config.rules import near
from lawa_exp.config.tables import Table
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class View(Protocol):
    """description: what a view makes of the weights, for people."""

    description: ClassVar[str]

    def __call__(self, tensors: Mapping[str, Tensor], averaged: Collection[str]) -> dict[str, Tensor]:
        """The tensors by name as the view has them: the same names, shapes and dtypes. What came in stays as it is.

        averaged: the names of the floating-point parameters; the others are buffers, such as BatchNorm's statistics.
        """
        ...


VIEWS: Table[View] = Table(__name__, bfloat16="bfloat16:Bfloat16", int8="int8:Int8")


def views_named(names: Iterable[str]) -> dict[str, View]:
    """By name, in this order. UserError lists the choices."""
    views: dict[str, View] = {}
    for name in names:
        if name not in VIEWS:
            raise UserError(f"--view={name}: {near(name, VIEWS)}")
        views[name] = VIEWS[name]()
    return views


def view_field(name: str | None) -> dict[str, str]:
    """How a view stands in a row; the plain weights add nothing."""
    return {} if name is None else {"view": name}
