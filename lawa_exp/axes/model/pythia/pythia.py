"""Pythia (Biderman et al. 2023): Hugging Face's GPT-NeoX, with the names that the published checkpoints have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lawa_exp.axes.model.pythia.settings import IN_CONFIG_JSON
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

if TYPE_CHECKING:
    from lawa_exp.axes.model.pythia.settings import PythiaSettings

ROTARY_SHARE = 0.25  # of a head's width
ROTARY_BASE = 10000.0
NOT_WEIGHTS = ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq")  # old files have them


def config_of(s: PythiaSettings) -> Any:
    """transformers' configuration of it."""
    try:
        from transformers import GPTNeoXConfig
    except ImportError:
        raise UserError(f"model={s.name} needs transformers: pip install 'lawa_exp[transformers]'") from None
    return GPTNeoXConfig(
        architectures=["GPTNeoXForCausalLM"],
        **{theirs: getattr(s, ours) for ours, theirs in IN_CONFIG_JSON.items()},
        intermediate_size=4 * s.width,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE, "partial_rotary_factor": ROTARY_SHARE},
        use_parallel_residual=True,
        tie_word_embeddings=False,
        hidden_dropout=s.dropout,
        attention_dropout=s.dropout,
        bos_token_id=0,
        eos_token_id=0,
    )


class Pythia(nn.Module):
    """tokens [batch, context] (integers) -> logits [batch, context, vocabulary].

    First weights as GPT-NeoX's `small_init` (Nguyen and Salazar 2019), and `wang_init` of what a block adds up.
    """

    def __init__(self, s: PythiaSettings) -> None:
        super().__init__()
        configuration = config_of(s)
        from transformers import GPTNeoXModel

        configuration._attn_implementation = "sdpa"
        self.gpt_neox = GPTNeoXModel(configuration)
        self.embed_out = nn.Linear(s.width, s.vocab_size, bias=False)
        small, summed = math.sqrt(2 / (5 * s.width)), 2 / s.layers / math.sqrt(s.width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=summed if name.endswith(("dense.weight", "4h_to_h.weight")) else small)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.embed_out(self.gpt_neox(input_ids=tokens, use_cache=False).last_hidden_state)
        return logits


def settings_in(config: Path) -> dict[str, Any]:
    """The settings of `model=pythia_...` that a checkpoint's config.json names. UserError for another kind of model."""
    try:
        found = read_json(config)
        kind = found.get("model_type")
        if kind != "gpt_neox":
            raise UserError(f"{config}: model_type={kind}; expected gpt_neox")
        rotary = found.get("rope_parameters") or found.get("rope_scaling") or {}
        share = rotary.get("partial_rotary_factor", found.get("rotary_pct", ROTARY_SHARE))
        base = rotary.get("rope_theta", found.get("rotary_emb_base", ROTARY_BASE))
        plain = {
            "intermediate_size": 4 * found["hidden_size"],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "attention_bias": True,
            "use_parallel_residual": True,
            "tie_word_embeddings": False,
        }
        odd = {key: found[key] for key, value in plain.items() if found.get(key, value) != value}
        if share != ROTARY_SHARE:
            odd["rotary_pct"] = share
        if base != ROTARY_BASE:
            odd["rotary_emb_base"] = base
        if (rope := rotary.get("rope_type", rotary.get("type", "default"))) != "default":
            odd["rope_type"] = rope
        if odd:
            raise UserError(f"{config}: {', '.join(f'{k}={v}' for k, v in odd.items())}: not as in Pythia")
        return {ours: found[theirs] for ours, theirs in IN_CONFIG_JSON.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{config}: no configuration of a GPT-NeoX ({type(error).__name__}: {error})") from None


def not_weights(layers: int) -> set[str]:
    """Masks and rotary tables that checkpoints of older versions hold besides the weights."""
    return {f"gpt_neox.layers.{layer}.{name}" for layer in range(layers) for name in NOT_WEIGHTS}


def write_configuration(folder: Path, s: PythiaSettings, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json: with model.safetensors, `AutoModelForCausalLM.from_pretrained` opens the folder."""
    configuration = config_of(s)
    configuration.dtype = dtype
    folder.mkdir(parents=True, exist_ok=True)
    configuration.save_pretrained(folder)
