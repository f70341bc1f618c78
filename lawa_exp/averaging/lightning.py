"""Averages in Lightning's `Trainer`: `pip install 'lawa_exp[lightning]'`.

from lawa_exp.averaging.lightning import AveragingCallback

trainer = Trainer(callbacks=[AveragingCallback(lambda model: [Lawa(model, k=5, spacing=100), Ema(model)])])
trainer.fit(module, train_loader, val_loader)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lawa_exp.averaging.model import ModelAverager
from lawa_exp.averaging.statistics import recalibrate, recalibrated
from lawa_exp.averaging.swap import same_random_numbers

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

KEY = "averages"  # in a checkpoint, and the folder at the end


class AveragingCallback(Callback):
    """Averages that are validated when the trainer validates, and saved and resumed with its checkpoints.

    make: the averagers, made for the module when training begins. They are updated once for each optimizer step,
    whatever `accumulate_grad_batches` is; a step is `trainer.global_step`. Where the trainer validates, each average
    that is defined is validated first, in a pass of its own over the same data: what the module logs as `val_loss` in
    it is `lawa-k5-s100/val_loss` for the loggers, for ModelCheckpoint and for EarlyStopping. So n averages make a
    validation take n + 1 times as long. In these passes the module's own hooks are called, other callbacks and loggers
    are not. The sanity check has no averages. The training does not change: the live weights and the random numbers
    are put back.

    A checkpoint has the live weights under `state_dict`, each average under `averages`, by id, and what the averagers
    need to go on under `callbacks`. When training ends each average is written as a checkpoint of weights alone,
    `averages/<id>.ckpt` in ModelCheckpoint's folder, for `load_from_checkpoint`; without a ModelCheckpoint none is.

    resume: False begins averaging at the step of a checkpoint that was saved without averages, which else is a
    ValueError. batches: for BatchNorm, a function that gives training batches; with it each average is validated and
    saved with statistics of its own, as by `recalibrate(averager, batches(), forward)`.

    One device or DDP, compiled or not; other strategies are a ValueError.
    """

    def __init__(
        self,
        make: Callable[[nn.Module], list[ModelAverager]],
        resume: bool = True,
        batches: Callable[[], Iterable[object]] | None = None,
        forward: Callable[..., object] | None = None,
    ) -> None:
        self.make, self.resume, self.batches, self.forward = make, resume, batches, forward
        self.averagers: list[ModelAverager] = []
        self._saved: Mapping[str, Mapping[str, object]] | None = None  # of the checkpoint that this fit goes on from
        self._step = 0  # of the last update
        self._module: LightningModule | None = None  # that the averagers are of

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._saved = None

    def load_state_dict(self, state_dict: Mapping[str, Mapping[str, object]]) -> None:
        self._saved = state_dict

    def state_dict(self) -> dict[str, Any]:
        return {a.id: a.state_dict() for a in self.averagers}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(strategy, DeepSpeedStrategy):
            raise ValueError(
                f"AveragingCallback: the strategy is {type(strategy).__name__}; expected one device or DDP. "
                "A model that fully_shard shards can be averaged in a loop of your own (docs/loops.md)"
            )
        if self._saved or self._module is not pl_module or self._step != trainer.global_step:  # not the fit before's
            if self.batches is not None:
                recalibrated(pl_module)
            self._module, self.averagers = pl_module, self.make(pl_module)
            ids = [a.id for a in self.averagers]
            if len(set(ids)) < len(ids):
                raise ValueError(f"two averagers are the same: {', '.join(ids)}")
            if trainer.global_step and self.resume:
                self._take_over(trainer)
        self._saved, self._step = None, trainer.global_step
        self._validate_averages_too(trainer)

    def _take_over(self, trainer: Trainer) -> None:
        if self._saved is None:
            raise ValueError(
                f"AveragingCallback: {trainer.ckpt_path or 'the training'}, at step {trainer.global_step}, holds no "
                "averages. Resume from a checkpoint that does, or begin averaging here with resume=False"
            )
        for averager in self.averagers:
            if averager.id not in self._saved:
                raise ValueError(
                    f"AveragingCallback: {trainer.ckpt_path} holds no {averager.id}, but {', '.join(self._saved)}"
                )
            averager.load_state_dict(self._saved[averager.id])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step > self._step:  # it comes for each batch, also for one that is only accumulated
            self._step = trainer.global_step
            for averager in self.averagers:
                averager.update(self._step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        averages: dict[str, dict[str, object]] = {}
        for averager in self._defined():
            with self._in_place(averager):
                weights = trainer.strategy.lightning_module_state_dict()
                if trainer.is_global_zero:  # whose checkpoint is written
                    averages[averager.id] = {
                        name: value.to("cpu", copy=True) if isinstance(value, Tensor) else value
                        for name, value in weights.items()
                    }
        checkpoint[KEY] = averages

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is None or trainer.fast_dev_run:
            return
        for averager in self.averagers:
            if not averager.defined:
                rank_zero_info(f"{averager.id} is not defined after {self._step} steps: it is not saved")
                continue
            with self._in_place(averager):
                trainer.save_checkpoint(f"{folder}/{KEY}/{averager.id}.ckpt", weights_only=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(trainer.fit_loop.epoch_loop.val_loop).pop("run", None)

    def _defined(self) -> list[ModelAverager]:
        return [a for a in self.averagers if a.defined and not a.in_place]

    @contextmanager
    def _in_place(self, averager: ModelAverager) -> Iterator[None]:
        with same_random_numbers(), averager.applied():
            if self.batches is not None:
                recalibrate(averager, self.batches(), self.forward)
            yield

    def _validate_averages_too(self, trainer: Trainer) -> None:
        """Before each validation of `fit`: in a hook of it, data loaders and the module's metrics are in use."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        vars(loop).pop("run", None)
        of_live_weights = loop.run

        def run() -> Any:
            loop.setup_data()
            if not loop.skip and not trainer.sanity_checking:
                metrics: dict[str, Tensor] = {}
                logged: dict[str, Tensor] = {}
                for averager in self._defined():
                    of_average, names = self._validate(trainer, averager)
                    metrics |= {f"{averager.id}/{name}": value for name, value in of_average.items()}
                    logged |= {f"{averager.id}/{name}": of_average[name] for name in names}
                trainer._logger_connector._callback_metrics.update(metrics)
                trainer._logger_connector.log_metrics(logged)
            return of_live_weights()

        loop.run = run

    def _validate(self, trainer: Trainer, averager: ModelAverager) -> tuple[dict[str, Tensor], list[str]]:
        """The metrics of one pass, and the names of those that loggers get."""
        epoch_loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
        live = epoch_loop.val_loop
        loop = type(live)(trainer, live._trainer_fn, live._stage, verbose=False, inference_mode=live.inference_mode)
        for name in ("_data_source", "_combined_loader", "_max_batches", "_last_val_dl_reload_epoch"):
            setattr(loop, name, getattr(live, name))
        kept, loggers, callbacks = vars(connector).copy(), trainer.loggers, trainer.callbacks
        try:
            epoch_loop.val_loop, trainer.callbacks = loop, []
            trainer.loggers = [DummyLogger() for _ in loggers]
            connector.reset_metrics()
            with self._in_place(averager):
                logged = [name for of_loader in loop.run() for name in of_loader]
            metrics = connector._callback_metrics
            return metrics, [name for name in logged if name in metrics]
        finally:
            epoch_loop.val_loop, trainer.callbacks, trainer.loggers = live, callbacks, loggers
            vars(connector).update(kept)
