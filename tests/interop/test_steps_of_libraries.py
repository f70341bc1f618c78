"""Which steps: folders that the libraries' own savers wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from averaged_files import average, refused

from lawa_exp.formats.steps import find_checkpoints


def fit(folder: Path, callbacks: list[object]) -> None:
    """Six updates of a small module by Lightning, two an epoch."""
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning: pip install 'lawa_exp[interop]'")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, number):
            self.log("val_loss", 1 / (1 + self.global_step))
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=3, callbacks=callbacks, default_root_dir=folder, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(2, 2), batch_size=1))


@pytest.mark.parametrize("name", [None, "{epoch}-{val_loss:.2f}", "{val_loss:.3f}", "{epoch}"])
def test_lightnings_names(name, tmp_path, capsys):
    """The default, names with a metric, with nothing else, without a step; `last` is left out."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks", reason="needs lightning")
    saver = callbacks.ModelCheckpoint(
        tmp_path / "saved", name, save_top_k=-1, every_n_train_steps=2, save_last=True, monitor=None
    )
    fit(tmp_path, [saver])
    found = find_checkpoints(tmp_path / "saved", "RUN")
    assert list(found.paths) == [2, 4, 6] and found.how == "global_step in the files"
    assert [name for name, _ in found.left_out] == ["last.ckpt"]
    average(*sorted(found.paths.values(), reverse=True), "--method", "wma", "--out", tmp_path / "out")
    assert "read 3 checkpoints: step 2" in capsys.readouterr().out


def test_lightnings_averages_are_not_averaged_again(tmp_path, capsys):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks", reason="needs lightning")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("needs a lightning with EMAWeightAveraging")
    saver = callbacks.ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_train_steps=2)
    fit(tmp_path, [callbacks.EMAWeightAveraging(decay=0.5), saver])
    said = refused(capsys, "--trajectory", tmp_path / "saved", "--k", 2, "--out", tmp_path / "out")
    assert "are averages already" in said and "live weights are in current_model_state" in said


def test_timms_saver(tmp_path, capsys):
    utils = pytest.importorskip("timm.utils", reason="needs timm: pip install 'lawa_exp[test]'")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = utils.CheckpointSaver(
        model,
        optimizer,
        argparse.Namespace(model="linear"),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
        max_history=9,
    )
    for epoch, metric in enumerate((50.0, 70.0, 60.0, 65.0)):
        saver.save_recovery(epoch, 40)
        saver.save_checkpoint(epoch, metric)
    average("--trajectory", tmp_path, "--k", 3, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "read 3 checkpoints: epoch 1 (checkpoint-1.pth.tar) to epoch 3 (checkpoint-3.pth.tar), by epoch" in said
    assert {p.name for p in tmp_path.glob("*.tar")} > {"last.pth.tar", "model_best.pth.tar", "recovery-3-40.pth.tar"}
