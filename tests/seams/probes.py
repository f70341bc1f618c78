"""Small methods, one or two for each seam: if one of them needed a line in the loop, the seam would be wrong.

They are registered as choices of the tables (`register`), as if they were files of the package, by tests and by
`python -m seams.command`, which is `python -m lawa_exp` with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.dataset.tasks import Tokens
from lawa_exp.axes.layers import LAYERS
from lawa_exp.axes.layers.settings import LayersSettings
from lawa_exp.axes.model import MODELS
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.axes.objective import OBJECTIVES
from lawa_exp.axes.objective.settings import ObjectiveSettings
from lawa_exp.axes.sampling import SAMPLERS
from lawa_exp.axes.sampling.settings import SamplingSettings
from lawa_exp.axes.update import UPDATES
from lawa_exp.axes.update.settings import UpdateSettings
from lawa_exp.config.rules import boolean, integer, number, setting, steps, text
from lawa_exp.config.tables import Table
from lawa_exp.seams.callback import Callback, Saved
from lawa_exp.seams.context import Context
from lawa_exp.seams.layers import buffers_kept
from lawa_exp.seams.noise import keyed_uniform
from lawa_exp.seams.objective import Objective
from lawa_exp.seams.sampler import Sampler
from lawa_exp.seams.samples import Pass, Samples
from lawa_exp.seams.task import IGNORE, Metric, Task
from lawa_exp.system.distributed import Ranks

# 1. A sampler that learns from losses: hard mini-batches (Suresh et al. 2023)


@dataclass(frozen=True)
class HardBatches(SamplingSettings):
    """share: of the fixed batches those with the largest losses make the next pass; the first pass is over all."""

    share: float = setting(number(above=0, high=1), "share of the batch")
    count: int = setting(integer(1), "number of candidates")

    def build(self, context: Context) -> HardestAgain:
        return HardestAgain(self, context.batches.size(1))


class HardestAgain(Sampler):
    def __init__(self, s: HardBatches, size: int) -> None:
        self.size, self.chosen = size, max(1, int(s.share * s.count))
        self.losses, self.pass_, self.begins = np.zeros(s.count), np.arange(s.count), 0

    def decided_until(self, step: int) -> int:
        return self.begins + len(self.pass_)

    def samples(self, step: int) -> Samples:
        if step > self.decided_until(step):  # all losses of the pass have arrived
            hardest = np.argsort(-self.losses, kind="stable")[: self.chosen]
            self.begins, self.pass_ = step - 1, np.sort(hardest)
        places = self.pass_[step - self.begins - 1] * self.size + np.arange(self.size)
        return Samples(places, places)

    def arrived(self, step: int, numbers: Mapping[str, float]) -> Mapping[str, float]:
        self.losses[self.pass_[step - self.begins - 1]] = numbers["loss"]
        return {}

    def state(self) -> Saved:
        return {"losses": torch.from_numpy(self.losses), "pass": torch.from_numpy(self.pass_)}, {"begins": self.begins}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self.losses, self.pass_ = tensors["losses"].numpy().copy(), tensors["pass"].numpy().copy()
        self.begins = scalars["begins"]


# 2. A sampler with candidates: of twice as many samples those with the largest losses


@dataclass(frozen=True)
class LargestLosses(SamplingSettings):
    passes: ClassVar[float] = 2 / 3  # forward passes over twice as many samples

    def build(self, context: Context) -> Chooser:
        return Chooser(context)


class Chooser(Sampler):
    def __init__(self, context: Context) -> None:
        self.c, self.chosen, self.last = context, np.zeros(0, np.int64), 0

    def decided_until(self, step: int) -> int:
        return max(step, self.last)

    def candidates(self, step: int) -> Samples:
        first, size = 2 * self.c.batches.samples(step - 1), 2 * self.c.batches.size(step)
        return in_epochs(first, size, self.c.data.sizes["train"], self.c.seed)

    def read_samples(self, step: int) -> int:
        return 2 * self.c.batches.samples(step)

    def choose(self, step: int, batches: Iterable[tuple[Pass, tuple[Any, Tensor]]]) -> None:
        losses = torch.zeros(2 * self.c.batches.size(step), dtype=torch.float64, device=self.c.device)
        for at, (inputs, targets) in batches:
            logits = self.c.model(inputs).flatten(0, -2)
            of_tokens = F.cross_entropy(logits, targets.flatten(), reduction="none")
            losses[at.first : at.first + len(at.samples)] = of_tokens.view(len(targets), -1).mean(1).double()
        ordered = self.c.ranks.sum(losses).argsort(descending=True)[: self.c.batches.size(step)]
        self.chosen, self.last = np.sort(ordered.cpu().numpy()), step

    def samples(self, step: int) -> Samples:
        both = self.candidates(step)
        return Samples(both.numbers[self.chosen], both.indices[self.chosen])


# 3. Two terms with different denominators, and a module of its own, tied to the model


@dataclass(frozen=True)
class TwoTerms(ObjectiveSettings):
    weight: float = setting(number(low=0), "weight of the second term")
    tied: bool = setting(boolean(), "whether the module is tied to the model")

    def build(self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: Any = None) -> Objective:
        return WithSmoothness(model, task, self)


class WithSmoothness(Objective):
    """Besides the loss, how far embeddings of neighbouring tokens, mapped by a matrix of its own, are apart."""

    def __init__(self, model: nn.Module, task: Task, s: TwoTerms) -> None:
        super().__init__(model)
        self.task, self.weights, self.reported = task, {"loss": 1.0, "smooth": s.weight}, ("smooth",)
        embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
        self.own_part = nn.Module()
        self.own_part.map = nn.Linear(embedding.embedding_dim, 4)
        self.own_part.embedding = nn.Embedding(embedding.num_embeddings, embedding.embedding_dim)
        if s.tied:
            self.own_part.embedding.weight = embedding.weight
        self.own_part.forward = self.apart

    def apart(self, tokens: Tensor) -> Tensor:
        mapped = self.own_part.map(self.own_part.embedding(tokens))
        return (mapped[:, 1:] - mapped[:, :-1]).square().sum()

    def counts(self, samples: Samples, targets: int) -> Mapping[str, int]:
        return {"loss": targets, "smooth": targets - len(samples)}  # pairs

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": self.task.loss(self.model(inputs), targets), "smooth": self.own_part(inputs)}


# 4. One that mixes samples: pairs of consecutive ones


@dataclass(frozen=True)
class Pairs(ObjectiveSettings):
    group: ClassVar[int] = 2  # type: ignore[misc]

    def build(self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: Any = None) -> Objective:
        return Mixing(model, task)


class Mixing(Objective):
    weights: Mapping[str, float] = {"mixed": 1.0}

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__(model)
        self.task = task

    def counts(self, samples: Samples, targets: int) -> Mapping[str, int]:
        return {"loss": targets, "mixed": targets}

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        scores = self.model(inputs)
        partners = scores.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        return {
            "loss": self.task.loss(scores, targets),
            "mixed": self.task.loss(0.7 * scores + 0.3 * partners, targets),
        }


# 5. Phases that leave parameters unused: the second half of the batch goes through half of the blocks


@dataclass(frozen=True)
class TowerSettings(ModelSettings):
    """A model of tokens whose blocks are a list: embeddings, blocks, output layer."""

    inputs: ClassVar[str] = "tokens"
    name: str = setting(text(), "what the run's folder and tables call it")
    context: int = setting(integer(1), "tokens in one sequence")
    vocab_size: int = setting(integer(1), "number of tokens of the vocabulary")
    dropout: float = setting(number(low=0, high=0.9), "share of activations that training sets to zero")

    def fitted(self, data: Any, name: str) -> TowerSettings:
        return self

    def build(self) -> nn.Module:
        return Tower(self.vocab_size, self.dropout)


class Tower(nn.Module):
    def __init__(self, vocab_size: int, dropout: float, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(blocks))
        self.head = nn.Linear(width, vocab_size)
        self.depth, self.dropout = blocks, nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.blocks[: self.depth]:
            x = x + self.dropout(block(x))
        return self.head(x)


@dataclass(frozen=True)
class Depths(ObjectiveSettings):
    phases: ClassVar[int] = 2  # type: ignore[misc]
    skips: ClassVar[bool] = True

    def build(self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: Any = None) -> Objective:
        return ByPhase(model, task)


class ByPhase(Objective):
    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__(model)
        self.task = task

    def before_pass(self, at: Pass) -> None:
        self.model.depth = len(self.model.blocks) - at.phase

    def after_passes(self, step: int) -> Mapping[str, Tensor]:
        self.model.depth = len(self.model.blocks)
        return {}

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": self.task.loss(self.model(inputs), targets)}


# 6. One that looks at the whole batch first: samples above the batch's mean loss count twice


@dataclass(frozen=True)
class Focus(ObjectiveSettings):
    """It brings a task of its own, which counts the tokens that get less than half of the probability."""

    passes: ClassVar[float] = 1 / 3

    def task_of(self, task: Task) -> Task:
        return Doubtful()

    def build(self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: Any = None) -> Objective:
        return AboveTheMean(model)


class Doubtful(Tokens):
    columns = 3

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {**self.metrics, "doubtful": Metric("of 1", column=2)}

    def sums(self, scores: Tensor, targets: Tensor) -> Tensor:
        likely = scores.softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        doubtful = ((likely < 0.5) & (targets != IGNORE)).sum().double()
        return torch.cat([super().sums(scores, targets), doubtful[None]])

    def fields(self, sums: np.ndarray) -> dict[str, float]:
        return {**super().fields(sums[:2]), "doubtful": float(sums[2] / sums[1])}


class AboveTheMean(Objective):
    weights: Mapping[str, float] = {"focused": 1.0}

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seen: list[Tensor] = []
        self.mean: Tensor | float = 0.0

    def of_samples(self, inputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten(), reduction="none")
        return losses.view(len(targets), -1).mean(1)

    def look(self, at: Pass, inputs: Tensor, targets: Tensor) -> None:
        losses = self.of_samples(inputs, targets)
        self.seen.append(losses.sum() / at.batch)

    def looked(self, step: int, ranks: Ranks) -> None:
        self.mean, self.seen = ranks.sum(torch.stack(self.seen).sum()), []

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        losses = self.of_samples(inputs, targets)
        twice = 1 + (losses.detach() > self.mean)
        return {"loss": losses.sum() * targets.shape[1], "focused": (losses * twice).sum()}


# 7. A layer with statistics of its own


@dataclass(frozen=True)
class RunningMean(LayersSettings):
    """The output layer's scores, less their running mean over what was seen in training."""

    def apply(self, model: nn.Module) -> None:
        model.head = Centred(model.head)


class Centred(nn.Linear):
    """The same parameters, under the same names."""

    mean_score: Tensor
    passes: Tensor

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__(inner.in_features, inner.out_features, device="meta")
        self.weight, self.bias, self.observing = inner.weight, inner.bias, False
        self.register_buffer("mean_score", torch.zeros_like(inner.bias))
        self.register_buffer("passes", torch.zeros_like(inner.bias[0]))

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        if self.training or self.observing:
            self.passes += 1
            share = 1 / self.passes if self.observing else 0.1
            self.mean_score += share * (scores.detach().flatten(0, -2).mean(0) - self.mean_score)
        return scores - self.mean_score

    def statistics(self) -> dict[str, Tensor]:
        return {"mean_score": self.mean_score}

    def reset(self) -> None:
        self.mean_score.zero_()
        self.passes.zero_()

    @contextmanager
    def observe(self) -> Iterator[None]:
        self.observing = True
        try:
            yield
        finally:
            self.observing = False

    def frozen(self) -> AbstractContextManager[None]:
        return buffers_kept(self)


# 8. An update with keyed rounding, and a ramp


@dataclass(frozen=True)
class Rounding(UpdateSettings):
    """After each update weights are rounded stochastically to multiples of 2^-bits; the share that is grows to 1 over
    `ramp` steps."""

    bits: int = setting(integer(1), "bits that are kept")
    ramp: int = setting(steps(1), "steps of the ramp")

    def build(self, context: Context) -> Rounded:
        return Rounded(self, context)


class Rounded(Callback):
    def __init__(self, s: Rounding, context: Context) -> None:
        self.s, self.seed, self.live = s, context.seed, live_tensors(context.model)
        self.whole = dict(context.model.named_parameters())

    @torch.no_grad()
    def after_update(self, step: int, live: Mapping[str, Tensor]) -> None:
        share, scale = min(1.0, step / self.s.ramp), 2.0**self.s.bits
        for name, parameter in self.whole.items():
            drawn = keyed_uniform(parameter, self.seed, step, name)
            rounded = torch.floor(live[name] * scale + drawn) / scale
            live[name].lerp_(rounded, share) if share < 1 else live[name].copy_(rounded)


# 10. A distillation from a teacher


@dataclass(frozen=True)
class Distillation(ObjectiveSettings):
    takes_teacher: ClassVar[bool] = True

    def build(self, model: nn.Module, task: Task, computes_loss: bool = False, teacher: Any = None) -> Objective:
        return Distilled(model, task, teacher)


class Distilled(Objective):
    weights: Mapping[str, float] = {"loss": 0.5, "distilled": 0.5}
    reported = ("distilled",)

    def __init__(self, model: nn.Module, task: Task, teacher: nn.Module) -> None:
        super().__init__(model)
        self.task, self.teacher = task, (teacher,)

    def counts(self, samples: Samples, targets: int) -> Mapping[str, int]:
        return {"loss": targets, "distilled": targets}

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        scores = self.model(inputs)
        with torch.no_grad():
            taught = self.teacher[0](inputs).log_softmax(-1)
        kl = F.kl_div(scores.log_softmax(-1), taught, log_target=True, reduction="none").sum(-1)
        return {"loss": self.task.loss(scores, targets), "distilled": kl[targets != IGNORE].sum()}


OBJECTIVE_PROBES = {
    "two_terms": TwoTerms,
    "pairs": Pairs,
    "depths": Depths,
    "focus": Focus,
    "distillation": Distillation,
}
PROBES: list[tuple[Table[Any], dict[str, type]]] = [
    (SAMPLERS, {"hard_batches": HardBatches, "largest_losses": LargestLosses}),
    (OBJECTIVES, {"two_terms": TwoTerms, "pairs": Pairs, "depths": Depths}),
    (OBJECTIVES, {"focus": Focus, "distillation": Distillation}),
    (MODELS, {"tower": TowerSettings}),
    (LAYERS, {"running_mean": RunningMean}),
    (UPDATES, {"rounding": Rounding}),
]


def register() -> None:
    """Adds the probes to the tables of this process."""
    for table, choices in PROBES:
        for name, cls in choices.items():
            table._addresses[name] = f"{cls.__module__}:{cls.__name__}"
            table._names[table._addresses[name]] = name


def forget() -> None:
    """Takes them out again."""
    for table, choices in PROBES:
        for name in choices:
            del table._names[table._addresses.pop(name)]
