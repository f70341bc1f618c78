"""What is known of a checkpoint's model, and what a family looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.formats.checkpoint import open_checkpoint
from lawa_exp.formats.pickles import Inert
from lawa_exp.formats.pytorch import TorchFile
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lawa_exp.convert.recognise.encoder import Encoder

TOKENS, MASKED, TEXTS, IMAGES = "tokens", "masked tokens", "classes of texts", "classes of images"  # what is predicted


@dataclass(frozen=True)
class Recognised:
    """A model that is built when it is needed.

    title: for messages. predicts: TOKENS, MASKED, TEXTS or IMAGES; None: a builder's, the data decide. context: the
    longest that it takes, in tokens. encoder: its tokenizer, given the folders that may hold one, the checkpoint's and
    the data's; None where neither does. labels: numbers of the classes by name. transform: makes a PIL image into the
    model's input, and says how. masks: names in a checkpoint that are no weights. loaded: the tensors of a file that
    has other names or parts than the model, as the model's; of what does not fit they are as they were.
    """

    title: str
    predicts: str | None
    build: Callable[[], nn.Module]
    settings: Mapping[str, Any] | None = None  # of a model of ours
    context: int | None = None
    vocab_size: int | None = None
    classes: int | None = None
    encoder: Callable[[Sequence[Path]], Encoder | None] = lambda folders: None
    labels: Mapping[str, int] = field(default_factory=dict)
    transform: Callable[[nn.Module], tuple[Callable[[Any], Tensor], str]] | None = None
    channels: int = 3  # of images
    masks: frozenset[str] = frozenset()
    loaded: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Looked:
    """A checkpoint, looked at without running anything of it. root: the folder of all of them."""

    path: Path
    root: Path
    key: str | None = None

    @property
    def folders(self) -> list[Path]:
        """Where a configuration and a tokenizer may lie, nearest first."""
        nearest = self.path if self.path.is_dir() else self.path.parent
        return list(dict.fromkeys([nearest, self.root]))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, by their names in the file."""
        opened = open_checkpoint(self.path, self.key)
        return {name: place.shape for source in opened.sources for name, place in source.tensors.items()}

    @cached_property
    def content(self) -> Mapping[object, object]:
        """What a PyTorch file holds besides its weights, at the top; objects are stand-ins. Empty of other kinds."""
        sources = open_checkpoint(self.path, self.key).sources
        own = [source.content for source in sources if isinstance(source, TorchFile)]
        return own[0] if len(own) == 1 else {}

    def arguments(self, name: str) -> Mapping[str, object]:
        """A mapping or a Namespace at the top of a PyTorch file, such as `args`; empty where there is none."""
        value = self.content.get(name)
        value = value.state if isinstance(value, Inert) else value
        return {str(key): part for key, part in value.items()} if isinstance(value, Mapping) else {}

    @cached_property
    def config(self) -> tuple[Path, dict[str, Any]] | None:
        """The nearest config.json. UserError: it is no JSON object."""
        for folder in self.folders:
            if (path := folder / "config.json").is_file():
                content = read_json(path)
                if not isinstance(content, dict):
                    raise UserError(f"{path} is damaged: expected a JSON object")
                return path, content
        return None

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Of the tensor of this name, which may stand behind prefixes (`module.`, Lightning's `model.`)."""
        return self.shapes.get(name) or next(
            (shape for own, shape in self.shapes.items() if own.endswith(f".{name}")), None
        )
