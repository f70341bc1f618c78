"""Random numbers of tensors that follow from (seed, step, name, place): there is no generator whose state is saved, and
those of a shard are the slice of the whole's."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lawa_exp.system.hashing import hash_of

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64
BITS = 24  # of a float32 in [0, 1)


def keyed_uniform(like: Tensor, seed: int, step: int, name: str) -> Tensor:
    """float32 in [0, 1), of the shape and on the device of `like`; of a sharded tensor this rank's rows, and local.

    Give the parameter itself, as `context.model.named_parameters()` has it: rows that are local already do not say
    which rows of the whole they are.

    Nothing waits for the device.
    """
    local, first = (like.to_local(), first_row(like)) if isinstance(like, DTensor) else (like, 0)
    row = local.numel() // local.shape[0] if local.ndim and local.shape[0] else 1
    places = torch.arange(first * row, first * row + local.numel(), dtype=torch.int64, device=local.device)
    named = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    bits = _mixed(places ^ _signed(int(hash_of(seed, step, named))))
    return (_shifted(bits, 64 - BITS).float() * 2.0**-BITS).view(local.shape)


def first_row(tensor: DTensor) -> int:
    """The number, in the whole tensor, of this rank's first row."""
    mesh = tensor.device_mesh
    size = -(-tensor.shape[0] // mesh.size())
    return int(min(size * mesh.get_local_rank(), tensor.shape[0]))


def _mixed(x: Tensor) -> Tensor:
    """splitmix64, on the bits of int64."""
    x = x + _signed(GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(SECOND)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    return int(np.uint64(bits % 2**64).astype(np.int64))
