"""A folder of generated photographs in ImageNet's layout: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZE = (500, 375)  # width and height of a typical image of ImageNet
QUALITY = 90  # of the JPEG files: these are then of about 90 kB, ImageNet's of 110 on average
TINT = 60  # how far the mean colours of classes lie apart


def write_images(root: Path, classes: int, train: int, val: int, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """`train` and `val` images of each class, with a colour of its own so that there is something to learn.

    Coarse noise, scaled up, with fine noise on it: what an encoder makes of it has the size of a photograph.
    """
    from PIL import Image

    draw = np.random.default_rng(seed)
    width, height = size
    colours = draw.integers(-TINT, TINT + 1, (classes, 3))
    for split, count in (("train", train), ("val", val)):
        for number in range(classes):
            folder = root / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            for image in range(count):
                coarse = draw.integers(60, 196, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
                smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
                pixels = smooth + colours[number] + draw.integers(-12, 13, (height, width, 1))
                path = folder / f"{folder.name}_{image}.JPEG"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
