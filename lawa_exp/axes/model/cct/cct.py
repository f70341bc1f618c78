"""The Compact Convolutional Transformer (Hassani et al. 2021, arXiv 2104.05704).

Parameter names are those of the authors' code, https://github.com/SHI-Labs/Compact-Transformers.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

if TYPE_CHECKING:
    from lawa_exp.axes.model.cct.settings import CCTSettings

FILTERS = 64  # channels between two convolutions of the tokenizer


class Tokenizer(nn.Module):
    """images [batch, channels, size, size] -> [batch, tokens, width]: each convolution with a ReLU and a 3x3 pooling of
    stride 2."""

    def __init__(self, s: CCTSettings) -> None:
        super().__init__()
        assert s.channels, "what follows from the data set is not known yet"
        channels = [s.channels, *[FILTERS] * (s.convolutions - 1), s.width]
        stride, padding = max(1, s.kernel // 2 - 1), max(1, s.kernel // 2)
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, s.kernel, stride, padding, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
                )
                for before, after in itertools.pairwise(channels)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.conv_layers(images).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    def __init__(self, s: CCTSettings) -> None:
        super().__init__()
        self.heads, self.dropout = s.heads, s.attention_dropout
        self.qkv = nn.Linear(s.width, 3 * s.width, bias=False)
        self.proj = nn.Linear(s.width, s.width)
        self.proj_dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out: Tensor = self.proj_dropout(self.proj(y.transpose(1, 2).reshape(batch, tokens, width)))
        return out


class Block(nn.Module):
    """Not quite pre-norm: what the second branch is added to is the normalised sum (as in the authors' code)."""

    def __init__(self, s: CCTSettings, layer: int) -> None:
        super().__init__()
        hidden = int(s.width * s.mlp_ratio)
        self.pre_norm = nn.LayerNorm(s.width)
        self.self_attn = Attention(s)
        self.norm1 = nn.LayerNorm(s.width)
        self.linear1 = nn.Linear(s.width, hidden)
        self.linear2 = nn.Linear(hidden, s.width)
        self.dropout = nn.Dropout(s.dropout)
        self.drop_path = StochasticDepth(s.stochastic_depth * layer / max(1, s.layers - 1), "row")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop_path(self.self_attn(self.pre_norm(x))))
        out: Tensor = x + self.drop_path(self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x))))))
        return out


class Classifier(nn.Module):
    """[batch, tokens, width] -> logits [batch, classes], pooled over the tokens by learned weights."""

    def __init__(self, s: CCTSettings, tokens: int) -> None:
        super().__init__()
        assert s.classes, "what follows from the data set is not known yet"
        self.positional_emb: nn.Parameter | None = None
        if s.positions == "learned":
            self.positional_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, s.width), std=0.2))
        elif s.positions == "sine":
            self.positional_emb = nn.Parameter(sine_positions(tokens, s.width), requires_grad=False)
        self.attention_pool = nn.Linear(s.width, 1)
        self.dropout = nn.Dropout(s.dropout)
        self.blocks = nn.ModuleList(Block(s, layer) for layer in range(s.layers))
        self.norm = nn.LayerNorm(s.width)
        self.fc = nn.Linear(s.width, s.classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.positional_emb is not None:
            x = x + self.positional_emb
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        weights = self.attention_pool(x).softmax(1)
        logits: Tensor = self.fc((weights * x).sum(1))
        return logits


class CCT(nn.Module):
    """images [batch, channels, image_size, image_size] -> logits [batch, classes]."""

    def __init__(self, s: CCTSettings) -> None:
        super().__init__()
        assert s.channels and s.image_size, "what follows from the data set is not known yet"
        self.tokenizer = Tokenizer(s)
        tokens = self.tokenizer(torch.zeros(1, s.channels, s.image_size, s.image_size)).shape[1]
        self.classifier = Classifier(s, tokens)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.tokenizer(images))
        return logits


def sine_positions(tokens: int, width: int) -> Tensor:
    """[1, tokens, width]: sines in even places, cosines in odd ones (Vaswani et al. 2017, section 3.5)."""
    pairs = torch.arange(width) // 2
    angles = torch.arange(tokens)[:, None] * torch.exp(-math.log(10000.0) * 2 * pairs / width)
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())[None]
