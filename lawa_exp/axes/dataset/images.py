"""Labelled images in memory: splits, normalisation, and training batches whose every random choice is a pure function
of (seed, number of the sample), so that neither a resumed run nor another number of ranks changes them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from lawa_exp.axes.dataset.base import BaseDataset, BaseSettings
from lawa_exp.axes.dataset.order import NOISE, permuted
from lawa_exp.axes.dataset.places import sole
from lawa_exp.config.rules import boolean, integer, number, plain_name, setting
from lawa_exp.seams.dataset import Batch, Inputs, Parts
from lawa_exp.seams.samples import Samples
from lawa_exp.system.errors import UserError
from lawa_exp.system.hashing import hash_of, keys_of, uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HELD_OUT = 0.1  # of the training images, where the original has no val (or no test)
CHOSEN = "pseudo-randomly, the same for every seed"
AUGMENT, MIX, PARTNER = 1, 2, 3  # what a sample's random numbers are for; NOISE is 4
CHUNK = 4096  # images worked on at once where all of them are read

Array = TypeVar("Array", np.ndarray, "Tensor")
Part = tuple[np.ndarray, np.ndarray]  # images (or where they are) and labels, int64, of one split


@dataclass(frozen=True)
class ImageSettings(BaseSettings):
    """What training does to any images.

    mixup: alpha of Beta(alpha, alpha), 0 for none; each sample is mixed with one drawn from the whole training set
    (Zhang et al. 2018). label_smoothing: the share of a target that is spread over all classes (Szegedy et al. 2016).
    Both act on training batches alone: evaluation is always the plain cross-entropy of the images as they are.
    """

    inputs: ClassVar[str] = "images"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    flip: bool = setting(boolean(), "mirror half of the training images")
    mixup: float = setting(
        number(low=0), "alpha of Beta(alpha, alpha), with which training images and labels are mixed in pairs (0: not)"
    )
    label_smoothing: float = setting(
        number(low=0, high=0.999), "share of a training target that is spread over all classes"
    )


@dataclass(frozen=True)
class SmallImageSettings(ImageSettings):
    """crop_padding: pixels of black around an image, of which training takes a random crop of its size (0: none)."""

    crop_padding: int = setting(
        integer(0), "pixels of black around a training image before a random crop of its size (0: none)"
    )


class LabelledImages(BaseDataset):
    """What data sets of images share; `_train_images`, `_eval_images` and `_spread` are theirs.

    A sample has one target, its class, and so counts as one token. A batch goes to the device in `parts`, images as
    bytes, and is `finished` there.
    """

    tokens_per_sample = 1
    unit = "image"
    in_parts = True
    classes: int
    channels: int
    image_size: int
    mean: np.ndarray  # float32 [channels], by which images are normalised
    std: np.ndarray

    def __init__(
        self,
        settings: ImageSettings,
        labels: dict[str, np.ndarray],
        channels: int,
        image_size: int,
        fingerprint: str,
        note: str,
    ) -> None:
        for split, of_split in labels.items():
            if not len(of_split):
                raise UserError(f"dataset={settings.name}: its {split} split has no image")
        self.settings = settings
        self.labels = labels  # int64 [samples] of each split
        self.classes = count_classes(settings.name, labels)
        self.channels = channels
        self.image_size = image_size
        self.sample = f"{channels}x{image_size}x{image_size} numbers in {self.classes} classes"
        self.fingerprint = fingerprint
        self.note = note
        self.sizes = {split: len(of_split) for split, of_split in labels.items()}
        self._held: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def train_batch(self, seed: int, samples: Samples) -> Batch:
        """These samples of training: inputs, float32 [count, channels, height, width], and targets: classes, int64
        [count], or with mixup or label smoothing probabilities, float32 [count, classes]."""
        return self._finished_here(self.train_parts(seed, samples))

    def noise_batch(self, seed: int, samples: Samples) -> Batch:
        """In place of `train_batch`: each number uniform over the pixels' range, and classes drawn at random."""
        shape = (self.channels, self.image_size, self.image_size)
        draws = uniform(keys_of(seed, NOISE, samples.numbers), 1 + math.prod(shape))
        classes, s = (draws[:, 0] * self.classes).astype(np.int64), self.settings
        targets = smoothed(classes, self.classes, s.label_smoothing) if s.mixup or s.label_smoothing else classes
        return self._spread(draws[:, 1:].reshape(len(samples), *shape)), targets

    def train_targets(self, seed: int, samples: Samples) -> int:
        """How many targets these samples of `train_batch` have."""
        return len(samples)

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """The samples of a split at `indices`: inputs as above, not augmented, and classes, int64 [len(indices)]."""
        return self._finished_here(self.eval_parts(split, indices))

    def train_parts(self, seed: int, samples: Samples) -> Parts:
        """What `finished` makes `train_batch` of: images as they are stored, cropped and mirrored, [count, channels,
        height, width], and targets; with mixup also those that they are mixed with, and their shares."""
        size, s, numbers = self.sizes["train"], self.settings, samples.numbers
        images = self._train_images(samples.indices, keys_of(seed, AUGMENT, numbers))
        classes = self.labels["train"][samples.indices]
        if not (s.mixup or s.label_smoothing):
            return images, classes
        targets = smoothed(classes, self.classes, s.label_smoothing)
        if not s.mixup:
            return images, targets
        keys = keys_of(seed, MIX, numbers)
        partners = (uniform(keys, 1)[:, 0] * size).astype(np.int64)
        others = self._train_images(partners, keys_of(seed, PARTNER, numbers))
        share = beta(s.mixup, keys)
        targets = mixed(targets, smoothed(self.labels["train"][partners], self.classes, s.label_smoothing), share)
        return images, targets, others, share

    def eval_parts(self, split: str, indices: np.ndarray) -> Parts:
        indices = np.asarray(indices)
        return self._eval_images(split, indices), self.labels[split][indices]

    def finished(self, inputs: Inputs, targets: Tensor, *mixing: Tensor) -> tuple[Tensor, Tensor]:
        """The batch, from its parts on any device: normalised there, and mixed. The same numbers on each."""
        assert not isinstance(inputs, dict)
        inputs = self._normalised(inputs)
        if mixing:
            others, share = mixing
            inputs = mixed(inputs, self._normalised(others), share)
        return inputs, targets

    def _finished_here(self, parts: Parts) -> Batch:
        import torch

        inputs, targets = self.finished(*(torch.from_numpy(a) for a in parts))
        return inputs.numpy(), targets.numpy()

    def _normalised(self, images: Tensor) -> Tensor:
        """Less `mean`, over `std` of each channel: float32, and a copy."""
        mean, std = self._on(images.device)
        return (images.float() - mean).div_(std)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`mean` and `std`, [channels, 1, 1], on a device, where they stay."""
        import torch

        if device not in self._held:
            mean, std = (torch.from_numpy(v[:, None, None]).to(device) for v in (self.mean, self.std))
            self._held[device] = mean, std
        return self._held[device]

    def _train_images(self, indices: np.ndarray, keys: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _eval_images(self, split: str, indices: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _spread(self, draws: np.ndarray) -> np.ndarray:
        """Images of which each number, in [0, 1), is the share of the way from black to white; normalised, float32."""
        raise NotImplementedError


class Images(LabelledImages):
    """Images that fit in memory: `images` holds [samples, channels, size, size] of each split, uint8 or float32.

    They are normalised by the mean and standard deviation of each channel over the training images.
    """

    def __init__(
        self,
        settings: SmallImageSettings,
        images: dict[str, np.ndarray],
        labels: dict[str, np.ndarray],
        note: str,
    ) -> None:
        _, channels, image_size, _ = images["train"].shape
        digest = hashlib.sha256()
        for split in ("train", "val", "test"):
            digest.update(f"{images[split].dtype}{images[split].shape}".encode())
            digest.update(np.ascontiguousarray(images[split]).data)
            digest.update(labels[split].astype("<i8").data)
        super().__init__(settings, labels, channels, image_size, digest.hexdigest(), note)
        self.padding = settings.crop_padding
        self.images = images
        mean, std = mean_and_std(images["train"])
        self.mean, self.std = (v.astype(np.float32) for v in (mean, std))

    def _train_images(self, indices: np.ndarray, keys: np.ndarray) -> np.ndarray:
        images: np.ndarray = self.images["train"][indices]
        draws = uniform(keys, 3)
        if self.padding:
            places = (draws[:, :2] * (2 * self.padding + 1)).astype(np.int64)
            images = cropped(images, self.padding, places[:, 0], places[:, 1])
        if self.settings.flip:
            flipped = draws[:, 2] < 0.5
            images[flipped] = images[flipped, :, :, ::-1]
        return images

    def _eval_images(self, split: str, indices: np.ndarray) -> np.ndarray:
        images: np.ndarray = self.images[split][indices]
        return images

    def _spread(self, draws: np.ndarray) -> np.ndarray:
        import torch

        train = self.images["train"]
        low, high = (0, 255) if train.dtype == np.uint8 else (float(train.min()), float(train.max()))
        return self._normalised(torch.from_numpy(low + draws * (high - low))).numpy()


def beta(alpha: float, keys: np.ndarray) -> np.ndarray:
    """A draw of Beta(alpha, alpha) from each key: float32 [len(keys)]."""
    return np.array([np.random.default_rng(int(key)).beta(alpha, alpha) for key in keys], np.float32)


def cropped(images: np.ndarray, padding: int, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
    """Of each image, padded with zeros on all sides, the part of its own size at (top, left)."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(len(images)), :, tops, lefts]


def smoothed(classes: np.ndarray, count: int, share: float) -> np.ndarray:
    """Targets as probabilities, float32 [samples, count]: 1 - share on the class, and share spread over all."""
    targets = np.full((len(classes), count), share / count, np.float32)
    targets[np.arange(len(classes)), classes] += np.float32(1 - share)
    return targets


def mixed(first: Array, second: Array, share: Array) -> Array:
    """share * first + (1 - share) * second, with a share for each sample; of arrays or tensors."""
    share = share.reshape(-1, *[1] * (first.ndim - 1))
    mean: Array = share * first + (1 - share) * second
    return mean


def mean_and_std(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel over all images, float64 [channels]; 1 where a channel is constant."""
    total = np.zeros((2, images.shape[1]))
    for first in range(0, len(images), CHUNK):
        chunk = images[first : first + CHUNK].astype(np.float64)
        total += [chunk.sum((0, 2, 3)), np.square(chunk).sum((0, 2, 3))]
    mean, square = total / (images.size / images.shape[1])
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return mean, np.where(std > 0, std, 1.0)


def complete(parts: dict[str, Part]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """(images, labels, note) with train, val and test, from (images, labels) of the splits that there are.

    Without a val, a tenth of train is cut off for it; without either, two tenths. A sole val serves as test too.
    """
    if "val" in parts:
        note = "" if "test" in parts else sole("val")
        splits = {"test": parts["val"], **parts}
    else:
        missing = ["val"] if "test" in parts else ["val", "test"]
        images, labels = parts["train"]
        size = len(labels)
        order, count = permuted(np.arange(size), size, int(hash_of(len(missing)))), int(HELD_OUT * size)
        indices = {split: np.sort(order[i * count : (i + 1) * count]) for i, split in enumerate(missing)}
        indices["train"] = np.sort(order[len(missing) * count :])
        splits = parts | {split: (images[at], labels[at]) for split, at in indices.items()}
        each = "each " if len(missing) > 1 else ""
        note = f"{' and '.join(missing)}: {each}{HELD_OUT:.0%} of the original's training images, chosen {CHOSEN}"
    names = ("train", "val", "test")
    return {s: splits[s][0] for s in names}, {s: splits[s][1] for s in names}, note


def count_classes(name: str, labels: dict[str, np.ndarray]) -> int:
    """How many classes there are; UserError unless they are 0, 1, ... and each has a training image."""
    classes = int(labels["train"].max(initial=-1)) + 1
    for split, of_split in labels.items():
        wrong = of_split[(of_split < 0) | (of_split >= classes)]
        if len(wrong):
            raise UserError(f"dataset={name}: {split} has label {wrong[0]}, expected 0 to {classes - 1}, as in train")
    if len(missing := np.flatnonzero(np.bincount(labels["train"], minlength=classes) == 0)):
        raise UserError(f"dataset={name}: class {missing[0]} of 0 to {classes - 1} has no training image")
    return classes
