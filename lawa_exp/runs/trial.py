"""One sample through a model from outside, before anything long begins."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn

from lawa_exp.axes.configuration import Config
from lawa_exp.axes.dataset.loading import eval_batches
from lawa_exp.axes.objective.task_loss import Scorer, scores_of
from lawa_exp.evaluation.evaluate import evaluating
from lawa_exp.evaluation.numerics import exact_float32
from lawa_exp.seams.dataset import Dataset
from lawa_exp.system.errors import UserError


def try_model(config: Config, model: nn.Module, data: Dataset) -> None:
    """Evaluates one sample of val, on the CPU. UserError, in a line: the forward pass fails, or its scores do not fit.

    model: with content. What it draws leaves no trace in the random numbers of the training.
    """
    scorer = Scorer(model, data.task, config.model.computes_loss(model))
    with contextlib.closing(eval_batches(data, "val", iter([np.zeros(1, np.int64)]), torch.device("cpu"))) as batches:
        inputs, targets = next(batches)
    exact_float32()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(scorer):
            scorer(inputs, targets)
            is_next_token = config.dataset.inputs == "tokens" and not scorer.computes_loss
            looks_ahead = is_next_token and isinstance(inputs, torch.Tensor) and sees_the_future(model, inputs)
    except UserError as error:
        raise UserError(f"{config.model.named}: {error}") from None
    except Exception as error:  # whatever the user's code raises
        shape = (
            list(inputs.shape) if isinstance(inputs, torch.Tensor) else {n: list(t.shape) for n, t in inputs.items()}
        )
        said = (str(error).strip() or "without a message").splitlines()[0]
        raise UserError(
            f"{config.model.named}: {type(model).__name__} does not take a batch {shape} of "
            f"dataset={config.dataset.name}: {type(error).__name__}: {said}"
        ) from None
    if looks_ahead:
        raise UserError(
            f"{config.model.named}: the scores of {type(model).__name__} for a token depend on later tokens, and "
            f"dataset={config.dataset.name} asks for the next one; choose masked tokens, or a causal model"
        )


def sees_the_future(model: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether other tokens in the second half of a sample change the scores of the first. inputs: [batch, tokens]."""
    half, low, high = inputs.shape[-1] // 2, inputs.min(), inputs.max()
    changed = inputs.clone()
    changed[..., half:] = torch.where(inputs[..., half:] == high, low, high)
    before, after = (scores_of(model(x)) for x in (inputs, changed))
    if half == 0 or before.shape[:2] != inputs.shape:  # nothing to compare, or scores in a shape of their own
        return False
    return bool((before - after)[:, :half].abs().max() > 1e-4 * before.abs().max())
