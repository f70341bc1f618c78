"""Data sets of images: files as torchvision writes and reads them, augmentation and targets against torchvision."""

import gzip
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import datasets, transforms
from torchvision.transforms import functional as TF

from lawa_exp.axes.dataset.digits import DigitsSettings
from lawa_exp.axes.dataset.image_files import (
    ArraysSettings,
    Cifar10Settings,
    Cifar100Settings,
    FashionMnistSettings,
    MnistSettings,
)
from lawa_exp.axes.dataset.image_folder import ASPECTS, ImageFolderSettings, random_box
from lawa_exp.axes.dataset.images import HELD_OUT, beta, complete, cropped, keys_of, mixed, smoothed, uniform
from lawa_exp.axes.dataset.loading import AHEAD, eval_batches, train_batches
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.system.errors import Failed, UserError

PLAIN = {"flip": False, "mixup": 0.0, "label_smoothing": 0.0}
SMALL = {**PLAIN, "crop_padding": 0}
random = np.random.default_rng(0)


def digits(**changes):
    return DigitsSettings(name="digits", **{**SMALL, **changes}).open(None)


def whole(data, split):
    """Every image and label of a split, as they are evaluated."""
    return data.eval_batch(split, np.arange(data.sizes[split]))


def trained(data, seed, first, count):
    """Those samples of a training that goes through its data in epochs."""
    return data.train_batch(seed, in_epochs(first, count, data.sizes["train"], seed))


def parts(data, count):
    """What the first batch of a training with seed 0 is made of."""
    return data.train_parts(0, in_epochs(0, count, data.sizes["train"], 0))


def pixels(data, split):
    return data.images[split]


# What the files hold


def test_digits_are_scikit_learns():
    data = digits()
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images, labels = (
        np.concatenate([part[s] for s in ("train", "val", "test")]) for part in (data.images, data.labels)
    )
    theirs = load_digits()
    found = {(i.tobytes(), label) for i, label in zip(images[:, 0], labels, strict=True)}
    assert len(images) == 1797 and found == {
        (i.astype(np.uint8).tobytes(), label) for i, label in zip(theirs.images, theirs.target, strict=True)
    }


def test_digits_are_split_once_and_for_all():
    data, again = digits(), digits(flip=True)
    assert data.sizes == {"train": 1439, "val": 179, "test": 179} and sum(data.sizes.values()) == 1797
    assert (data.classes, data.channels, data.image_size) == (10, 1, 8)
    assert data.fingerprint == again.fingerprint and "val and test: each 10%" in data.note
    for split in data.sizes:
        assert np.bincount(data.labels[split], minlength=10).min() > 0.05 * data.sizes[split]  # of 10 classes


def test_images_are_normalised_by_the_training_images():
    data = digits()
    images, _ = whole(data, "train")
    assert images.dtype == np.float32 and images.shape == (1439, 1, 8, 8)
    assert abs(images.mean()) < 1e-5 and images.std() == pytest.approx(1, abs=1e-5)
    held_out, _ = whole(data, "test")
    assert 1e-4 < abs(held_out.mean()) < 0.1  # by those of train, not by their own


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder: Path, pack: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    parts = {}
    for prefix, count in (("train", 100), ("t10k", 30)):
        parts[prefix] = random.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        for name, array in zip(("images-idx3", "labels-idx1"), parts[prefix], strict=True):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(idx(array)) if pack else idx(array))
    return parts


def test_mnist_files_are_read_as_torchvision_does(tmp_path):
    parts = write_mnist(tmp_path / "MNIST" / "raw")
    data = MnistSettings(name="mnist", path=str(tmp_path), **SMALL).open(None)
    theirs = datasets.MNIST(str(tmp_path), train=False)
    assert (pixels(data, "test")[:, 0] == theirs.data.numpy()).all()
    assert (data.labels["test"] == theirs.targets.numpy()).all()
    assert (theirs.data.numpy() == parts["t10k"][0]).all()
    assert data.sizes == {"train": 90, "val": 10, "test": 30} and data.note.startswith("val: 10%")
    train = {i.tobytes() for i in parts["train"][0]}
    assert {i[0].tobytes() for s in ("train", "val") for i in pixels(data, s)} == train
    for place in (tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        assert MnistSettings(name="mnist", path=str(place), **SMALL).open(None).fingerprint == data.fingerprint


def test_gzipped_files_are_the_same_data_set(tmp_path):
    parts = write_mnist(tmp_path / "MNIST" / "raw", pack=True)
    data = MnistSettings(name="mnist", path=str(tmp_path), **SMALL).open(None)
    assert (pixels(data, "test")[:, 0] == parts["t10k"][0]).all()
    for path in (tmp_path / "MNIST" / "raw").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert MnistSettings(name="mnist", path=str(tmp_path), **SMALL).open(None).fingerprint == data.fingerprint


@pytest.mark.data
@pytest.mark.parametrize("settings, theirs", [(MnistSettings, "MNIST"), (FashionMnistSettings, "FashionMNIST")])
def test_real_mnist_files(settings, theirs):
    root = os.environ.get("LAWA_DATA", "/nonexistent")
    if not (Path(root) / theirs).is_dir():
        pytest.skip(f"LAWA_DATA does not hold {theirs}")
    data = settings(name="real", path=None, **SMALL).open(None)
    test = getattr(datasets, theirs)(root, train=False)
    assert (pixels(data, "test")[:, 0] == test.data.numpy()).all()
    assert (data.labels["test"] == test.targets.numpy()).all()
    train = getattr(datasets, theirs)(root, train=True)
    assert data.sizes == {"train": 54_000, "val": 6_000, "test": 10_000}
    counts = sum(np.bincount(data.labels[s]) for s in ("train", "val"))
    assert (counts == np.bincount(train.targets.numpy())).all()
    assert data.mean.item() / 255 == pytest.approx(train.data.numpy().mean() / 255, rel=0.01)


def write_cifar(folder: Path, names: list[str], key: str, classes: int) -> None:
    folder.mkdir()
    for name in names:
        labels = (np.arange(2 * classes) % classes).tolist()
        content = {"data": random.integers(0, 256, (len(labels), 3072), np.uint8), key: labels, "filenames": ["x"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))  # the official files are of protocol 2


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_files_are_read_as_torchvision_does(classes, tmp_path, monkeypatch):
    settings = {10: Cifar10Settings, 100: Cifar100Settings}[classes]
    theirs = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    names = [n for names in settings.files.values() for n in names]
    write_cifar(tmp_path / settings.folder, names, settings.label, classes)
    data = settings(name="cifar", path=str(tmp_path), **SMALL).open(None)
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)  # these files have other checksums
    monkeypatch.setattr(theirs, "_load_meta", lambda self: None)
    test = theirs(str(tmp_path), train=False)
    assert (pixels(data, "test").transpose(0, 2, 3, 1) == test.data).all()
    assert data.labels["test"].tolist() == test.targets and data.classes == classes
    train = theirs(str(tmp_path), train=True)
    found = {i.transpose(1, 2, 0).tobytes() for s in ("train", "val") for i in pixels(data, s)}
    assert found == {i.tobytes() for i in train.data} and data.sizes["val"] == len(train) // 10


class Evil:
    def __reduce__(self):
        return os.system, ("touch touched",)


def test_a_cifar_batch_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "labels", 10)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(UserError, match=r"test_batch is not a batch of CIFAR images .*it asks for posix\.system"):
        Cifar10Settings(name="cifar10", path=str(tmp_path), **SMALL).open(None)
    assert not (tmp_path / "touched").exists()


def arrays(path, **changes):
    return ArraysSettings(name="arrays", path=str(path), **{**SMALL, "layout": "NHWC", **changes}).open(None)


def test_arrays_in_one_file_or_in_a_folder(tmp_path):
    x, y = random.integers(0, 256, (60, 6, 6, 3), np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_val=x[:9], y_val=y[:9], x_test=x[9:20], y_test=y[9:20])
    data = arrays(tmp_path / "all.npz")
    assert (pixels(data, "train") == x.transpose(0, 3, 1, 2)).all() and data.note == ""
    assert (data.sizes, data.classes, data.channels) == ({"train": 60, "val": 9, "test": 11}, 3, 3)
    (tmp_path / "folder").mkdir()
    for name, array in (("x_train", x.transpose(0, 3, 1, 2)), ("y_train", y[:, None])):
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    cut = arrays(tmp_path / "folder", layout="NCHW")
    assert cut.sizes == {"train": 48, "val": 6, "test": 6}
    for kind, array in (("x", x[:9].transpose(0, 3, 1, 2)), ("y", y[:9])):
        np.save(tmp_path / "folder" / f"{kind}_val.npy", array)
    sole = arrays(tmp_path / "folder", layout="NCHW")
    assert sole.sizes == {"train": 60, "val": 9, "test": 9} and "serves as val and as test" in sole.note


def test_grey_arrays_of_other_numbers(tmp_path):
    x, y = random.normal(3, 2, (50, 5, 5)), np.arange(50) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    images, _ = whole(arrays(tmp_path / "a.npz"), "train")
    assert images.shape == (40, 1, 5, 5) and abs(images.mean()) < 1e-5 and images.std() == pytest.approx(1, abs=1e-4)


X, Y = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
WRONG = {
    "y_train is missing": {"x_train": X},
    "x_train is missing; it holds y": {"y": Y},
    "y_test is missing": {"x_train": X, "y_train": Y, "x_test": X},
    r"x_train is uint8 \(20, 16\), expected numbers \[samples, size, size\]": {
        "x_train": X.reshape(20, 16),
        "y_train": Y,
    },
    "has images of 2x8 pixels: expected square": {"x_train": X.reshape(20, 2, 8), "y_train": Y},
    "train has 20 images and 19 labels": {"x_train": X, "y_train": Y[1:]},
    r"y_train is float64 \(20,\), expected integers": {"x_train": X, "y_train": Y / 2},
    "class 1 of 0 to 2 has no training image": {"x_train": X, "y_train": 2 * Y},
    "test has label 5, expected 0 to 1": {"x_train": X, "y_train": Y, "x_test": X, "y_test": 5 * Y},
    "val has label -1": {"x_train": X, "y_train": Y, "x_val": X, "y_val": Y - 1},
    r"x_test are \(1, 2, 2\)": {"x_train": X, "y_train": Y, "x_test": X[:, :2, :2], "y_test": Y},
    "holds values that are not finite": {"x_train": X + np.nan, "y_train": Y},
    "its val split has no image": {"x_train": X[:4], "y_train": Y[:4]},
    "train split has no image": {"x_train": X[:0], "y_train": Y[:0]},
}


@pytest.mark.parametrize("said", WRONG)
def test_arrays_that_do_not_fit(said, tmp_path):
    np.savez(tmp_path / "a.npz", **WRONG[said])
    with pytest.raises(UserError, match=said) as raised:
        arrays(tmp_path / "a.npz")
    assert "\n" not in str(raised.value)


def test_arrays_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.path=.*nothing: no such file or folder; give a \.npz"):
        arrays(tmp_path / "nothing")
    (tmp_path / "a.npz").write_bytes(b"PK no")
    with pytest.raises(UserError, match=r"a\.npz: expected numpy arrays"):
        arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x_train=np.array([{}]), y_train=Y)
    with pytest.raises(UserError, match=r"expected numpy arrays .*allow_pickle"):
        arrays(tmp_path / "a.npz")


def test_mnist_files_that_are_missing_or_damaged(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    settings = MnistSettings(name="mnist", path=str(tmp_path), **SMALL)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    good = labels.read_bytes()
    labels.write_bytes(good[:-1])
    with pytest.raises(
        UserError, match=r"t10k-labels-idx1-ubyte has 37 bytes, which its header, \(30,\), does not fit"
    ):
        settings.open(None)
    labels.write_bytes(b"\x00\x00\x0d\x01" + good[4:])
    with pytest.raises(UserError, match=r"is not an idx file of bytes in 1 dimension"):
        settings.open(None)
    labels.write_bytes(idx(np.zeros(29, np.uint8)))
    with pytest.raises(UserError, match="test has 30 images and 29 labels"):
        settings.open(None)
    labels.unlink()
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte is missing \(and t10k-labels-idx1-ubyte\.gz\)"):
        settings.open(None)
    labels.with_name(labels.name + ".gz").write_bytes(gzip.compress(good)[:-5])
    with pytest.raises(UserError, match=r"labels-idx1-ubyte\.gz is damaged"):
        settings.open(None)
    with pytest.raises(UserError, match=r"mnist: raw/train-images-idx3-ubyte .*not found.*dataset=digits"):
        MnistSettings(name="mnist", path=str(tmp_path / "elsewhere"), **SMALL).open(None)


# Training batches

AUGMENTED = {"flip": True, "crop_padding": 2, "mixup": 0.4, "label_smoothing": 0.1}


@pytest.mark.parametrize("changes", [{}, AUGMENTED])
def test_a_sample_does_not_depend_on_the_batch_that_it_is_in(changes):
    """So neither ranks nor micro-batches nor where a run was resumed change anything; across an epoch's end too."""
    data = digits(**changes)
    first = 1439 - 10
    inputs, targets = trained(data, 7, first, 24)
    pieces = [trained(data, 7, first + i, 3) for i in range(0, 24, 3)]
    assert (np.concatenate([x for x, _ in pieces]) == inputs).all()
    assert (np.concatenate([y for _, y in pieces]) == targets).all()
    assert not (trained(data, 8, first, 24)[0] == inputs).all()


def test_each_epoch_augments_every_image_anew():
    plain, moved = digits(), digits(flip=True, crop_padding=1)
    size = plain.sizes["train"]
    assert {i.tobytes() for i in trained(plain, 0, 0, size)[0]} == {i.tobytes() for i in whole(plain, "train")[0]}
    epochs = [trained(moved, 0, e * size, size) for e in (0, 1)]
    assert np.bincount(epochs[0][1]).tolist() == np.bincount(moved.labels["train"]).tolist()
    seen = {i.tobytes() for i in epochs[0][0]}
    assert sum(i.tobytes() in seen for i in epochs[1][0]) < 0.2 * size  # 18 ways for each image


def test_crops_and_flips_are_torchvisions():
    data = digits(flip=True, crop_padding=2)
    inputs, labels = trained(data, 3, 0, 300)
    plain = trained(digits(), 3, 0, 300)
    assert (labels == plain[1]).all()
    draws = uniform(keys_of(3, 1, np.arange(300, dtype=np.uint64)), 3)
    places = []
    for got, label, draw, image in zip(inputs, labels, draws, plain[0], strict=True):
        top, left, flip = int(draw[0] * 5), int(draw[1] * 5), bool(draw[2] < 0.5)
        places.append((top, left, flip))
        raw = torch.from_numpy(image * data.std + data.mean)
        expected = TF.crop(TF.pad(raw, 2), top, left, 8, 8)
        expected = TF.normalize(TF.hflip(expected) if flip else expected, data.mean.ravel(), data.std.ravel())
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)
        assert 0 <= label < 10
    assert len(set(places)) == 50, "not every one of 5 x 5 places, mirrored or not, in 300 draws"


def test_random_numbers_are_uniform_and_independent():
    draws = uniform(keys_of(0, 1, np.arange(20_000, dtype=np.uint64)), 3)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:
        assert np.histogram(column, 10, (0, 1))[0] == pytest.approx(np.full(10, 2000), rel=0.12)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 0.03


def test_cropping_without_a_shift_gives_the_image():
    images = random.integers(0, 256, (5, 3, 7, 7), np.uint8)
    assert (cropped(images, 2, np.full(5, 2), np.full(5, 2)) == images).all()


def test_label_smoothing_is_torchs():
    logits = torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
    classes = np.arange(30) % 10
    ours = F.cross_entropy(logits, torch.from_numpy(smoothed(classes, 10, 0.1)), reduction="sum")
    theirs = F.cross_entropy(logits, torch.from_numpy(classes), label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    _, targets = trained(digits(label_smoothing=0.1), 0, 0, 50)
    assert (targets == smoothed(trained(digits(), 0, 0, 50)[1], 10, 0.1)).all()


def test_mixup_mixes_as_timm_does():
    """timm mixes a batch with its reverse; with those partners and shares, images and targets are the same."""
    mixup = pytest.importorskip("timm.data.mixup")
    images, classes = torch.randn(8, 1, 8, 8), np.arange(8)
    mix = mixup.Mixup(mixup_alpha=0.4, mode="elem", label_smoothing=0.1, num_classes=10)
    np.random.seed(0)
    theirs, targets = mix(images.clone(), torch.from_numpy(classes))
    np.random.seed(0)
    share = mix._params_per_elem(8)[0]
    assert len(set(share.tolist())) == 8
    ours = mixed(images.numpy(), images.flip(0).numpy(), share)
    torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-5, atol=1e-6)
    mine = mixed(smoothed(classes, 10, 0.1), smoothed(classes[::-1], 10, 0.1), share)
    torch.testing.assert_close(torch.from_numpy(mine), targets.float(), rtol=1e-5, atol=1e-6)


def test_mixup_draws_partners_from_the_whole_training_set():
    data = digits(mixup=1.0)
    inputs, targets = trained(data, 0, 0, 1000)
    plain, classes = trained(digits(), 0, 0, 1000)
    assert targets.sum(1) == pytest.approx(np.ones(1000), abs=1e-6)
    two = (targets > 0).sum(1) == 2
    assert two.mean() == pytest.approx(0.9, abs=0.05)  # a partner of another class, of ten
    share = targets[np.arange(1000), classes][two]
    assert np.histogram(share, 4, (0, 1))[0] == pytest.approx(np.full(4, two.sum() / 4), rel=0.25)  # Beta(1, 1)
    rest = inputs[two] - share[:, None, None, None] * plain[two]
    partners = rest / (1 - share)[:, None, None, None]
    well = (share > 0.05) & (share < 0.95)
    known = whole(data, "train")[0].reshape(-1, 64)
    distance = [np.abs(known - p.ravel()).max(1).min() for p in partners[well][:50]]
    assert max(distance) < 1e-3


def test_beta_is_beta():
    found = beta(0.4, keys_of(0, 2, np.arange(20_000, dtype=np.uint64)))
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert found.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.03)


def test_evaluation_sees_neither():
    plain, changed = whole(digits(), "val"), whole(digits(**AUGMENTED), "val")
    assert (plain[0] == changed[0]).all() and (plain[1] == changed[1]).all() and changed[1].dtype == np.int64


def test_what_is_held_out_is_cut_once():
    parts = {"train": (np.arange(1000), np.arange(1000) % 10)}
    images, labels, _ = complete(parts)
    assert sorted(np.concatenate(list(images.values()))) == list(range(1000))
    assert all((labels[s] == images[s] % 10).all() for s in images)
    assert len(images["val"]) == len(images["test"]) == HELD_OUT * 1000
    assert (np.diff(images["val"]) > 0).all() and images["val"].min() < 100 < 900 < images["val"].max()


# Folders of images


@pytest.fixture
def folder(tmp_path):
    """train/ and val/ of three classes, images of several sizes and kinds."""
    kinds = [
        ("a.jpg", (40, 30), "RGB"),
        ("b.JPEG", (21, 64), "RGB"),
        ("c.png", (50, 50), "L"),
        ("d.png", (33, 37), "RGBA"),
    ]
    for split in ("train", "val"):
        for number, name in enumerate(("bird", "cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for file, (width, height), mode in kinds:
                noise = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, len(mode)), np.uint8)
                noise[..., 0] = 80 * number
                image = Image.fromarray(noise.squeeze(), mode).resize((width, height))
                image.save(tmp_path / split / name / file)
    (tmp_path / "val" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


IMAGENET = {
    "image_size": 24,
    "resize": 28,
    "smallest_crop": 0.08,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.2, 0.3, 0.4),
}


def images_of(path, **changes):
    return ImageFolderSettings(name="imagenet", path=str(path), **{**PLAIN, **IMAGENET, **changes})


def test_a_folder_is_read_as_torchvision_does(folder):
    data = images_of(folder).open(None)
    usual = transforms.Compose(
        [
            transforms.Resize(28),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET["mean"], IMAGENET["std"]),
        ]
    )
    theirs = datasets.ImageFolder(str(folder / "val"), usual)
    images, labels = whole(data, "val")
    assert labels.tolist() == theirs.targets and data.classes == 3 and data.sizes["train"] == 12
    for got, (expected, _) in zip(images, theirs, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)
    assert "serves as val and as test" in data.note


def test_training_images_are_resized_crops_of_torchvisions(folder):
    data = images_of(folder, flip=True).open(None)
    inputs, labels = trained(data, 5, 0, 12)
    keys = keys_of(5, 1, np.arange(12, dtype=np.uint64))
    indices = in_epochs(0, 12, 12, 5).indices
    assert labels.tolist() == data.labels["train"][indices].tolist()
    for got, index, draws in zip(inputs, indices, uniform(keys, 23), strict=True):
        image = Image.open(data.paths["train"][index]).convert("RGB")
        left, top, right, bottom = random_box(*image.size, 0.08, draws[1:])
        expected = TF.resized_crop(image, top, left, bottom - top, right - left, [24, 24])
        expected = TF.to_tensor(TF.hflip(expected) if draws[0] < 0.5 else expected)
        expected = TF.normalize(expected, IMAGENET["mean"], IMAGENET["std"])
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)


def test_processes_decode_the_same_bytes(folder):
    settings = images_of(folder, flip=True, mixup=0.2)
    alone, helped = settings.open(None), settings.open(None)
    helped.workers = 2
    places = ((0, 4), (4, 20), (24, 1), (3, 12))  # 20: more than one job
    asked = [in_epochs(first, count, alone.sizes["train"], 1) for first, count in places]
    cpu = torch.device("cpu")
    loaded = [list(train_batches(data, 1, iter(asked), cpu)) for data in (alone, helped)]
    for request, *both in zip(asked, *loaded, strict=True):
        expected = alone.train_batch(1, request)
        for batch in both:
            assert all((torch.from_numpy(e) == t).all() for e, t in zip(expected, batch, strict=True))
    places = [np.arange(5), np.array([11, 0, 11])]
    loaded = [list(eval_batches(data, "val", places, cpu)) for data in (alone, helped)]
    for at, *both in zip(places, *loaded, strict=True):
        for batch in both:
            assert all(
                (torch.from_numpy(e) == t).all() for e, t in zip(alone.eval_batch("val", at), batch, strict=True)
            )


def test_what_goes_to_the_device_is_bytes(folder):
    images, targets, others, share = parts(images_of(folder, mixup=0.2).open(None), 5)
    assert images.dtype == others.dtype == np.uint8 and images.shape == others.shape == (5, 3, 24, 24)
    assert torch.from_numpy(images).is_contiguous(memory_format=torch.channels_last)
    assert targets.shape == (5, 3) and share.shape == (5,)
    images, classes = parts(digits(**AUGMENTED | {"mixup": 0.0, "label_smoothing": 0.0}), 5)
    assert images.dtype == np.uint8 and classes.dtype == np.int64


def test_batches_ahead_are_few_and_dropped_when_no_more_is_wanted(folder):
    data = images_of(folder).open(None)
    data.workers = 1
    asked = []

    def requests():
        for first in range(100):
            asked.append(first)
            yield in_epochs(first, 1, data.sizes["train"], 0)

    coming = train_batches(data, 0, requests(), torch.device("cpu"))
    for taken in range(1, 4):
        next(coming)
        assert len(asked) == taken + AHEAD
    coming.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("reading")]


def test_random_boxes_are_distributed_as_torchvisions():
    draws = uniform(keys_of(0, 1, np.arange(4000, dtype=np.uint64)), 22)
    image = torch.empty(3, 60, 100)
    ours = np.array([random_box(100, 60, 0.08, d) for d in draws])
    torch.manual_seed(0)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], list(ASPECTS)) for _ in range(4000)])
    top, left, height, width = theirs.T
    expected = np.stack([left, top, left + width, top + height], 1)
    assert ours.min() >= 0 and ours[:, 2].max() <= 100 and ours[:, 3].max() <= 60
    assert ours.mean(0) == pytest.approx(expected.mean(0), abs=1.5)
    assert ours.std(0) == pytest.approx(expected.std(0), abs=1.5)


@pytest.mark.parametrize("width, height", [(400, 10), (10, 400)])
def test_a_box_where_no_attempt_fits_is_torchvisions(width, height):
    image = torch.empty(3, height, width)
    top, left, h, w = transforms.RandomResizedCrop.get_params(image, [1.0, 1.0], list(ASPECTS))
    assert random_box(width, height, 1.0, np.full(22, 0.5)) == (left, top, left + w, top + h)


def test_folders_that_do_not_fit(folder):
    with pytest.raises(UserError, match=r"resize=20: expected at least image_size=24"):
        images_of(folder, resize=20)
    for path in (folder / "val" / "dog").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"val/dog holds no image"):
        images_of(folder).open(None)
    (folder / "val" / "dog").rmdir()
    with pytest.raises(UserError, match=r"class dog is in .*train, not in .*val"):
        images_of(folder).open(None)
    with pytest.raises(UserError, match=r"imagenet: .*val/train is missing; give the folder that holds train/CLASS"):
        images_of(folder / "val").open(None)


def test_hidden_files_are_no_images(folder):
    data = images_of(folder).open(None)
    (folder / "train" / "cat" / "._a.jpg").write_bytes(b"of another system")
    assert images_of(folder).open(None).fingerprint == data.fingerprint


def test_an_image_that_says_it_is_enormous_is_named(folder):
    path = folder / "train" / "cat" / "a.jpg"
    content = path.read_bytes()
    size = content.index(b"\xff\xc0") + 5  # behind the frame's marker, its length and its depth
    path.write_bytes(content[:size] + b"\xff" * 4 + content[size + 4 :])
    with pytest.raises(Failed, match=r"cat/a\.jpg cannot be read as an image \(DecompressionBombError"):
        trained(images_of(folder).open(None), 0, 0, 12)


def test_an_image_that_cannot_be_read_is_named(folder):
    path = folder / "train" / "cat" / "a.jpg"
    path.write_bytes(path.read_bytes()[:300])
    data = images_of(folder).open(None)
    for workers in (0, 1):
        data.workers = workers
        with pytest.raises(Failed, match=r"cat/a\.jpg cannot be read as an image"):
            trained(data, 0, 0, 12)
    assert data.eval_batch("val", [0])[0].shape == (1, 3, 24, 24), "the process goes on"


def test_a_process_that_is_killed_is_told(folder):
    data = images_of(folder).open(None)
    data.workers = 1
    trained(data, 0, 0, 2)
    data.decoders.processes[0].process.kill()
    with pytest.raises(Failed, match=r"was killed \(exit code -9\): out of memory\? Fewer trainer\.workers need less"):
        trained(data, 0, 0, 2)


def test_processes_end_with_the_one_that_they_decode_for(folder):
    program = (
        "import os, signal, sys\nfrom lawa_exp.axes.dataset.decoding import Decoders\n"
        "kept = Decoders(2, (1,))\nprint(*[d.process.pid for d in kept.processes], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == -signal.SIGKILL, ran.stderr  # its output has an end: they hold it no longer
    assert len(ran.stdout.split()) == 2


def test_a_folders_fingerprint_sees_names_and_sizes(folder):
    before = images_of(folder).open(None).fingerprint
    assert images_of(folder, flip=True).open(None).fingerprint == before
    (folder / "train" / "cat" / "a.jpg").rename(folder / "train" / "cat" / "e.jpg")
    assert images_of(folder).open(None).fingerprint != before


def test_without_a_val_folder_a_tenth_is_cut_off(folder):
    for number in range(20):
        (folder / "train" / "cat" / f"{number}.jpg").write_bytes((folder / "train" / "cat" / "a.jpg").read_bytes())
    (folder / "val").rename(folder / "test")
    data = images_of(folder).open(None)
    assert data.sizes == {"train": 29, "val": 3, "test": 12}
