"""`suggest FOLDER --data IMAGES` on what timm, torchvision and transformers write: it reports what they compute."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import answer, around, pictures, readout, refusal, saved, single, suggestion
from helpers import rows
from PIL import Image
from torch.nn import functional as F

from lawa_exp.convert.validation.labelled import LabelledImages


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def accuracy(model: Any, transform: Any, folder: Path) -> tuple[float, float]:
    """Accuracy and loss, with torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    images = ImageFolder(str(folder), transform)
    x, y = torch.stack([images[i][0] for i in range(len(images))]), torch.tensor(images.targets)
    with torch.no_grad():
        scores = model.eval()(x)
    return float((scores.argmax(-1) == y).double().mean()), float(F.cross_entropy(scores, y))


def test_timm_with_its_own_transform(inside: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.data import create_transform, resolve_data_config
    from timm.utils import CheckpointSaver

    pictures(inside / "images")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    args = argparse.Namespace(model="test_resnet", num_classes=2, img_size=24, mean=(0.5, 0.5, 0.5), std=None)
    (inside / "out").mkdir()
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1), args=args, checkpoint_dir="out", recovery_dir="out"
    )
    states = list(around(model, 5, 0.01))
    for epoch, state in enumerate(states):
        model.load_state_dict(state)
        saver.save_checkpoint(epoch, metric=float(epoch))
    transform = create_transform(**resolve_data_config(vars(args), model=model), is_training=False)
    expected = accuracy(model, transform, inside / "images/val")
    code, out, err = suggestion("out", "--data", "images")
    assert code == 0, err
    assert "timm's test_resnet" in out and "images/val, 60 images of 2 classes" in out and "3x24x24" in out
    made = json.loads((inside / "readouts/out-suggest-data-images/suggestion.json").read_text())
    assert made["values"]["live"] == pytest.approx(expected[0])
    row = single(inside / "out/checkpoint-4.pth.tar", "--data", "images/val")
    assert (row["accuracy"], row["loss"]) == pytest.approx(expected, rel=1e-5)
    (inside / "images/val/class2").mkdir()
    assert "holds no image" in refusal("out", "--data", "images")
    (inside / "images/val/class1/0.png").write_bytes((inside / "images/val/class1/1.png").read_bytes())
    (inside / "images/val/class1/0.png").rename(inside / "images/val/class2/0.png")
    assert "gives 2 scores, and the data have 3 classes" in refusal("out", "--data", "images")


def test_torchvision_as_its_script_evaluates(inside: Path) -> None:
    from torchvision.models import get_model
    from torchvision.transforms._presets import ImageClassification

    pictures(inside / "images")
    torch.manual_seed(0)
    model = get_model("shufflenet_v2_x0_5", num_classes=2)
    sizes = {"val_resize_size": 36, "val_crop_size": 32, "interpolation": "bilinear"}
    args = argparse.Namespace(model="shufflenet_v2_x0_5", weights=None, data_path="images", **sizes)
    (inside / "out").mkdir()
    for epoch, state in enumerate(around(model, 4, 0.01)):
        content = {"model": state, "optimizer": {}, "lr_scheduler": {}, "epoch": epoch, "args": args}
        torch.save(content, inside / "out" / f"model_{epoch}.pth")
    model.load_state_dict(state)
    expected = accuracy(model, ImageClassification(crop_size=32, resize_size=36), inside / "images/val")
    made = answer("out", "--data", "images")
    assert made["values"]["live"] == pytest.approx(expected[0])
    (inside / "two").mkdir()
    for epoch in (0, 1):
        (inside / f"two/model_{epoch}.pth").write_bytes((inside / f"out/model_{epoch}.pth").read_bytes())
    few = refusal("two", "--data", "images")
    assert "1 checkpoint there (model_0.pth, of epoch 0, counts as the initial weights); an average" in few
    row = single(inside / "out/model_3.pth", "--data", "images")
    assert (row["accuracy"], row["loss"]) == pytest.approx(expected, rel=1e-5)
    others = {"model": "shufflenet_v2_x0_5", "pretrained": False}
    before = {**others, "cache_dataset": False, "test_only": False}
    for number, kept in enumerate((others, before)):
        path = inside / f"old{number}.pth"
        torch.save({"model": state, "epoch": 0, "args": argparse.Namespace(**kept)}, path)
    code, _, err = readout(inside / "old0.pth", "--data", "images")
    assert code == 2 and "torchvision's args.model would say it" in err and "give --model" in err
    assert readout(inside / "old1.pth", "--data", "images")[0] == 0


def test_one_channel_of_colours(inside: Path) -> None:
    from torchvision.transforms.functional import to_tensor

    pictures(inside / "images", 2)
    paths = sorted((inside / "images/val").glob("*/*.png"))
    data = LabelledImages(paths, np.array([0, 1]), 2, to_tensor, 1, "", "")
    images, labels = data.eval_batch("val", np.arange(2))
    expected = [to_tensor(Image.open(paths[label]).convert("L")).numpy() for label in labels]
    assert np.array_equal(images, np.stack(expected))


def test_images_in_columns(inside: Path) -> None:
    """Of a saved data set and of Parquet, for a model whose numbers of the classes are not the data's."""
    datasets = pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")

    pictures(inside / "images", 40)
    torch.manual_seed(0)
    names = {"label2id": {"class1": 0, "class0": 1}, "id2label": {0: "class1", 1: "class0"}}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8}
    config = transformers.ViTConfig(hidden_size=16, patch_size=4, **sizes, **names)
    model = transformers.ViTForImageClassification(config)
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    saved(model, processor, inside / "vit", 3)
    paths = sorted((inside / "images/val").glob("*/*.png"))
    labels = [int(path.parent.name[-1]) for path in paths]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["class0", "class1"])}
    columns = {"image": list(map(str, paths)), "label": labels}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"validation": made}).save_to_disk(str(inside / "disk"))
    made.to_parquet(str(inside / "val.parquet"))
    pixels = torch.cat([processor(images=made[i]["image"], return_tensors="pt")["pixel_values"] for i in range(40)])
    own = transformers.ViTForImageClassification.from_pretrained(inside / "vit/checkpoint-30").eval()
    with torch.no_grad():
        expected = float(F.cross_entropy(own(pixels).logits, 1 - torch.tensor(labels)))
    for data in ("disk", "val.parquet", "images"):
        code, out, err = readout(inside / "vit/checkpoint-30", "--data", data, "--out", "alone")
        assert code == 0, err
        assert "classes 0 class1, 1 class0, as the model numbers them" in out
        assert rows(Path("alone"))[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert answer("vit", "--data", "disk")["samples"] == 40
