"""Checkpoints of fairseq (0.12) to and from our models: RoBERTa and the adaptive `transformer_lm`."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa_exp.axes.model.adaptive_lm import adaptive_lm
from lawa_exp.axes.model.adaptive_lm.settings import AdaptiveLMSettings
from lawa_exp.axes.model.roberta import roberta
from lawa_exp.axes.model.roberta.settings import RobertaSettings
from lawa_exp.formats.checksums import check_records
from lawa_exp.formats.unpickling import check_bounded
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import open_regular

Settings = RobertaSettings | AdaptiveLMSettings
ROBERTA, ADAPTIVE = "encoder.sentence_encoder.", "decoder.embed_tokens.embeddings."  # how their names begin


def under_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a fairseq model as those of ours; any others as they are. UserError as the models raise it."""
    if any(name.startswith((ROBERTA, "decoder.sentence_encoder.")) for name in tensors):
        return roberta.from_fairseq(tensors)
    if any(name.startswith(ADAPTIVE) for name in tensors):
        return adaptive_lm.from_fairseq(tensors)
    return tensors


def arguments(s: Settings, data: str | None) -> argparse.Namespace:
    """The command-line arguments that fairseq builds the same model from."""
    common: dict[str, object] = {
        "data": data or "",
        "seed": 1,
        "optimizer": "adam",
        "lr": [5e-4],
        "lr_scheduler": "fixed",
    }
    # What fairseq reads from its other settings, and takes for true where an argument is missing.
    common |= dict.fromkeys(("tpu", "add_bos_token", "sentence_avg", "use_plasma_view"), False)
    common["ddp_backend"] = "legacy_ddp"
    if isinstance(s, RobertaSettings):
        return argparse.Namespace(
            **common,
            arch="roberta_base",
            task="masked_lm",
            criterion="masked_lm",
            sample_break_mode="complete",
            tokens_per_sample=s.context,
            max_positions=s.context,
            encoder_layers=s.layers,
            encoder_embed_dim=s.width,
            encoder_ffn_embed_dim=4 * s.width,
            encoder_attention_heads=s.heads,
            dropout=s.dropout,
            attention_dropout=s.attention_dropout,
        )
    cutoffs = ",".join(map(str, s.cutoffs))
    return argparse.Namespace(
        **common,
        arch="transformer_lm_wiki103",
        task="language_modeling",
        criterion="adaptive_loss",
        sample_break_mode="none",
        tokens_per_sample=s.context,
        max_target_positions=s.context,
        decoder_layers=s.layers,
        decoder_embed_dim=s.width,
        decoder_input_dim=s.width,
        decoder_output_dim=s.width,
        decoder_ffn_embed_dim=s.hidden,
        decoder_attention_heads=s.heads,
        adaptive_input=True,
        tie_adaptive_weights=True,
        tie_adaptive_proj=True,
        adaptive_input_cutoff=cutoffs,
        adaptive_softmax_cutoff=cutoffs,
        adaptive_input_factor=s.factor,
        adaptive_softmax_factor=s.factor,
        adaptive_softmax_dropout=s.softmax_dropout,
        no_decoder_final_norm=True,
        dropout=s.dropout,
        attention_dropout=s.attention_dropout,
        activation_dropout=s.activation_dropout,
    )


def write(tensors: Mapping[str, Tensor], model: Settings, data: str | None, step: int, out: Path) -> None:
    """A checkpoint that fairseq's `RobertaModel.from_pretrained` and `fairseq-validate` open. data: its folder."""
    args = arguments(model, data)
    convert = roberta.to_fairseq if isinstance(model, RobertaSettings) else adaptive_lm.to_fairseq
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": step}
    content = {
        "args": args,
        "cfg": None,
        "model": convert(dict(tensors)),
        "optimizer_history": [history],
        "extra_state": {
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "shuffle": True, "version": 2},
            "best_loss": None,
        },
        "last_optimizer_state": {},
    }
    torch.save(content, out)


def opened(path: Path) -> Any:
    """What `torch.save` wrote, without running it; mapped, but for the format from before PyTorch 1.6."""
    with open_regular(path) as file:
        check_bounded(file, path)
    mapped = zipfile.is_zipfile(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols and storages: what it says is of no use to the user
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def content_of(path: Path) -> Mapping[str, object] | None:
    """What a checkpoint of fairseq's holds, opened without running it; None where it is none. UserError: damaged."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Mapping[str, object] = opened(path)
    except (UserError, RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError):
        return None
    has_weights = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping)
    if not has_weights or not {"args", "cfg"} & content.keys():
        return None
    check_records(path)
    return content


def read(path: Path) -> tuple[dict[str, Tensor], Settings, str | None, int]:
    """`read_content` of a file. UserError where it is no checkpoint of fairseq's."""
    content = content_of(path)
    if content is None:
        raise UserError(f"{path} cannot be read as a checkpoint of fairseq's")
    return read_content(content, path)


def read_content(content: Mapping[str, object], path: Path) -> tuple[dict[str, Tensor], Settings, str | None, int]:
    """(our tensors, the model's settings, its data, its step). UserError names `path` and what is not as in ours.

    content: as `content_of` returns it.
    """
    weights = content["model"]
    assert isinstance(weights, Mapping)
    try:
        tensors = under_our_names(dict(weights))
        settings, data = settings_of(tensors, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    history = content.get("optimizer_history")
    updates = options(history[-1]).get("num_updates") if isinstance(history, list) and history else None
    step = updates if isinstance(updates, int) else 0
    return {n: t.float() for n, t in tensors.items()}, settings, data, step


def options(value: object) -> Mapping[str, object]:
    """Those of a Namespace or a mapping; none of anything else."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else {}


def settings_of(tensors: dict[str, Tensor], content: Mapping[str, object]) -> tuple[Settings, str | None]:
    """The model's settings and the data's folder: sizes from the tensors, the rest from `args` or `cfg`."""
    cfg = options(content.get("cfg"))
    trained = options(content.get("args") or cfg.get("model"))
    folder = options(cfg.get("task") or trained).get("data")
    data = folder if isinstance(folder, str) else None

    def number(name: str, default: float) -> float:
        value = trained.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float | str):
            raise UserError(f"{name}={value}: expected a number")
        return float(value)

    def require(name: str, value: object) -> None:
        if (actual := trained.get(name)) not in (None, value):
            raise UserError(f"{name}={actual}: expected {value}")

    if roberta.WORDS in tensors:
        layers = {name.split(".")[3] for name in tensors if name.startswith(roberta.LAYERS[0])}
        vocab_size, width = tensors[roberta.WORDS].shape
        require("encoder_normalize_before", False)
        require("activation_fn", "gelu")
        hidden = {t.shape[0] for n, t in tensors.items() if n.endswith(".intermediate.dense.weight")}
        if hidden != {4 * width}:
            raise UserError(f"encoder_ffn_embed_dim={max(hidden, default=0)}: expected 4 times the width, {4 * width}")
        context = tensors[roberta.POSITIONS].shape[0] - roberta.PAD - 1
        heads = int(number("encoder_attention_heads", 12))
        dropouts = number("dropout", 0.1), number("attention_dropout", 0.1)
        return RobertaSettings("roberta", len(layers), heads, width, context, vocab_size, *dropouts), data
    if any(name.startswith(ADAPTIVE) for name in tensors):
        require("activation_fn", "relu")
        layers = {name.split(".")[2] for name in tensors if name.startswith("decoder.layers.")}
        sizes = [t.shape for n, t in tensors.items() if n.startswith(ADAPTIVE) and n.endswith(".0.weight")]
        edges = [sum(rows for rows, _ in sizes[:i]) for i in range(1, len(sizes) + 1)]
        return AdaptiveLMSettings(
            "transformer_lm",
            layers=len(layers),
            heads=int(number("decoder_attention_heads", 8)),
            width=sizes[0][1],
            hidden=tensors["decoder.layers.0.fc1.weight"].shape[0],
            context=int(number("max_target_positions", 0) or number("tokens_per_sample", 512)),
            vocab_size=edges[-1],
            cutoffs=tuple(edges[:-1]),
            factor=sizes[0][1] // sizes[1][1],
            dropout=number("dropout", 0.3),
            attention_dropout=number("attention_dropout", 0.1),
            activation_dropout=number("activation_dropout", 0.1),
            softmax_dropout=number("adaptive_softmax_dropout", 0.2),
        ), data
    raise UserError("neither a RoBERTa nor an adaptive transformer_lm")
