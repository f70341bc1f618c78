"""The curvature of the training loss: Hessian-vector products by double backward, and Lanczos on them.

The loss is the run's own objective, a mean over the targets of chosen training samples (as evaluation reads them: no
augmentation), in float32 and in evaluation mode: no dropout, BatchNorm with its running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lawa_exp.averaging.tensors import unwrapped
from lawa_exp.axes.dataset.loading import to_device
from lawa_exp.evaluation.evaluate import evaluating
from lawa_exp.seams.dataset import Dataset
from lawa_exp.seams.task import IGNORE
from lawa_exp.system.distributed import Ranks

CHUNK_TOKENS = 8192  # in one forward pass: twice differentiated, it holds several times what a training's does
NOISE_GROUPS = 32  # of samples, at least, where they suffice
INVARIANT = 1e-10  # a Lanczos vector so much shorter than the matrix is large is rounding: nothing is left


class TrainingLoss:
    """Its gradient and Hessian-vector products over training samples; vectors are flat, the parameters in order.

    Vectors are summed in float64 and given in the parameters' dtype. Several ranks take turns with the chunks of
    samples and get the same sums.
    """

    def __init__(self, objective: nn.Module, data: Dataset, ranks: Ranks) -> None:
        """objective: (inputs, targets) -> terms, of which `loss` is summed over the targets."""
        self.objective = unwrapped(objective)  # not compiled: that does not differentiate twice
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.data, self.ranks = data, ranks
        self.chunk = max(1, CHUNK_TOKENS // data.tokens_per_sample)

    @property
    def size(self) -> int:
        """The number of parameters, P."""
        return sum(p.numel() for p in self.parameters)

    def gradient(self, indices: np.ndarray) -> Tensor:
        """g, [P]: of the mean loss over the training samples at `indices`."""
        return self._mean(indices, self._gradients(indices))

    def times(self, indices: np.ndarray, vector: Tensor) -> Tensor:
        """H v, [P], for the Hessian H of the mean loss over the training samples at `indices`."""
        return self._mean(indices, self._products(indices, vector))

    def noise(self, indices: np.ndarray, vector: Tensor) -> float:
        """P sigma^2, for a Hessian of one sample whose entries scatter with variance sigma^2 around the mean Hessian.

        vector: a random unit vector z. ||(H_B - H) z||^2 is P sigma^2 / B on average; here the variance between groups
        of samples, each weighted with their number. indices: at least 2.
        """
        group = max(1, min(self.chunk, len(indices) // NOISE_GROUPS))
        mean = self.times(indices, vector).double()
        between = torch.zeros((), dtype=torch.float64, device=mean.device)
        for count, product in self._products(indices, vector, group):
            between += count * (product - mean).square().sum()
        return float(self.ranks.sum(between)) / (math.ceil(len(indices) / group) - 1)

    def _mean(self, indices: np.ndarray, parts: Iterator[tuple[int, Tensor]]) -> Tensor:
        first = self.parameters[0]
        total = torch.zeros(self.size, dtype=torch.float64, device=first.device)
        for count, part in parts:
            total += count * part
        return (self.ranks.sum(total) / len(indices)).to(first.dtype)

    def _gradients(self, indices: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        for count, loss in self._losses(indices, self.chunk):
            yield count, flat(torch.autograd.grad(loss, self.parameters, materialize_grads=True))

    def _products(self, indices: np.ndarray, vector: Tensor, chunk: int | None = None) -> Iterator[tuple[int, Tensor]]:
        parts = vector.split([p.numel() for p in self.parameters])
        shaped = [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
        for count, loss in self._losses(indices, chunk or self.chunk):
            gradients = torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)
            along = sum((g * v).sum() for g, v in zip(gradients, shaped, strict=True))
            yield count, flat(torch.autograd.grad(along, self.parameters, materialize_grads=True))

    def _losses(self, indices: np.ndarray, chunk: int) -> Iterator[tuple[int, Tensor]]:
        """This rank's chunks: their samples, and the mean loss over their targets with its graph."""
        device = self.parameters[0].device
        for first in range(self.ranks.rank * chunk, len(indices), self.ranks.world * chunk):
            samples = indices[first : first + chunk]
            inputs, *targets = to_device(self.data.eval_batch("train", samples), device)
            with evaluating(self.objective), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others: once only
                loss = self.objective(inputs, *targets)["loss"] / int((targets[0] != IGNORE).sum())
            yield len(samples), loss


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """[P], float64."""
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])


def gradient_step(loss: TrainingLoss, indices: np.ndarray) -> float | None:
    """g'g / g'Hg: the step along the gradient that would minimise the loss if it were a quadratic.

    None where the curvature along it is not positive, or either is not finite.
    """
    g = loss.gradient(indices)
    product = loss.times(indices, g)
    along, across = float(g.double().square().sum()), float(g.double() @ product.double())
    return along / across if across > 0 and 0 < along < math.inf and across < math.inf else None


@dataclass(frozen=True)
class Spectrum:
    """What Lanczos found, from one start vector z: a quadrature of the spectral density that z sees.

    values: Ritz values, ascending; weights: of each, together 1; errors: to the nearest eigenvalue, at most.
    """

    values: np.ndarray
    weights: np.ndarray
    errors: np.ndarray

    @property
    def largest(self) -> float:
        return float(self.values[-1])

    @property
    def smallest(self) -> float:
        return float(self.values[0])


def lanczos(times: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Spectrum:
    """Lanczos with full re-orthogonalisation (twice) for the symmetric matrix behind `times`.

    start: z, [P], any length but 0; the vectors, iterations x P, are kept in its dtype, the tridiagonal matrix in
    float64. Fewer iterations where z lies in a smaller invariant subspace: then its spectrum is exact.
    """
    iterations = min(iterations, len(start))
    basis = start.new_empty(iterations, len(start))
    q = start / start.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    for i in range(iterations):
        basis[i] = q
        w = times(q)
        diagonal.append(float(q.double() @ w.double()))
        for _ in range(2):
            w = w - basis[: i + 1].T @ (basis[: i + 1] @ w)
        beside.append(float(w.double().norm()))
        if beside[-1] <= INVARIANT * max(map(abs, diagonal + beside)):
            break
        q = w / w.norm()
    m = len(diagonal)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[: m - 1], 1) + np.diag(beside[: m - 1], -1))
    return Spectrum(values, vectors[0] ** 2, np.abs(beside[m - 1] * vectors[-1]))


def random_unit(size: int, like: Tensor, *seeds: int) -> Tensor:
    """A direction, uniform on the sphere: [size], a function of the seeds alone (made on the CPU)."""
    z = torch.from_numpy(np.random.default_rng(seeds).standard_normal(size)).to(like)
    unit: Tensor = z / z.norm()
    return unit
