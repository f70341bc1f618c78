"""What makes a host wait for its device, counted on the CPU, where it costs nothing and nobody would notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their results, or the shapes of these, are on the host.
OPERATORS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.nonzero_static, aten.nonzero_numpy, aten.masked_select),
    *(aten.equal, aten.is_nonzero, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive),
    *(aten.bincount, aten.repeat_interleave),
}
# Seen by no operator: of a tensor on the CPU they are its memory. The last ones copy from pageable memory to a device,
# which waits for it.
FUNCTIONS: set[Callable[..., object]] = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.__array__, Tensor.__contains__, Tensor.__complex__, torch.tensor, torch.as_tensor),
}


class Waited(AssertionError):
    """Something waits for the device."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        indices = args[1] if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) else ()
        by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if packet in OPERATORS or by_mask:
            raise Waited(f"{func}{' by a mask' * by_mask}")
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_generator = func is Tensor.numpy and args[0].dtype is torch.uint8  # its state is on the host, also a GPU's
        places = (*args[1:], *(kwargs or {}).values()) if func is Tensor.to else ()
        to_host = "cpu" in [place for place in places if isinstance(place, str)]  # not the device of another tensor
        if to_host or (func in FUNCTIONS and not of_generator):
            raise Waited(resolve_name(func) or str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waits() -> Iterator[None]:
    """Inside, an operation fails that would wait for the device if the tensors were on one."""
    with _Operators(), _Functions():
        yield
