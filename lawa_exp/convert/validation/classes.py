"""Which number of the model's scores each class of the data is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lawa_exp.convert.recognise.recognised import Recognised
from lawa_exp.convert.validation.content import Place, listed
from lawa_exp.system.errors import UserError

NO_NAME = re.compile(r"LABEL_\d+")  # what transformers writes where a class was given none
SHOWN = 10  # classes that the line `Data:` lists


def numbered_classes(
    labels: Sequence[int | str], names: Sequence[str] | None, model: Recognised, place: Place
) -> tuple[np.ndarray, int | None, str]:
    """Of each sample the class, int64, how many there are (None: not known), and how they are numbered, in words.

    names: of the classes by their number, where the data have them. By name, where the model's configuration has all
    names, else by the data's numbers, else by the order of the names. UserError: a label is none of the model's.
    """
    own, order = model.labels, "in the data's order"
    for at, label in enumerate(labels):
        if type(label) not in (int, str):
            raise UserError(f"{place}: row {at + 1:,} has class {label!r}: expected a number or a name")
    if names is None and (texts := sorted({label for label in labels if isinstance(label, str)})):
        if len(texts) != len(set(labels)):
            raise UserError(f"{place}: classes are names in some rows ({texts[0]}) and numbers in others")
        if all(re.fullmatch(r"\d{1,9}", text) for text in texts) and not set(texts) <= own.keys():
            labels = [int(label) for label in labels]
        else:
            if not all(NO_NAME.fullmatch(name) for name in own) and (wrong := set(texts) - own.keys()):
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
    if not (known := own.keys() & set(names)):
        return numbers, limit, _said(dict(enumerate(names)), order)
    if known != set(names):
        wrong_name = next(name for name in names if name not in known)
        raise _none_of_these("there is", wrong_name, model, place)
    by_number = {number: name for name, number in own.items()}
    return (
        np.array([own[name] for name in names], np.int64)[numbers],
        model.classes,
        _said(by_number, "as the model numbers them"),
    )


def _said(names: Mapping[int, str], order: str) -> str:
    shown = [f"{number} {names[number]}" for number in sorted(names)[:SHOWN]]
    return f"classes {', '.join(shown)}{', ...' if len(names) > SHOWN else ''}, {order}"


def _none_of_these(where: str, label: int | str, model: Recognised, place: Place) -> UserError:
    names = f" ({listed(list(model.labels))})" if model.labels else ""
    highest = f"0 to {model.classes - 1}" if model.classes is not None else "from 0 on"
    return UserError(f"{place}: {where} class {label!r}; the model's are {highest}{names}")
