"""A module, its data and a trainer for test_lightning.py, which also starts this on two ranks."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lawa_exp.averaging import Ema, Lawa, Swa
from lawa_exp.averaging.lightning import AveragingCallback

IDS = ["lawa-k3-s2", "ema-d0.8-e1", "swa-e1-from4"]


class Module(pl.LightningModule):
    """It keeps its weights after each step, logs metrics of every sort, and counts what it validates itself."""

    def __init__(self, width: int = 6, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers = [nn.Linear(4, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1)]
        if norm:
            layers.insert(1, nn.BatchNorm1d(width))
        self.net = nn.Sequential(*layers)
        self.mean = torchmetrics.MeanMetric()
        self.weights: dict[int, dict[str, torch.Tensor]] = {}  # after each step
        self.losses: list[float] = []
        self.seen: list[int] = []
        self.killed_at = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        if self.killed_at and self.global_step == self.killed_at:
            raise InterruptedError
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.losses.append(loss.item())
        return loss

    def on_train_batch_end(self, outputs: object, batch: object, number: int) -> None:
        self.weights[self.global_step] = {n: t.clone() for n, t in self.state_dict().items()}

    def validation_step(self, batch: list[torch.Tensor], number: int, dataloader_idx: int = 0) -> None:
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("val_loss", loss, prog_bar=True)
        self.log("val_hidden", loss, logger=False, on_step=True, on_epoch=True)
        self.mean.update(loss)
        self.log("val_mean", self.mean)
        self.seen.append(len(batch[0]))

    def on_validation_end(self) -> None:
        expected = 4 if self.trainer.sanity_checking else 10 // self.trainer.world_size
        assert sum(self.seen) == expected * len(self.trainer.num_val_batches)  # and nothing that another pass saw
        self.seen.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def averagers(model: nn.Module) -> list[object]:
    return [Lawa(model, k=3, spacing=2), Ema(model, decay=0.8), Swa(model, start=4)]


def loader(first: int, count: int, **options: object) -> DataLoader:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(*(t[first : first + count] for t in (x, x.sum(1, keepdim=True).sin())))
    return DataLoader(data, 2, **options)


class Live(pl.Callback):
    """The live metrics, as any other callback sees them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.starts = 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.starts += 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.losses.append(trainer.callback_metrics["val_loss"].item())
            assert trainer.callback_metrics["val_mean"].item() == self.losses[-1]


def trainer(folder: Path, callbacks: list[object], **options: object) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"max_epochs": 4, "val_check_interval": 1.0, "default_root_dir": folder, "logger": False}
    return pl.Trainer(**quiet | {"callbacks": callbacks} | options)


def fit(
    folder: Path, module: Module, callbacks: list[object], resume: Path | None = None, **options: object
) -> pl.Trainer:
    """18 samples in batches of 2, of which 4 go into a step: 3 steps an epoch, the last of one batch."""
    made = trainer(folder, callbacks, accumulate_grad_batches=4, **options)
    made.fit(module, loader(0, 18, shuffle=module.hparams.dropout > 0), loader(18, 10), ckpt_path=resume)
    return made


def module(**arguments: object) -> Module:
    pl.seed_everything(1, verbose=False)
    return Module(**arguments)


def on_two_ranks(folder: Path) -> None:
    made, averaging = module(), AveragingCallback(averagers)
    run = fit(folder, made, [averaging], strategy="ddp", devices=2)
    found = {a.id: a.average() for a in averaging.averagers}
    torch.save((found, made.weights, run.callback_metrics), folder / f"rank{run.global_rank}.pt")


if __name__ == "__main__":
    on_two_ranks(Path(sys.argv[1]))
