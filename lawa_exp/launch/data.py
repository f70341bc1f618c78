"""What the words about the data set bring with them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any

from lawa_exp.config.rules import rule_of


def settled(values: dict[str, Any], named: Collection[str], whole: Callable[[object], object]) -> None:
    """Makes the data set's paths whole, so that the run can be read out from another folder, and settles its tokenizer.

    `dataset.tokenizer_path=FILE.json` alone chooses it, and the model's vocabulary is its own, unless `named`, the
    settings on the command line, say otherwise.
    """
    dataset, model = values["dataset"], values.get("model")
    if not isinstance(dataset, dict):
        return
    for key in ("path", "tokenizer_path"):
        if dataset.get(key):
            dataset[key] = whole(dataset[key])
    if "tokenizer" not in dataset or not str(dataset.get("tokenizer_path")).endswith(".json"):
        return
    if "dataset.tokenizer" not in named:
        dataset["tokenizer"] = "json"
    if (
        dataset["tokenizer"] == "json"
        and "model.vocab_size" not in named
        and isinstance(model, dict)
        and _follows(model)
    ):
        model["vocab_size"] = None


def _follows(model: dict[str, Any]) -> bool:
    """Whether it is of a kind whose vocabulary may be that of the data set."""
    from lawa_exp.axes.model import MODELS

    if str(model.get("kind")) not in MODELS:
        return False
    rules = {field.name: rule_of(field) for field in fields(MODELS[str(model["kind"])]) if "rule" in field.metadata}
    try:
        return "vocab_size" in rules and rules["vocab_size"].parse(None) is None
    except ValueError:
        return False
