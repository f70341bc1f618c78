"""fairseq's `transformer_lm` with adaptive inputs and adaptive softmax, tied (Baevski and Auli 2019), names as there.

Pre-norm blocks with ReLU, sinusoidal positions, no last norm. Tokens are numbered by falling frequency; those of band i
have embeddings of width / factor^i, projected to the width. The softmax is over the first band and one class for each
further band, times a softmax inside it; embeddings and projections serve at both ends. One thing is not fairseq's: its
criterion leaves out, in every further band, the loss of the band's second token (whose number there is the padding's).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lawa_exp.seams.task import IGNORE
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.axes.model.adaptive_lm.settings import AdaptiveLMSettings

PAD = 1


def numbered(modules: Iterable[nn.Module]) -> nn.Module:
    """Modules by their number, in no ModuleList, whose parts are sharded each by itself: both ends share these."""
    found = nn.Module()
    for number, module in enumerate(modules):
        found.add_module(str(number), module)
    return found


class AdaptiveInput(nn.Module):
    """tokens [...] -> [..., width]."""

    def __init__(self, edges: list[int], width: int, factor: int) -> None:
        super().__init__()
        self.edges, self.width = edges, width
        self.embeddings = numbered(
            numbered(
                [
                    nn.Embedding(stop - start, width // factor**i, padding_idx=None if i else PAD),
                    nn.Linear(width // factor**i, width, bias=False),
                ]
            )
            for i, (start, stop) in enumerate(itertools.pairwise(edges))
        )
        for band in range(len(edges) - 1):
            embedding, projection = self.weights(band)
            nn.init.normal_(embedding, std=embedding.shape[1] ** -0.5)
            nn.init.zeros_(embedding[PAD])
            nn.init.xavier_uniform_(projection)

    def weights(self, band: int) -> tuple[Tensor, Tensor]:
        """The embedding, [tokens, narrow], and the projection, [width, narrow]."""
        embedding, projection = self.embeddings.get_submodule(str(band)).children()
        return embedding.weight, projection.weight  # type: ignore[return-value]

    def forward(self, tokens: Tensor) -> Tensor:
        found = torch.zeros(*tokens.shape, self.width, device=tokens.device)
        for (start, stop), band in zip(itertools.pairwise(self.edges), self.embeddings.children(), strict=True):
            embedding, projection = band.children()
            inside = (tokens >= start) & (tokens < stop)  # an empty band is gone through too: its gradient is 0
            found[inside] = projection(embedding(tokens[inside] - start)).to(found.dtype)
        return found


class AdaptiveSoftmax(nn.Module):
    """Its only weights of its own are those of the classes, one for each band after the first."""

    def __init__(self, inputs: AdaptiveInput, dropout: float) -> None:
        super().__init__()
        self.edges, self.dropout = inputs.edges, dropout
        self.head: Any = nn.Module()
        self.head.class_proj = nn.Linear(inputs.width, len(self.edges) - 2, bias=False)
        nn.init.xavier_uniform_(self.head.class_proj.weight)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _first(self, x: Tensor, inputs: AdaptiveInput) -> Tensor:
        return torch.cat([F.linear(x, inputs.weights(0)[0]), self.head.class_proj(x)], dim=-1)

    def _tail(self, x: Tensor, inputs: AdaptiveInput, band: int) -> Tensor:
        embedding, projection = inputs.weights(band)
        return F.linear(self._dropped(F.linear(x, projection.t())), embedding)

    def log_probabilities(self, x: Tensor, inputs: AdaptiveInput) -> Tensor:
        """x: [..., width] -> [..., vocabulary]."""
        first = F.log_softmax(self._first(x, inputs), dim=-1)
        bands = [first[..., : self.edges[1]]]
        for band in range(1, len(self.edges) - 1):
            of_class = first[..., self.edges[1] + band - 1, None]
            bands.append(of_class + F.log_softmax(self._tail(x, inputs, band), dim=-1))
        return torch.cat(bands, dim=-1)

    def loss(self, x: Tensor, targets: Tensor, inputs: AdaptiveInput) -> Tensor:
        """x: [n, width], targets: [n] -> the cross-entropy summed over the targets that count."""
        x = self._dropped(x)
        classes = targets.clone()
        total = x.new_zeros(())
        for band in range(1, len(self.edges) - 1):
            start, stop = self.edges[band], self.edges[band + 1]
            inside = (targets >= start) & (targets < stop)
            classes[inside] = self.edges[1] + band - 1
            tail = self._tail(x[inside], inputs, band)
            total = total + F.cross_entropy(tail, targets[inside] - start, reduction="sum")
        return total + F.cross_entropy(self._first(x, inputs), classes, ignore_index=IGNORE, reduction="sum")


class Attention(nn.Module):
    def __init__(self, s: AdaptiveLMSettings) -> None:
        super().__init__()
        self.heads, self.dropout = s.heads, s.attention_dropout
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(s.width, s.width) for _ in range(4))
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, context, width = x.shape
        projected = (p(x) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (t.view(batch, context, self.heads, -1).transpose(1, 2) for t in projected)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out: Tensor = self.out_proj(y.transpose(1, 2).reshape(batch, context, width))
        return out


class Layer(nn.Module):
    def __init__(self, s: AdaptiveLMSettings) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = s.dropout, s.activation_dropout
        self.self_attn = Attention(s)
        self.self_attn_layer_norm = nn.LayerNorm(s.width)
        self.fc1 = nn.Linear(s.width, s.hidden)
        self.fc2 = nn.Linear(s.hidden, s.width)
        self.final_layer_norm = nn.LayerNorm(s.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.self_attn(self.self_attn_layer_norm(x)), self.dropout, self.training)
        inside = F.dropout(F.relu(self.fc1(self.final_layer_norm(x))), self.activation_dropout, self.training)
        return x + F.dropout(self.fc2(inside), self.dropout, self.training)


class AdaptiveLM(nn.Module):
    """tokens [batch, context] -> log-probabilities [batch, context, vocabulary], or with targets the summed loss."""

    def __init__(self, s: AdaptiveLMSettings) -> None:
        super().__init__()
        assert s.vocab_size is not None
        self.dropout, self.scale = s.dropout, math.sqrt(s.width)
        self.decoder: Any = nn.Module()
        self.decoder.embed_tokens = AdaptiveInput([0, *s.cutoffs, s.vocab_size], s.width, s.factor)
        self.decoder.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.decoder.adaptive_softmax = AdaptiveSoftmax(self.decoder.embed_tokens, s.softmax_dropout)
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(s.context, s.width), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        inputs, softmax = self.decoder.embed_tokens, self.decoder.adaptive_softmax
        x = self.scale * inputs(tokens) + self.positions[: tokens.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for layer in self.decoder.layers:
            x = layer(x)
        if targets is None:
            logarithms: Tensor = softmax.log_probabilities(x, inputs)
            return logarithms
        loss: Tensor = softmax.loss(x.flatten(0, 1), targets.flatten(), inputs)
        return loss


def sinusoids(context: int, width: int) -> Tensor:
    """[context, width]: sines, then cosines; the first position is PAD + 1, as in fairseq."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(PAD + 1, PAD + 1 + context, dtype=torch.float)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


INPUTS, SOFTMAX = "decoder.embed_tokens", "decoder.adaptive_softmax"


def to_fairseq(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, with the other names of tied ones and the buffers that fairseq's `TransformerLanguageModel` has."""
    bands = sum(name.endswith(".0.weight") for name in tensors if name.startswith(f"{INPUTS}.embeddings."))
    found = dict(tensors)
    found[f"{SOFTMAX}.head.word_proj.weight"] = tensors[f"{INPUTS}.embeddings.0.0.weight"]
    for band in range(1, bands):
        found[f"{SOFTMAX}.tail.{band - 1}.0.weight"] = tensors[f"{INPUTS}.embeddings.{band}.1.weight"]
        found[f"{SOFTMAX}.tail.{band - 1}.2.weight"] = tensors[f"{INPUTS}.embeddings.{band}.0.weight"]
    found["decoder.version"] = torch.tensor([3.0])
    found[f"{SOFTMAX}.version"] = torch.tensor([1])
    for name in (INPUTS, f"{SOFTMAX}.head", "decoder.embed_positions"):
        found[f"{name}._float_tensor"] = torch.zeros(1)
    return found


def from_fairseq(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of fairseq's under our names. UserError where they are no tied adaptive model."""
    if f"{INPUTS}.embeddings.0.0.weight" not in tensors or f"{SOFTMAX}.head.class_proj.weight" not in tensors:
        raise UserError(f"no {INPUTS}.embeddings or no {SOFTMAX} among the tensors: not an adaptive transformer_lm")
    if "decoder.layer_norm.weight" in tensors:
        raise UserError("decoder.layer_norm is there: a transformer_lm with a last norm is no transformer_lm_wiki103")
    ours = {name: tensor for name, tensor in tensors.items() if not name.endswith(("version", "_float_tensor"))}
    own = {n: t for n, t in ours.items() if not n.startswith((f"{SOFTMAX}.tail.", f"{SOFTMAX}.head.word_"))}
    tied = to_fairseq(own)
    for name, tensor in ours.items():
        if name not in tied or not torch.equal(tied[name], tensor):
            raise UserError(f"{name} is not tied to {INPUTS}: an untied transformer_lm is not one here")
    return own
