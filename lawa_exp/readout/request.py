"""What a read-out is to do, in types. The command line ends where these are made: no other file here sees its flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lawa_exp.formats.choice import DEFAULT, Choice

HUB = "hf:"  # what RUN begins with where it is a model on the Hugging Face hub


@dataclass(frozen=True)
class Target:
    """RUN, and how its weights are evaluated. None: as the run has it.

    run: a run directory, a folder of checkpoints, or hf:OWNER/NAME. trust: see `custom.admit`. bn: as evaluate.bn.
    views: names in `evaluation.views`, besides the weights as they are. choice: which of a folder's checkpoints are
    taken, and of which step each is; verbose: all that are left out are named.
    key: of the state dict in a checkpoint's files.
    moved: where the run's data are now, by the names of the data set's settings.
    """

    run: str
    trust: bool = False
    device: str | None = None
    threads: int | None = None
    bn: str | None = None
    views: tuple[str, ...] = ()
    choice: Choice = DEFAULT
    verbose: bool = False
    key: str | None = None
    moved: Mapping[str, str] = field(default_factory=dict)

    @property
    def repository(self) -> str | None:
        """OWNER/NAME on the hub; None: RUN is on the disk."""
        return self.run.removeprefix(HUB) if self.run.startswith(HUB) else None


@dataclass(frozen=True)
class Averages:
    """Averagers by kind, and their settings by name, each a text with one value or several (`3,5,10`)."""

    kinds: tuple[str, ...]
    settings: Mapping[str, str]

    def without(self, name: str) -> Averages:
        return replace(self, settings={key: text for key, text in self.settings.items() if key != name})


@dataclass(frozen=True)
class Evaluation:
    """What evaluates checkpoints that are no run, or a run's otherwise than it did.

    how: `package.module:function`, or a name in `evaluators.EVALUATORS`; None: `model` on `dataset`, with the settings
    `overrides` (KEY=VALUE). flags: of the evaluator, as texts by the names of its settings.
    data: what their own model, which is recognised or which `model` (MODULE:FUNCTION) builds, is evaluated on; samples:
    how many of it, a number or `all`.
    """

    how: str | None = None
    model: str | None = None
    dataset: str | None = None
    overrides: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    data: str | None = None
    samples: str | None = None


@dataclass(frozen=True)
class Request:
    """One read-out. revisions: steps, such as step1000..step143000; None: all, of RUN as it stands.

    name, out: where the results go. gpu_hours: what the training cost up to its last step; steps_per_epoch: for
    savings; None: the run's, where it is known.
    """

    target: Target
    averages: Averages
    evaluation: Evaluation
    revisions: str | None = None
    name: str | None = None
    out: str | None = None
    gpu_hours: float | None = None
    steps_per_epoch: float | None = None

    @property
    def of_checkpoints(self) -> bool:
        """Whether RUN is read as checkpoints, even if it is a run of ours."""
        e = self.evaluation
        return bool(e.how or e.model or e.dataset or e.data or self.revisions or self.target.repository is not None)
