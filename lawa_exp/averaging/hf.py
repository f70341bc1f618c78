"""Averages in the Hugging Face `Trainer`: `pip install 'lawa_exp[transformers]'`.

trainer = Trainer(...)
trainer.add_callback(AveragingCallback(trainer, lambda model: [Lawa(model, k=5, spacing=100), Ema(model)]))
trainer.train()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging

from lawa_exp.averaging.model import ModelAverager
from lawa_exp.averaging.swap import Swap, same_random_numbers
from lawa_exp.averaging.tensors import is_sharded, named_tensors

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import ProcessorMixin, TrainerControl, TrainerState, TrainingArguments
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    Processing = PreTrainedTokenizerBase | ProcessorMixin | BaseImageProcessor

logger = logging.get_logger(__name__)
BEST = "best"  # beside the averagers' ids, in the file of a checkpoint


@dataclass(frozen=True)
class Best:
    """The average that was best at any evaluation so far, and its weights then, of a sharded model this rank's."""

    id: str
    step: int
    value: float
    weights: dict[str, Tensor]


class AveragingCallback(TrainerCallback):
    """Averages that are evaluated when the trainer evaluates, resumed with its checkpoints, and saved at the end.

    make: the averagers, made for the model when training begins (wrapped and on its device). Where the trainer
    evaluates, each average that is defined is evaluated on the same data: `eval_lawa-k5-s100_loss` and so on are added
    to the live metrics, which stay as they are. The training does not change: the live weights and the random
    numbers are put back. Checkpoints hold the live weights, and what the averagers need in a file `averages_0.pt` of
    their own (one for each rank if the model is sharded, for the same number of ranks). When training ends each average
    is written as a model folder, `<output_dir>/averages/<id>`.

    resume_from_checkpoint: where that file is read when a training is resumed: True, in the checkpoint of that step in
    `output_dir`; a path, in that checkpoint; False, nowhere: averaging begins at that step. FileNotFoundError if it is
    missing, as in a checkpoint that was cut short or was saved without averages.

    load_best: extends `load_best_model_at_end`, which it needs, to the averages: the model ends with the weights that
    were best at any evaluation, live or averaged, by `metric_for_best_model` and `greater_is_better`. `best` is the
    best average with its step and value. Its weights are kept on the CPU, and in the file of each checkpoint.
    """

    def __init__(
        self,
        trainer: Trainer,
        make: Callable[[nn.Module], list[ModelAverager]],
        resume_from_checkpoint: bool | str | Path = True,
        load_best: bool = False,
    ) -> None:
        self.trainer, self.make, self.resume_from = trainer, make, resume_from_checkpoint
        self.load_best = load_best
        self.best: Best | None = None
        self.averagers: list[ModelAverager] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        assert model is not None
        if self.trainer.is_deepspeed_enabled or state.is_hyper_param_search:
            raise ValueError("AveragingCallback works neither with DeepSpeed nor in a hyperparameter search")
        self.averagers = self.make(model)
        ids = [a.id for a in self.averagers]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two averagers are the same: {', '.join(ids)}")
        self.best = None
        if self.load_best:
            self._check_best(args)
        if state.global_step and self.resume_from is not False:
            own = isinstance(self.resume_from, bool)
            file = self._file(_checkpoint(args, state) if own else Path(str(self.resume_from)), args)
            if not file.exists():
                raise FileNotFoundError(
                    f"{file}: the checkpoint was cut short or saved without averages. Resume from an earlier one, name"
                    " its folder in AveragingCallback(resume_from_checkpoint=...), or begin averaging here with False"
                )
            saved = torch.load(file, map_location="cpu", weights_only=True)
            for averager in self.averagers:
                if averager.id not in saved:
                    raise ValueError(
                        f"{file} holds no {averager.id}, but {', '.join(id for id in saved if id != BEST)}"
                    )
                averager.load_state_dict(saved[averager.id])
            if self.load_best and BEST not in saved:
                logger.warning(
                    f"{file} was saved without load_best: averages before step {state.global_step} do not count"
                )
            self.best = Best(**saved[BEST]) if saved.get(BEST) else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        for averager in self.averagers:
            averager.update(state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        eval_dataloader: DataLoader | None = None,
        **_: object,
    ) -> None:
        """Adds to `metrics`, which `Trainer.evaluate` then returns."""
        defined = [a for a in self.averagers if a.defined and not a.in_place]
        if not defined:
            return
        assert metrics is not None and eval_dataloader is not None
        prefix = next(key for key in metrics if key.endswith("_runtime")).removesuffix("_runtime")
        of_averages: dict[str, float] = {}
        with same_random_numbers():
            for averager in defined:
                with averager.applied():
                    output = self.trainer.evaluation_loop(  # `evaluate` would call all callbacks again, this one too
                        eval_dataloader,
                        description=f"Evaluation of {averager.id}",
                        prediction_loss_only=True if self.trainer.compute_metrics is None else None,
                        metric_key_prefix=f"{prefix}_{averager.id}",
                    )
                of_averages.update(output.metrics or {})
                if self.load_best and self.trainer.is_in_train:
                    self._compare(averager, metrics, output.metrics or {}, prefix)
        self.trainer.log(dict(of_averages))
        metrics.update(of_averages)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                callback.on_evaluate(args, state, control)  # closes the bar of these evaluations

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Writes into the checkpoint's folder, once that is complete."""
        if args.save_only_model or not (args.should_save or self._is_sharded):
            return
        file = self._file(_checkpoint(args, state), args)
        partial = file.with_name(f".partial-{file.name}")
        best = {BEST: self.best and vars(self.best)} if self.load_best else {}
        torch.save({a.id: a.state_dict() for a in self.averagers} | best, partial)
        partial.replace(file)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Processing | None = None,
        **_: object,
    ) -> None:
        assert model is not None
        for averager in self.averagers:
            if not averager.defined:
                logger.warning(f"{averager.id} is not defined after {state.global_step} steps: it is not saved")
                continue
            weights = averager.full_average(tied_once=True)
            if weights is not None:
                self._write(_folder(args) / "averages" / averager.id, weights, model, processing_class)
        if self.best is not None and _is_better(self.best.value, state.best_metric, args):
            logger.info(f"Loading {self.best.id} of step {self.best.step}, the best weights ({self.best.value}).")
            Swap(self.averagers[0].model).place(self.best.weights)

    def _check_best(self, args: TrainingArguments) -> None:
        if not args.load_best_model_at_end:
            raise ValueError("load_best=True needs TrainingArguments(load_best_model_at_end=True), which it extends")
        metric = str(args.metric_for_best_model)
        if any(a.id in metric for a in self.averagers):
            raise ValueError(
                f"metric_for_best_model={metric} is of an average; with load_best=True expected the live weights' "
                "metric, such as eval_loss: averages are compared by theirs of that name"
            )

    def _compare(
        self, averager: ModelAverager, live: dict[str, float], averaged: dict[str, float], prefix: str
    ) -> None:
        """Keeps the average's weights if they are the best so far."""
        args = self.trainer.args
        key = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        if key not in live:  # of another data set
            return
        value = float(averaged[f"{prefix}_{averager.id}{key.removeprefix(prefix)}"])
        if _is_better(value, None if self.best is None else self.best.value, args):
            weights = {name: tensor.to("cpu", copy=True) for name, tensor in (averager.average() or {}).items()}
            self.best = Best(averager.id, self.trainer.state.global_step, value, weights)

    def _write(
        self, folder: Path, weights: dict[str, Tensor], model: nn.Module, processing_class: Processing | None
    ) -> None:
        unwrapped = self.trainer.accelerator.unwrap_model(model)
        if hasattr(unwrapped, "save_pretrained"):
            unwrapped.save_pretrained(folder, state_dict=weights)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "model.safetensors")
        if processing_class is not None:
            processing_class.save_pretrained(folder)

    @property
    def _is_sharded(self) -> bool:
        return any(is_sharded(t) for a in self.averagers[:1] for t in named_tensors(a.model).values())

    def _file(self, checkpoint: Path, args: TrainingArguments) -> Path:
        return checkpoint / f"averages_{args.process_index if self._is_sharded else 0}.pt"


def _is_better(value: float, than: float | None, args: TrainingArguments) -> bool:
    if than is None:
        return value == value
    return value > than if args.greater_is_better else value < than


def _folder(args: TrainingArguments) -> Path:
    assert args.output_dir is not None  # `TrainingArguments` has a default
    return Path(args.output_dir)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return _folder(args) / f"checkpoint-{state.global_step}"
