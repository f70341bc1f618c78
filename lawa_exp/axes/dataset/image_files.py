"""Images from local files, in torchvision's layouts (MNIST's idx, CIFAR's pickled batches), and numpy arrays."""

from __future__ import annotations

import gzip
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lawa_exp.axes.dataset.images import Images, Part, SmallImageSettings, complete
from lawa_exp.axes.dataset.places import find
from lawa_exp.config.rules import one_of, optional, setting, text
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import LARGE, LARGEST, read_small, size_text

UNSIGNED_BYTE = 0x08  # the type code of idx files
IDX = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
ARRAY_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FileSettings(SmallImageSettings):
    """`path`: the data set's folder, or the one that holds it."""

    path: str | None = setting(optional(text()), "where the files are; null: in LAWA_DATA, then in data/")


@dataclass(frozen=True)
class MnistSettings(FileSettings):
    """The four idx files of MNIST (LeCun et al. 1998) in MNIST/raw, each as it is or gzipped."""

    folder: ClassVar[str] = "MNIST"
    source: ClassVar[str] = "`torchvision.datasets.MNIST(DIR, download=True)`"

    def open(self, context: int | None) -> Images:
        return Images(self, *complete(dict(self._parts())))

    def _parts(self) -> Iterator[tuple[str, Part]]:
        first = f"{IDX['train']}-{IMAGES}"
        wanted = tuple(f"{below}{first}{packed}" for below in ("raw/", "") for packed in ("", ".gz"))
        place = find(self.name, self.path, self.folder, wanted, _get(self.source))
        if not any((place / n).is_file() for n in wanted[2:]):
            place = place / "raw"
        for split, prefix in IDX.items():
            images = read_idx(self.name, place / f"{prefix}-{IMAGES}", 3)[:, None]
            labels = read_idx(self.name, place / f"{prefix}-{LABELS}", 1).astype(np.int64)
            yield split, _checked(self.name, split, images, labels)


@dataclass(frozen=True)
class FashionMnistSettings(MnistSettings):
    """Fashion-MNIST (Xiao et al. 2017), in FashionMNIST/raw."""

    folder: ClassVar[str] = "FashionMNIST"
    source: ClassVar[str] = "`torchvision.datasets.FashionMNIST(DIR, download=True)`"


@dataclass(frozen=True)
class Cifar10Settings(FileSettings):
    """CIFAR-10 (Krizhevsky 2009), the Python version: cifar-10-batches-py/data_batch_1 to 5 and test_batch."""

    folder: ClassVar[str] = "cifar-10-batches-py"
    source: ClassVar[str] = "`torchvision.datasets.CIFAR10(DIR, download=True)`"
    files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
    }
    label: ClassVar[str] = "labels"

    def open(self, context: int | None) -> Images:
        place = find(self.name, self.path, self.folder, (self.files["train"][0],), _get(self.source))
        parts = {split: self._part(split, [place / n for n in names]) for split, names in self.files.items()}
        return Images(self, *complete(parts))

    def _part(self, split: str, paths: list[Path]) -> Part:
        batches = [self._batch(path) for path in paths]
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        return _checked(self.name, split, images, labels)

    def _batch(self, path: Path) -> Part:
        if not path.is_file():
            raise UserError(f"dataset={self.name}: {path} is missing")
        try:
            with path.open("rb") as file:
                content = ArraysOnly(file, encoding="latin1").load()
            if content["data"].dtype != np.uint8:
                raise TypeError(f"its pixels are {content['data'].dtype}, expected uint8")
            return content["data"].reshape(-1, 3, 32, 32), np.array(content[self.label], np.int64)
        except Exception as error:  # whatever a damaged pickle raises
            raise UserError(
                f"dataset={self.name}: {path} is not a batch of CIFAR images ({type(error).__name__}: {error})"
            ) from None


@dataclass(frozen=True)
class Cifar100Settings(Cifar10Settings):
    """CIFAR-100, its 100 fine classes: cifar-100-python/train and test."""

    folder: ClassVar[str] = "cifar-100-python"
    source: ClassVar[str] = "`torchvision.datasets.CIFAR100(DIR, download=True)`"
    files: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}
    label: ClassVar[str] = "fine_labels"


@dataclass(frozen=True)
class ArraysSettings(FileSettings):
    """x_train and y_train, and of val and test what there is, in one .npz file or as .npy files of a folder.

    x: [samples, size, size] or, as `layout` says, with the channels last (NHWC) or second (NCHW); uint8 or any numbers.
    y: classes 0, 1, ..., integers [samples].
    """

    layout: str = setting(one_of("NHWC", "NCHW"), "order of the dimensions: channels last (NHWC) or second (NCHW)")

    def open(self, context: int | None) -> Images:
        get = "give a .npz file, or a folder of .npy files, with dataset.path=PATH"
        if self.path and not Path(self.path).exists():
            raise UserError(f"dataset.path={self.path}: no such file or folder; {get}")
        if self.path is None:
            raise UserError(f"dataset={self.name}: {get}")
        arrays = read_arrays(Path(self.path))
        needed = {
            f"{kind}_{s}" for s in ARRAY_SPLITS for kind in "xy" if s == "train" or {f"x_{s}", f"y_{s}"} & {*arrays}
        }
        if missing := sorted(needed - arrays.keys()):
            raise UserError(
                f"dataset.path={self.path}: {missing[0]} is missing; it holds {', '.join(arrays) or 'none'}"
            )
        parts = {s: self._part(s, arrays) for s in ARRAY_SPLITS if f"x_{s}" in arrays}
        for split, (images, _) in parts.items():
            if images.shape[1:] != parts["train"][0].shape[1:]:
                raise UserError(
                    f"dataset={self.name}: the images of x_{split} are {images.shape[1:]} (channels, height, width), "
                    f"those of x_train {parts['train'][0].shape[1:]}"
                )
        return Images(self, *complete(parts))

    def _part(self, split: str, arrays: dict[str, np.ndarray]) -> Part:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        where = f"dataset={self.name}: x_{split}"
        if images.ndim not in (3, 4) or images.dtype.kind not in "uif":
            raise UserError(
                f"{where} is {images.dtype} {images.shape}, expected numbers [samples, size, size] or, with "
                f"dataset.layout={self.layout}, of four dimensions"
            )
        images = images[:, None] if images.ndim == 3 else images
        if arrays[f"x_{split}"].ndim == 4 and self.layout == "NHWC":
            images = np.moveaxis(images, 3, 1)
        if images.shape[2] != images.shape[3]:
            raise UserError(
                f"{where}, as dataset.layout={self.layout}, has images of {images.shape[2]}x{images.shape[3]} pixels: "
                "expected square ones, or the other layout"
            )
        images = np.ascontiguousarray(images, np.uint8 if images.dtype == np.uint8 else np.float32)
        if not np.isfinite(images).all():
            raise UserError(f"{where} holds values that are not finite")
        if labels.shape == (len(labels), 1):
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "ui":
            raise UserError(
                f"dataset={self.name}: y_{split} is {labels.dtype} {labels.shape}, expected integers [samples]"
            )
        return _checked(self.name, split, images, labels.astype(np.int64))


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain containers and numpy arrays; nothing else is looked up, and so nothing else is run."""

    allowed: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("_codecs", "encode"): str.encode,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.allowed[module, name]


def read_idx(name: str, path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file, which may be gzipped (`path`, or `path`.gz). UserError names what is wrong."""
    packed = path.with_name(path.name + ".gz")
    if not path.is_file() and not packed.is_file():
        raise UserError(f"dataset={name}: {path} is missing (and {packed.name})")
    try:
        content = read_small(path, LARGEST) if path.is_file() else _inflated(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"dataset={name}: {packed} is damaged ({error})") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)) or len(content) < header:
        raise UserError(f"dataset={name}: {path} is not an idx file of bytes in {dimensions} dimension(s)")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) != header + int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"dataset={name}: {path} has {len(content)} bytes, which its header, {shape}, does not fit")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _inflated(packed: Path) -> bytes:
    with gzip.open(packed) as file:
        content: bytes = file.read(LARGE + 1)
    if len(content) > LARGE:
        raise UserError(f"{packed} has more than {size_text(LARGE)} once inflated")
    return content


def _check_inflated(place: Path) -> None:
    """UserError: arrays that inflate a hundredfold, and into gigabytes."""
    with zipfile.ZipFile(place) as archive:
        size = sum(record.file_size for record in archive.infolist())
    if size > max(LARGE, 100 * place.stat().st_size):
        raise UserError(f"dataset.path={place}: {size_text(place.stat().st_size)} that inflate to {size_text(size)}")


def read_arrays(place: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, or of the .npy files of a folder, by name."""
    try:
        if place.is_dir():
            return {p.stem: np.load(p) for p in sorted(place.glob("*.npy"))}
        if zipfile.is_zipfile(place):
            _check_inflated(place)
        with np.load(place) as content:
            return dict(content)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file raises
        raise UserError(f"dataset.path={place}: expected numpy arrays ({type(error).__name__}: {error})") from None


def _checked(name: str, split: str, images: np.ndarray, labels: np.ndarray) -> Part:
    if len(images) != len(labels):
        raise UserError(f"dataset={name}: {split} has {len(images)} images and {len(labels)} labels")
    return images, labels


def _get(source: str) -> str:
    return f"get it with {source} and give dataset.path=DIR, or train at once with dataset=digits"
