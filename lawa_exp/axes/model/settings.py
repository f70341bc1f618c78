"""What the settings of every model have."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lawa_exp.axes.choice import Choice

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

    from lawa_exp.seams.dataset import DatasetFacts


class ModelSettings(Choice):
    """The settings of a model, which build it; they are imported without torch.

    outside: its module is somebody else's code, so a plan tries it on a sample, and its weights are made on the CPU.
    """

    outside: ClassVar[bool] = False
    places: ClassVar[frozenset[str]] = frozenset({"name"})
    inputs: ClassVar[str]  # what a data set must hold: tokens, masked tokens or images; any: what `builder` takes
    name: str
    vocab_size: int | None = None
    context: int | None = None  # tokens of a sample; None of images

    @property
    def named(self) -> str:
        """What messages call it."""
        return f"model={self.name}"

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        """These settings with what follows from the open data set `name`. UserError where the two contradict."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """The model, initialised from torch's current random state, on torch's current default device.

        Its `forward(inputs)` gives logits [..., vocabulary] of tokens, or [batch, classes] of images.
        """
        raise NotImplementedError

    def computes_loss(self, model: nn.Module) -> bool:
        """Whether `model`, which these settings built, gives the summed loss itself in `forward(inputs, targets)`."""
        return False

    def training_flops(self, model: nn.Module, tokens: int) -> float:
        """Of a forward and a backward pass over a sample of `tokens`: 6 N a token, N the trained parameters.

        `model` may be on the meta device.
        """
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return (6 * trained + self.attention_flops) * tokens

    @property
    def attention_flops(self) -> int:
        """What attention adds to the FLOPs of a token."""
        return 0
