"""nanoGPT: `model_args` in ckpt*.pt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.config.rules import build
from lawa_exp.convert.nanogpt import of_nanogpt
from lawa_exp.convert.recognise.encoder import Encoder, of_characters, of_gpt2
from lawa_exp.convert.recognise.recognised import TOKENS, Looked, Recognised


def recognise(looked: Looked) -> Recognised | None:
    """UserError: model_args has no complete, sensible record of a GPT."""
    recorded = of_nanogpt(looked.content.get("model_args"))
    if not recorded:
        return None
    recorded = {"dropout": 0.0, "bias": True, **recorded}
    settings = build(GPTSettings, {"name": "nanogpt", **recorded}, f"{looked.path}: model_args")

    def encoder(folders: Sequence[Path]) -> Encoder | None:
        return of_characters(folders) or of_gpt2(settings.vocab_size)

    title = f"nanoGPT's GPT, {settings.layers} layers, width {settings.width}"
    masks = frozenset(
        f"transformer.h.{layer}.attn.{name}" for layer in range(settings.layers) for name in ("bias", "masked_bias")
    )
    return Recognised(
        title,
        TOKENS,
        settings.build,
        asdict(settings),
        settings.context,
        settings.vocab_size,
        encoder=encoder,
        masks=masks,
    )
