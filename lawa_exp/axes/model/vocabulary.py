"""Whether a model's vocabulary is that of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    pass


def check_vocabulary(vocab_size: int, data: Any, name: str) -> None:
    if data.classes is None and data.vocab_size > vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size}: expected at least {data.vocab_size}, the vocabulary of dataset={name}"
        )


def same_vocabulary(vocab_size: int | None, data: Any, name: str) -> int:
    """The vocabulary of the data set, which that of the model must be: its last tokens mean something."""
    if vocab_size not in (None, data.vocab_size):
        raise UserError(
            f"model.vocab_size={vocab_size}: the dictionary of dataset={name} has {data.vocab_size:,} symbols; "
            "null follows it"
        )
    return int(data.vocab_size)
