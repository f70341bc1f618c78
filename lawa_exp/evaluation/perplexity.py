"""Perplexity of any text, by token and by word."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lawa_exp.axes.dataset.tasks import Tokens
from lawa_exp.axes.dataset.tokenizers import Tokenizer
from lawa_exp.evaluation.evaluate import evaluating
from lawa_exp.evaluation.numerics import scorer_for
from lawa_exp.evaluation.score import InModel, LanguageModel, Scored
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

NORMALISED = "tokens are the tokenizer's, words what white space separates, bytes those of UTF-8"


class Perplexity(InModel):
    """Evaluates weights on one text, from end to end: each token once, windows one behind the other.

    The first token follows the tokenizer's end of text (without one it is context only); the last window is filled up
    with tokens before it, as in lm-evaluation-harness's `loglikelihood_rolling`. The loss is nats per token. Measures:
    token_perplexity = exp(nats / tokens), word_perplexity = exp(nats / words), bits_per_byte = nats / ln 2 / bytes.
    """

    def __init__(
        self, subject: LanguageModel, device: torch.device, ranks: Ranks, tokenizer: Tokenizer, text: str, name: str
    ) -> None:
        super().__init__(subject, device, ranks)
        self.scorer = scorer_for(subject, self.model, Tokens())
        self.batch_size, self.name = subject.batch_size, name
        self.words, self.bytes = len(text.split()), len(text.encode())
        tokens = tokenizer.encode(text).astype(np.int64)
        first = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        stream = np.concatenate([np.array(first, np.int64), tokens])
        if len(stream) < 2 or not self.words:
            raise UserError(f"--text {name}: no text of two tokens there")
        self.tokens = len(stream) - 1
        self.inputs, self.targets = windows(stream, subject.context)

    def __call__(
        self, weights: Mapping[str, Tensor], split: str = "val", samples: int | None = None, bn: str | None = None
    ) -> Scored:
        size = self.batch_size
        sums = torch.zeros(-(-len(self.inputs) // size), 2, dtype=torch.float64, device=self.device)
        self.swap.place(weights)
        with evaluating(self.scorer), torch.no_grad():
            for batch in range(self.ranks.rank, len(sums), self.ranks.world):
                rows = slice(batch * size, (batch + 1) * size)
                inputs, targets = (torch.from_numpy(a[rows]).to(self.device) for a in (self.inputs, self.targets))
                with self.autocast():
                    sums[batch] = self.scorer(inputs, targets)
        summed = self.ranks.sum(sums).cpu().numpy()
        nats = float(np.add.accumulate(summed[:, 0])[-1])
        of = {"token_perplexity": self.tokens, "word_perplexity": self.words}
        values = {metric: (_exp(nats / count), count) for metric, count in of.items()}
        values["bits_per_byte"] = (nats / math.log(2) / self.bytes, self.bytes)
        named = {"split": "text", "task": self.name}
        measures = [{**named, "metric": m, "value": value, "count": count} for m, (value, count) in values.items()]
        return Scored({"loss": nats / self.tokens, "eval_samples": len(self.inputs)}, summed, tuple(measures))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def windows(stream: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """inputs, targets: int64 [windows, context]; every token of the stream but the first is a target once."""
    context = min(context, len(stream) - 1)
    last = len(stream) - 1 - context
    begins = [*range(0, last, context), last]
    inputs = np.stack([stream[b : b + context] for b in begins])
    targets = np.stack([stream[b + 1 : b + 1 + context] for b in begins])
    if len(begins) > 1:
        targets[-1, : begins[-2] + context - begins[-1]] = IGNORE  # those that the window before has
    return inputs, targets
