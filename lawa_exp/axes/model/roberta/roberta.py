"""RoBERTa as a masked language model: transformers' own module, and its tensors under fairseq's names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lawa_exp.axes.model import dropout
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.axes.model.roberta.settings import RobertaSettings

PAD = 1


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("model.kind=roberta needs transformers: pip install 'lawa_exp[transformers]'") from None
    return transformers


def config_of(s: RobertaSettings) -> Any:
    """transformers' configuration of it."""
    return _transformers().RobertaConfig(
        architectures=["RobertaForMaskedLM"],
        vocab_size=s.vocab_size,
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        intermediate_size=4 * s.width,
        max_position_embeddings=s.context + PAD + 1,  # positions count from the padding's number on
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=s.dropout,
        attention_probs_dropout_prob=s.attention_dropout,
        bos_token_id=0,
        pad_token_id=PAD,
        eos_token_id=2,
    )


def Roberta(s: RobertaSettings) -> torch.nn.Module:
    """tokens [batch, context] -> logits [batch, context, vocabulary], or with targets the loss summed over them."""

    class RobertaForMaskedLM(_transformers().RobertaForMaskedLM):  # type: ignore[misc]  # the name goes into config.json
        def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
            if targets is not None and tokens.device.type == "cpu":  # elsewhere it would have to wait for the device
                width = int(tokens.ne(PAD).any(0).sum())  # padding is behind the text
                tokens, targets = tokens[:, :width], targets[:, :width]
            features = self.roberta(tokens, attention_mask=tokens.ne(PAD)).last_hidden_state
            if targets is None:
                logits: Tensor = self.lm_head(features)
                return logits
            chosen = targets != IGNORE  # only these are projected to the vocabulary
            return F.cross_entropy(self.lm_head(features[chosen]), targets[chosen], reduction="sum")

    model = RobertaForMaskedLM(config_of(s))
    types = model.roberta.embeddings.token_type_embeddings.weight  # one vector for every token: fairseq has none
    torch.nn.init.zeros_(types).requires_grad_(False)
    dropout.in_transformers(model)
    return model


# (ours, fairseq's): what a name begins with, then what a layer's name goes on with
OUTSIDE = (
    ("roberta.embeddings.word_embeddings.weight", "encoder.sentence_encoder.embed_tokens.weight"),
    ("roberta.embeddings.position_embeddings.weight", "encoder.sentence_encoder.embed_positions.weight"),
    ("roberta.embeddings.LayerNorm.", "encoder.sentence_encoder.layernorm_embedding."),
    ("lm_head.dense.", "encoder.lm_head.dense."),
    ("lm_head.layer_norm.", "encoder.lm_head.layer_norm."),
    ("lm_head.bias", "encoder.lm_head.bias"),
)
LAYERS = ("roberta.encoder.layer.", "encoder.sentence_encoder.layers.")
IN_A_LAYER = (
    ("attention.self.query.", "self_attn.q_proj."),
    ("attention.self.key.", "self_attn.k_proj."),
    ("attention.self.value.", "self_attn.v_proj."),
    ("attention.output.dense.", "self_attn.out_proj."),
    ("attention.output.LayerNorm.", "self_attn_layer_norm."),
    ("intermediate.dense.", "fc1."),
    ("output.dense.", "fc2."),
    ("output.LayerNorm.", "final_layer_norm."),
)
TYPES = "roberta.embeddings.token_type_embeddings.weight"  # [1, width], added to every token; fairseq has none
WORDS, POSITIONS = OUTSIDE[0][0], OUTSIDE[1][0]
HEAD = "encoder.lm_head.weight"  # tied to the words
UNUSED = re.compile(r"\d\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$|version$|_float_tensor$|classification_heads\.")
JOINED = ".self_attn.in_proj_"  # weight or bias: in old checkpoints queries, keys and values are one, in this order


def _renamed(name: str, ours: int) -> str | None:
    """The name on the other side; ours: 0 where `name` is ours, 1 where it is fairseq's. None: it has none there."""
    theirs = 1 - ours
    if name.startswith(LAYERS[ours]):
        number, _, rest = name.removeprefix(LAYERS[ours]).partition(".")
        for pair in IN_A_LAYER:
            if rest.startswith(pair[ours]):
                return f"{LAYERS[theirs]}{number}.{pair[theirs]}{rest.removeprefix(pair[ours])}"
        return None
    return next((p[theirs] + name.removeprefix(p[ours]) for p in OUTSIDE if name.startswith(p[ours])), None)


def to_fairseq(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of fairseq's `RobertaModel`, tied ones under each of theirs.

    The one token type's vector, which is added to every position, is added to the positions' embeddings.
    """
    found = {}
    for name, tensor in tensors.items():
        if name == POSITIONS:
            tensor = tensor + tensors.get(TYPES, torch.zeros(())).to(tensor)
            tensor[PAD] = 0
        if renamed := _renamed(name, 0):
            found[renamed] = tensor
    found[HEAD] = tensors[WORDS]
    return found


def _of_today(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `RobertaModel` of any version of fairseq's under the names of 0.12."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder."):
            name = f"encoder.{name.removeprefix('decoder.')}"
        name = name.replace(".emb_layer_norm.", ".layernorm_embedding.")
        layer, joined, kind = name.partition(JOINED)
        if joined:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            found |= {f"{layer}.self_attn.{part}_proj.{kind}": piece for part, piece in parts}
        else:
            found[name] = tensor
    return found


def from_fairseq(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of fairseq's `RobertaModel` under our names. UserError where one is no part of a plain RoBERTa.

    fairseq keeps zero-filled `in_proj_*`, `fc1_*` and the like in each layer, a version, and heads for other tasks:
    these are left out, and so is the tied weight of the head. Names of older versions are taken as fairseq takes them.
    """
    found, tensors = {}, _of_today(tensors)
    for name, tensor in tensors.items():
        if renamed := _renamed(name, 1):
            found[renamed] = tensor
        elif name != HEAD and not UNUSED.search(name):
            raise UserError(f"{name} is no part of a plain RoBERTa")
    words = found.get(WORDS)
    if words is None:
        raise UserError(f"no {OUTSIDE[0][1]} among the tensors: not a RoBERTa of fairseq's")
    tied = tensors.get(HEAD)
    if tied is not None and not torch.equal(tied, words):
        raise UserError("encoder.lm_head.weight is not the embedding: untied weights are not a RoBERTa here")
    found[TYPES] = words.new_zeros(1, words.shape[1])
    return found
