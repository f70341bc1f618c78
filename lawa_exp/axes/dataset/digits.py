"""The handwritten digits that scikit-learn carries, embedded: nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lawa_exp.axes.dataset.images import Images, SmallImageSettings, complete

FILE = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True)
class DigitsSettings(SmallImageSettings):
    """1,797 images of 8x8 pixels in 17 greys: the test set of Alpaydin and Kaynak's optical recognition of handwritten
    digits (UCI, 1998, CC BY 4.0), in the order of `sklearn.datasets.load_digits`."""

    def open(self, context: int | None) -> Images:
        with np.load(FILE) as content:
            images, labels = content["images"][:, None], content["labels"].astype(np.int64)
        return Images(self, *complete({"train": (images, labels)}))
