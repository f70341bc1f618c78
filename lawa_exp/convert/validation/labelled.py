"""Texts and images with their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lawa_exp.axes.dataset.image_folder import in_colour, opened
from lawa_exp.axes.dataset.order import permuted
from lawa_exp.axes.dataset.tasks import Classes
from lawa_exp.convert.recognise.encoder import Encoder
from lawa_exp.convert.validation.held_out import SEED, HeldOut, padded
from lawa_exp.seams.dataset import Batch
from lawa_exp.seams.task import Metric, Task
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.hashing import hash_of

KEPT = 1 << 30  # bytes of decoded images that are kept in memory


class OfTexts(Classes):
    """The same numbers as of images."""

    metrics: Mapping[str, Metric] = {
        **Classes.metrics,
        "loss": Metric("nats per text", tolerance=0.002, column=0),
    }


class Labelled(HeldOut):
    """Samples with classes, in an order of their own: neighbours are of any class."""

    def __init__(self, labels: np.ndarray, classes: int | None, fingerprint: str, note: str) -> None:
        self.labels, self.classes, self.counted = labels, classes, self.unit
        self.order = permuted(np.arange(len(labels)), len(labels), int(hash_of(SEED)))
        super().__init__(len(labels), fingerprint, note)


class LabelledTexts(Labelled):
    """Texts padded to the longest of their batch."""

    unit = "text"

    def __init__(
        self,
        texts: Sequence[str],
        labels: np.ndarray,
        classes: int | None,
        longest: int,
        encoder: Encoder,
        digest: str,
        note: str,
    ) -> None:
        super().__init__(labels, classes, digest, note)
        self.encoder, self.tokens_per_sample = encoder, longest
        sample = encoder.sample
        assert sample is not None
        self.row = cache(lambda i: np.array(sample(texts[i], longest), np.int64))

    @property
    def usual_task(self) -> Task:
        return OfTexts()

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """Inputs by name, int64 [len(indices), longest], and classes, int64 [len(indices)]."""
        places = self.order[indices]
        ids, attended = padded([self.row(i) for i in places.tolist()], self.encoder.pad or 0, self.encoder.pads_left)
        return {"input_ids": ids, "attention_mask": attended}, self.labels[places].copy()


class LabelledImages(Labelled):
    """Images through a transform; as many as fit into KEPT bytes are decoded once."""

    unit = "image"

    def __init__(
        self,
        images: Sequence[Path | bytes],
        labels: np.ndarray,
        classes: int | None,
        transform: Callable[[Any], Tensor],
        channels: int,
        digest: str,
        note: str,
    ) -> None:
        super().__init__(labels, classes, digest, note)
        self.images, self.transform, self.mode = images, transform, "RGB" if channels == 3 else "L"
        self.channels = channels
        self.kept: dict[int, np.ndarray] = {}
        self.bytes = 0

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """float32 [len(indices), channels, height, width] and classes. UserError: images have several sizes."""
        places = self.order[indices].tolist()
        images = [self._image(i) for i in places]
        if odd := next((n for n, image in enumerate(images) if image.shape != images[0].shape), None):
            sizes = " and ".join(str(list(image.shape)) for image in (images[0], images[odd]))
            raise UserError(
                f"{self._name(places[odd])}: images of several sizes, {sizes}; a model with an attribute `transform`, "
                "a function of a PIL image, says how they are scaled"
            )
        return np.stack(images), self.labels[places].copy()

    def _name(self, place: int) -> str:
        image = self.images[place]
        return str(image) if isinstance(image, Path) else f"the image in row {place + 1:,}"

    def _image(self, place: int) -> np.ndarray:
        if place in self.kept:
            return self.kept[place]
        file, name = self.images[place], self._name(place)
        with opened(str(file) if isinstance(file, Path) else BytesIO(file), name) as image:
            colour = image if image.mode == self.mode else in_colour(image, name).convert(self.mode)
            made = self.transform(colour)
        if not isinstance(made, Tensor):
            raise Failed(f"{name}: the transform gives {type(made).__name__}; expected a tensor")
        array: np.ndarray = made.float().numpy()
        if self.bytes + array.nbytes <= KEPT:
            self.kept[place], self.bytes = array, self.bytes + array.nbytes
        return array
