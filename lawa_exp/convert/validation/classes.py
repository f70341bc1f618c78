"""Which number of the model's scores each class of the data is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lawa_exp.axes.dataset.tables import listed
from lawa_exp.convert.recognise.recognised import Recognised
from lawa_exp.convert.validation.content import Place
from lawa_exp.system.errors import UserError

NO_NAME = re.compile(r"LABEL_\d+")  # what transformers writes where a class was given none
SHOWN = 10  # classes that the line `Data:` lists


def numbered_classes(
    labels: Sequence[int | str], names: Sequence[str] | None, model: Recognised, place: Place
) -> tuple[np.ndarray, int | None, str]:
    """Of each sample the class, int64, how many there are (None: not known), and how they are numbered, in words.

    names: of the classes by their number, where the data have them. By name, in capitals or not, where the model's
    configuration has names; names that are numbers are the model's numbers. Else by the data's numbers, else by the
    order of the names. UserError: a label is none of the model's, or names say of fewer or more than it scores.
    """
    fold = _folding(model.labels, names if names is not None else [str(label) for label in labels])
    own, order = {fold(name): number for name, number in model.labels.items()}, "in the data's order"
    has_names = not all(NO_NAME.fullmatch(name) for name in model.labels)
    for at, label in enumerate(labels):
        if type(label) not in (int, str):
            raise UserError(f"{place}: row {at + 1:,} has class {label!r}: expected a number or a name")
    if names is None and (texts := sorted({label for label in labels if isinstance(label, str)})):
        if len(texts) != len(set(labels)):
            raise UserError(f"{place}: classes are names in some rows ({texts[0]}) and numbers in others")
        if _are_numbers(texts) and own.keys().isdisjoint(texts):
            labels = [int(label) for label in labels]
        else:
            if has_names and (wrong := {text for text in texts if fold(text) not in own}):
                at = next(i for i, label in enumerate(labels) if label in wrong)
                raise _none_of_these(f"row {at + 1:,} has", labels[at], model, place)
            places = {text: i for i, text in enumerate(texts)}
            names, labels = texts, [places[str(label)] for label in labels]
            order = "in alphabetical order, as the model has no names of them"
    numbers = np.array(labels, np.int64)
    limit = len(names) if names is not None else model.classes or int(numbers.max()) + 1
    if (outside := np.flatnonzero((numbers < 0) | (numbers >= limit))).size:
        at = int(outside[0])
        raise _none_of_these(f"row {at + 1:,} has", int(numbers[at]), model, place)
    if names is None:
        return numbers, limit, f"classes 0 to {limit - 1}, as the data number them"
    unknown = [name for name in names if fold(name) not in own]
    if len(unknown) == len(names) and has_names and _are_numbers(names):
        return numbered_classes([int(names[number]) for number in numbers], None, model, place)
    if len(unknown) == len(names) and not has_names:
        if model.classes not in (None, len(names)):
            raise UserError(
                f"{place}: {model.title} gives {model.classes} scores, and the data have {len(names)} classes "
                f"({listed(names)}), so which is which is not clear; {_remedy(model)}"
            )
        return numbers, limit, _said(dict(enumerate(names)), order)
    if len(unknown) == len(names):
        raise UserError(
            f"{place}: none of the data's classes ({listed(names)}) is one of the model's "
            f"({listed(list(model.labels))}); {_remedy(model)}"
        )
    if unknown:
        raise _none_of_these("there is", unknown[0], model, place)
    by_number = {number: name for name, number in model.labels.items()}
    return (
        np.array([own[fold(name)] for name in names], np.int64)[numbers],
        model.classes,
        _said(by_number, "as the model numbers them"),
    )


def _folding(own: Mapping[str, int], names: Sequence[str]) -> Callable[[str], str]:
    """Makes names alike that differ in capitals, unless these tell two of the model's or of the data's apart."""
    is_clear = all(len({name.casefold() for name in each}) == len(each) for each in (set(own), set(names)))
    return str.casefold if is_clear else str


def _are_numbers(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\d{1,9}", name) for name in names)


def _remedy(model: Recognised) -> str:
    by_name = ", or label2id in config.json with the data's names" if model.labels else ""
    return f"give the classes as the model's numbers{by_name}"


def _said(names: Mapping[int, str], order: str) -> str:
    shown = [f"{number} {names[number]}" for number in sorted(names)[:SHOWN]]
    return f"classes {', '.join(shown)}{', ...' if len(names) > SHOWN else ''}, {order}"


def _none_of_these(where: str, label: int | str, model: Recognised, place: Place) -> UserError:
    names = f" ({listed(list(model.labels))})" if model.labels else ""
    highest = f"0 to {model.classes - 1}" if model.classes is not None else "from 0 on"
    remedy = f"; {_remedy(model)}" if isinstance(label, str) else ""
    return UserError(f"{place}: {where} class {label!r}; the model's are {highest}{names}{remedy}")
