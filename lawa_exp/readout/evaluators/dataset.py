"""What evaluates a model of ours on a data set of ours: the task's loss, or what a score makes of the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch

from lawa_exp.axes.configuration import Config
from lawa_exp.axes.dataset.tokenizers import load_tokenizer
from lawa_exp.evaluation.score import OnModel
from lawa_exp.readout.evaluators.base import Checkpoints, Evaluator, composed, of_model
from lawa_exp.readout.of_run import prepared
from lawa_exp.readout.request import Request
from lawa_exp.readout.subject import Named
from lawa_exp.readout.tokenizer import FILE, check_tokenizer, of_tokens
from lawa_exp.runs.choices import config_from
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.seams.dataset import Dataset
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks, start_device
from lawa_exp.system.errors import UserError

Scores: TypeAlias = Callable[[Config, Dataset, torch.device, Ranks], OnModel]


def on_dataset(request: Request, checkpoints: Checkpoints, score_of: Scores = OnModel) -> Evaluator:
    """--dataset, with --model or the model that config.json names; a run's own without either.

    score_of: what is measured on it, the task's loss if nothing else.
    """
    target, e = request.target, request.evaluation
    written = RunDir(Path(target.run)).read_config() if target.repository is None else None
    if written and e.how and not (e.model or e.dataset):
        p, device, ranks = prepared(target, RunDir(Path(target.run)), written, config_from(written), [])
        title = f"{p.config.model.name} on {p.config.dataset.name}, run {Path(target.run).resolve().name}"
    else:
        p, device, ranks = opened(request, checkpoints)
        title = f"{checkpoints.name} as {e.model} on {e.dataset}" if e.model else f"{checkpoints.name} on {e.dataset}"
    score = score_of(p.config, p.data, device, ranks)
    if target.bn and score.bn is None:
        raise UserError(f"--bn={target.bn}: model={p.config.model.name} has no BatchNorm")
    notes = [f"Data: {p.data.note}."] if p.data.note else []
    identity = {"data": p.data.fingerprint, "evaluate": str(p.config.evaluate), "dtype": p.config.trainer.dtype}
    made = of_model(e.model, score, Named(title, p.data.task.metrics["loss"].unit), identity)
    return replace(made, statistics=score.statistics, bn=score.bn, notes=notes, task=p.data.task)


def opened(request: Request, checkpoints: Checkpoints) -> tuple[Prepared, torch.device, Ranks]:
    """The data set that --dataset names, and the model, with a tokenizer that is the model's."""
    target, e, folder = request.target, request.evaluation, checkpoints.folder
    if not e.dataset:
        raise UserError(f"RUN={target.run} is no run of ours: give --data, --model and --dataset, or --evaluate")
    unresolved, options = composed(request, checkpoints, [f"dataset={e.dataset}"])
    if target.bn:
        unresolved = replace(unresolved, evaluate=unresolved.evaluate.changed(bn=target.bn))
    device, ranks = start_device(target.device or unresolved.device)
    p = prepare(replace(unresolved, averagers=()), options, device, ranks)
    dataset, vocab_size = unresolved.dataset, unresolved.model.vocab_size
    if dataset.tokenizer is not None:
        tokenizer = load_tokenizer(dataset.tokenizer, dataset.tokenizer_path)
        check_tokenizer(tokenizer, vocab_size, folder, f"dataset.tokenizer={dataset.tokenizer}")
    elif (folder / FILE).is_file() and (sole := of_tokens(dataset)):
        check_tokenizer(sole, vocab_size, folder, f"dataset={dataset.name} (tokenizer {sole.name})")
    return p, device, ranks
