"""Images in a folder for each class, as torchvision's ImageFolder and ImageNet have them; decoded when needed."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from lawa_exp.axes.dataset.decoding import Decoders
from lawa_exp.axes.dataset.images import ImageSettings, LabelledImages, complete
from lawa_exp.axes.dataset.places import find, is_hidden
from lawa_exp.config.rules import Rule, integer, number, optional, setting, text
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.hashing import uniform

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of ImageFolder
FOLDERS = ("train", "val", "test")
ASPECTS = (3 / 4, 4 / 3)  # of random crops, width to height
ATTEMPTS = 10  # at a random crop that fits

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def _colours() -> Rule:
    def parse(value: Any) -> tuple[float, float, float]:
        red, green, blue = (number(above=0, high=1).parse(v) for v in value)
        return red, green, blue

    return Rule("three numbers above 0 and at most 1 (red, green, blue)", parse)


@dataclass(frozen=True)
class ImageFolderSettings(ImageSettings):
    """train/CLASS/*.jpg and val/CLASS/*.jpg (and test/CLASS/*.jpg); classes in the order of their folders' names.

    Training takes a random part of at least `smallest_crop` of an image's area, scaled to `image_size`; evaluation
    scales the shorter side to `resize` and takes the centre. mean, std: of the channels, between 0 and 1.
    """

    folder: ClassVar[str] = "imagenet"
    path: str | None = setting(optional(text()), "where the files are; null: in LAWA_DATA, then in data/")
    image_size: int = setting(integer(1), "height and width of an image in pixels")
    resize: int = setting(
        integer(1), "the shorter side, in pixels, to which evaluation scales an image before it cuts out the centre"
    )
    smallest_crop: float = setting(
        number(above=0, high=1), "the smallest share of an image's area that a random training crop has"
    )
    mean: tuple[float, float, float] = setting(_colours(), "mean of each colour, 0 to 1, subtracted from pixels")
    std: tuple[float, float, float] = setting(
        _colours(), "standard deviation of each colour, 0 to 1, that pixels are divided by"
    )

    def __post_init__(self) -> None:
        if self.resize < self.image_size:
            raise UserError(f"resize={self.resize}: expected at least image_size={self.image_size}")

    def open(self, context: int | None) -> FolderImages:
        get = (
            "give the folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg with dataset.path=DIR "
            "(ImageNet: https://image-net.org/download-images)"
        )
        root = find(self.name, self.path, self.folder, (), get)
        if not (root / "train").is_dir():
            raise UserError(f"dataset={self.name}: {root / 'train'} is missing; {get}")
        files_of = {split: list_classes(self.name, root / split) for split in FOLDERS if (root / split).is_dir()}
        classes = list(files_of["train"])
        for split in files_of:
            for one, other in ((split, "train"), ("train", split)):
                if missing := sorted(files_of[other].keys() - files_of[one].keys()):
                    raise UserError(
                        f"dataset={self.name}: class {missing[0]} is in {root / other}, not in {root / one}"
                    )
        parts = {
            split: (
                np.array([str(p) for name in classes for p in files[name]], object),
                np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes]),
            )
            for split, files in files_of.items()
        }
        images = FolderImages(self, *complete(parts), fingerprint(root, parts))
        images.sampled = [path for paths, _ in parts.values() for path in paths]
        return images


@dataclass(frozen=True)
class Cifar10JpegSettings(ImageFolderSettings):
    """CIFAR-10 as JPEG files, re-encoded: accuracies are not those of dataset=cifar10 to the last tenths."""

    folder: ClassVar[str] = "cifar10_jpeg"


class FolderImages(LabelledImages):
    """`paths`: of the images of each split. They are decoded by `workers` processes, or without any by this one.

    With other `workers` it has processes of its own; with as many they are shared.
    """

    workers: int

    def __init__(
        self,
        settings: ImageFolderSettings,
        paths: dict[str, np.ndarray],
        labels: dict[str, np.ndarray],
        note: str,
        fingerprint: str,
    ) -> None:
        super().__init__(settings, labels, 3, settings.image_size, fingerprint, note)
        self.folder = settings
        self.paths = paths
        self.mean, self.std = (np.array(v, np.float32) for v in (settings.mean, settings.std))
        self.workers = 0
        self._started: dict[int, Decoders] = {}  # by their number
        self._starting = threading.Lock()

    def with_workers(self, workers: int) -> FolderImages:
        images = copy.copy(self)
        images.workers = workers
        return images

    @property
    def decoders(self) -> Decoders:
        with self._starting:  # several threads read ahead
            if self.workers not in self._started:
                self._started[self.workers] = Decoders(self.workers, (self.image_size, self.image_size, 3))
            return self._started[self.workers]

    def _normalised(self, images: Tensor) -> Tensor:
        return super()._normalised(images.float().div_(255))

    def _train_images(self, indices: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return self._decoded(self.paths["train"][indices], uniform(keys, 2 * ATTEMPTS + 3))

    def _eval_images(self, split: str, indices: np.ndarray) -> np.ndarray:
        return self._decoded(self.paths[split][indices], [None] * len(indices))

    def _decoded(self, paths: Iterable[str], draws: Iterable[np.ndarray | None]) -> np.ndarray:
        requests = [(self.folder, *one) for one in zip(paths, draws, strict=True)]
        images = self.decoders.map(pixels, requests) if self.workers else np.stack([pixels(*one) for one in requests])
        return images.transpose(0, 3, 1, 2)

    def _spread(self, draws: np.ndarray) -> np.ndarray:
        values: np.ndarray = (draws.astype(np.float32) - self.mean[:, None, None]) / self.std[:, None, None]
        return values


def pixels(settings: ImageFolderSettings, path: str, draws: np.ndarray | None) -> np.ndarray:
    """One image as training takes it, which `draws` decide, or (None) as evaluation does: uint8 [size, size, 3]."""
    size = settings.image_size
    with opened(path) as image:
        width, height = image.size
        rgb = image if image.mode == "RGB" else in_colour(image, path)
        if draws is not None:
            crop = scaled(rgb.crop(random_box(width, height, settings.smallest_crop, draws[1:])), size, size)
            return crop[:, ::-1] if settings.flip and draws[0] < 0.5 else crop
        short, wanted = min(width, height), settings.resize
        width, height = wanted * width // short, wanted * height // short
        whole = scaled(rgb, width, height)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return whole[top : top + size, left : left + size]


def in_colour(image: Image.Image, path: str) -> Image.Image:
    """An image of 8 bits of any mode as red, green and blue, as torchvision's ImageFolder has it.

    Failed: its pixels have more bits, which such a conversion cuts off.
    """
    if image.mode not in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
    ):
        raise Failed(f"{path} has pixels of mode {image.mode}; expected 8 bits a channel, convert it first")
    return image.convert("RGB")


def random_box(width: int, height: int, smallest: float, draws: np.ndarray) -> Box:
    """A random part of an image, of `smallest` to all of its area and 3:4 to 4:3 (Szegedy et al. 2015).

    draws: numbers in [0, 1), two for each attempt and two for the place. Where none fits, the largest centred part.
    """
    low, high = (math.log(a) for a in ASPECTS)
    left, top = draws[-2:]
    for share, aspect in draws[:-2].reshape(-1, 2):
        area = width * height * (smallest + share * (1 - smallest))
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    w, h = min(width, round(height * ASPECTS[1])), min(height, round(width / ASPECTS[0]))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def scaled(image: Image.Image, width: int, height: int) -> np.ndarray:
    """The pixels of a PIL image scaled to a size: uint8 [height, width, 3]."""
    from PIL import Image

    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


@contextmanager
def opened(file: str | BinaryIO, name: str = "") -> Iterator[Image.Image]:
    """A PIL image, decoded only when its pixels are read; whatever is wrong with the file, in one line.

    name: for that line, where it is no path.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Failed(f"{name or file} cannot be read as an image ({type(error).__name__}: {error})") from None


def list_classes(name: str, folder: Path) -> dict[str, list[Path]]:
    """The images of each class, both in the order of their names. UserError where there is none."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"dataset={name}: {folder} holds no class folder")
    files_of = {}
    for class_name in classes:
        root = folder / class_name
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not is_hidden(p, root))
        if not files:
            raise UserError(f"dataset={name}: {folder / class_name} holds no image ({', '.join(SUFFIXES)})")
        files_of[class_name] = files
    return files_of


def fingerprint(root: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """A hash of the images' places under `root` and their sizes in bytes; their pixels are not read."""
    digest, start = hashlib.sha256(), len(str(root).rstrip(os.sep)) + 1  # relative_to is slow for millions
    for paths, _ in parts.values():
        for path in paths:
            digest.update(f"{path[start:].replace(os.sep, '/')}\0{Path(path).stat().st_size}\0".encode())
    return digest.hexdigest()
