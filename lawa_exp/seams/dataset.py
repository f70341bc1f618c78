"""What a data set is: its settings, what a plan needs of it, and what training and evaluation read from it.

A batch of training is a pure function of (seed, its `Samples`), so that a data set that is open has no state to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lawa_exp.seams.samples import Samples
    from lawa_exp.seams.task import Task

Arrays: TypeAlias = "np.ndarray | dict[str, np.ndarray]"
Inputs: TypeAlias = "Tensor | dict[str, Tensor]"  # what a model's `forward` takes
Batch: TypeAlias = "tuple[Arrays, np.ndarray]"  # inputs and targets
Parts: TypeAlias = "tuple[Arrays, *tuple[np.ndarray, ...]]"  # what `Dataset.finished` makes a batch of: two or more


class DatasetFacts(Protocol):
    """What a plan needs: the same of a data set that is open and of one that is known by its published sizes."""

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of `train` (in one epoch), `val` and `test`."""
        ...

    @property
    def tokens_per_sample(self) -> int:
        """Positions of a sample, padding included; 1 of an image."""
        ...

    @property
    def sample(self) -> str:
        """One sample in words, such as `256 tokens`."""
        ...

    @property
    def unit(self) -> str:
        """What a loss is the mean over: `token`, `masked token` or `image`."""
        ...

    @property
    def note(self) -> str:
        """What a reader of results must know of the splits; may be empty."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the content, which is part of the trajectory id."""
        ...

    @property
    def vocab_size(self) -> int | None:
        """Tokens are integers below it; None of images."""
        ...

    @property
    def classes(self) -> int | None:
        """Targets are integers below it; None of tokens."""
        ...

    @property
    def channels(self) -> int | None:
        """Of images; None of tokens."""
        ...

    @property
    def image_size(self) -> int | None:
        """Height and width of images in pixels; None of tokens."""
        ...


class Dataset(DatasetFacts, Protocol):
    """An open data set.

    Inputs are an array, or several by name. Of tokens inputs and targets are int64 [count, tokens_per_sample]. Of
    images inputs are float32 [count, channels, image_size, image_size] and targets classes, int64 [count], or in
    training probabilities, float32 [count, classes]. A target of -100 does not count.
    """

    @property
    def sampled(self) -> Sequence[str]:
        """The files that `fingerprint` does not read whole."""
        ...

    @property
    def task(self) -> Task:
        """What evaluations report, and what counts as a target."""
        ...

    def with_task(self, task: Task) -> Dataset:
        """The same data, judged by another task."""
        ...

    @property
    def in_parts(self) -> bool:
        """Whether parts are not a batch yet, so that it pays to read them ahead and to finish them on a GPU."""
        ...

    @property
    def workers(self) -> int | None:
        """Processes of this rank that read samples, 0: it reads them itself; None: it is in memory."""
        ...

    def with_workers(self, workers: int) -> Dataset:
        """The same data, read by so many processes; others that have it open keep theirs."""
        ...

    def train_batch(self, seed: int, samples: Samples) -> Batch:
        """These samples of training."""
        ...

    def noise_batch(self, seed: int, samples: Samples) -> Batch:
        """Seeded noise of the shape of that `train_batch`, with as many targets that count."""
        ...

    def train_targets(self, seed: int, samples: Samples) -> int:
        """How many targets of that `train_batch` count."""
        ...

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """The samples of a split at `indices`, int64, as they are: never augmented, masked by a seed of their own."""
        ...

    def train_parts(self, seed: int, samples: Samples) -> Parts:
        """What `finished` makes that `train_batch` of."""
        ...

    def eval_parts(self, split: str, indices: np.ndarray) -> Parts:
        """What `finished` makes that `eval_batch` of."""
        ...

    def finished(self, inputs: Inputs, targets: Tensor, *more: Tensor) -> tuple[Inputs, Tensor]:
        """The batch, from its parts on any device: the same numbers on each."""
        ...


class DatasetSettings(Protocol):
    """The settings of a data set, a frozen dataclass.

    inputs: what it holds, as models take it: tokens, masked tokens or images.
    """

    inputs: ClassVar[str]

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def builder(self) -> str | None:
        """Of a data set from outside: what opens it."""
        ...

    @property
    def path(self) -> str | None:
        """The file or folder; None: in the usual places, or it is embedded."""
        ...

    @property
    def tokenizer(self) -> str | None:
        """What makes its tokens, where the settings say it; see `tokenizers.tokenizer_of`."""
        ...

    @property
    def tokenizer_path(self) -> str | None:
        """The folder of the tokenizer's vocabulary files."""
        ...

    @property
    def image_size(self) -> int | None:
        """What images are scaled to, in pixels; None: they are as they are, or there are none."""
        ...

    def __hash__(self) -> int: ...

    def open(self, context: int) -> Dataset:
        """context: tokens of a sample; of images it is None and not used. UserError: what is missing or wrong."""
        ...
