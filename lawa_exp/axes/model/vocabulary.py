"""Whether a model's vocabulary is that of the data."""

from __future__ import annotations

from typing import Any

from lawa_exp.config.rules import integer, optional, setting
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError


def vocabulary() -> Any:
    """The setting: an integer, or null until `fitted_vocabulary`."""
    return setting(optional(integer(1)), "number of tokens of the vocabulary; null: that of the data set")


def fitted_vocabulary(vocab_size: int | None, data: DatasetFacts, name: str) -> int:
    """That of the model; null follows the data set. UserError: the data set's is larger."""
    if vocab_size is None:
        if data.vocab_size is None:
            raise UserError(f"model.vocab_size is missing: dataset={name} has no vocabulary that it could follow")
        return data.vocab_size
    check_vocabulary(vocab_size, data, name)
    return vocab_size


def check_vocabulary(vocab_size: int, data: DatasetFacts, name: str) -> None:
    if data.vocab_size is not None and data.vocab_size > vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size}: expected at least {data.vocab_size}, the vocabulary of dataset={name}; "
            f"give model.vocab_size={data.vocab_size}, or, of tokens in a smaller vocabulary, dataset.vocab_size"
        )


def same_vocabulary(vocab_size: int | None, data: DatasetFacts, name: str) -> int:
    """The vocabulary of the data set, which that of the model must be: its last tokens mean something."""
    assert data.vocab_size is not None, name
    if vocab_size not in (None, data.vocab_size):
        raise UserError(
            f"model.vocab_size={vocab_size}: the dictionary of dataset={name} has {data.vocab_size:,} symbols; "
            "null follows it"
        )
    return data.vocab_size
