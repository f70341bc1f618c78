"""A data set that the package datasets has saved (`save_to_disk`): its split validation, else test."""

from __future__ import annotations

from typing import Any

from lawa_exp.axes.dataset.tables import listed
from lawa_exp.convert.validation.content import Content, Place, split_in
from lawa_exp.convert.validation.rows import of_columns
from lawa_exp.system.errors import UserError, one_line

SIGNS = ("dataset_dict.json", "dataset_info.json")


def content(place: Place) -> Content | None:
    """UserError: it is damaged, has no such split, or which column is meant is not clear."""
    if not any((place.path / name).is_file() for name in SIGNS):
        return None
    try:
        import datasets
    except ImportError:
        raise UserError(f"{place} needs the package datasets: pip install 'lawa_exp[prepare]'") from None
    try:
        loaded: Any = datasets.load_from_disk(str(place.path))
    except Exception as error:  # of the package
        raise UserError(f"{place}: datasets cannot load it ({one_line(str(error))[:150]})") from None
    where = str(place.path)
    if isinstance(loaded, datasets.DatasetDict):
        splits = split_in(list(loaded))
        if len(splits) != 1:
            which = "several splits" if splits else "no split is called validation or test"
            raise UserError(f"{place}: {which}: {listed(splits or list(loaded))}; give FOLDER/SPLIT")
        split = splits[0]
        loaded, where = loaded[split], f"{where}, split {split}"
    classes = {n: feature.names for n, feature in loaded.features.items() if isinstance(feature, datasets.ClassLabel)}
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
    return of_columns(place, {name: loaded[name][:] for name in loaded.column_names}, where, classes)
