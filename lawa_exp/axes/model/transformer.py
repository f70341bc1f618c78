"""What the transformers of language share."""

from __future__ import annotations

from lawa_exp.axes.model.settings import ModelSettings


class TransformerSettings(ModelSettings):
    """Layers of attention over all tokens of a context."""

    layers: int
    heads: int
    width: int
    context: int

    @property
    def attention_flops(self) -> int:
        """12 * layers * width * context (Chowdhery et al. 2022, appendix B)."""
        return 12 * self.layers * self.width * self.context
