"""Images in a folder for each class, in the order of torchvision's ImageFolder; below val/ or test/, if there."""

from __future__ import annotations

from pathlib import Path

from lawa_exp.axes.dataset.image_folder import SUFFIXES, list_classes
from lawa_exp.axes.dataset.tables import listed
from lawa_exp.convert.validation.content import Content, Pictures, Place, split_in
from lawa_exp.system.errors import UserError


def content(place: Place) -> Content | None:
    """None: no folder in it holds images. UserError: only a train folder, or a class without images."""
    if not place.path.is_dir():
        return None
    folders = sorted(p.name for p in place.path.iterdir() if p.is_dir() and not p.name.startswith("."))
    splits = [name for name in split_in(folders) if _has_classes(place.path / name)]
    if len(splits) > 1:
        raise UserError(f"{place}: several folders: {listed(splits)}; give one of them")
    root = place.path / splits[0] if splits else place.path
    if root == place.path and not _has_classes(root):
        if any(_has_classes(root / name) for name in folders):
            raise UserError(f"{place}: no folder is called val or test: {listed(folders)}; give the one to evaluate on")
        return None
    try:
        files_of = list_classes("--data", root)
    except UserError as error:
        raise UserError(f"{place}: {str(error).removeprefix('dataset=--data: ')}") from None
    paths = [path for files in files_of.values() for path in files]
    labels = [label for label, files in enumerate(files_of.values()) for _ in files]
    return Pictures(paths, labels, list(files_of), f"{root}, {len(paths):,} images of {len(files_of):,} classes")


def _has_classes(folder: Path) -> bool:
    """Whether a folder in it holds an image."""
    inner = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return any(next((True for p in one.iterdir() if p.suffix.lower() in SUFFIXES), False) for one in inner)
