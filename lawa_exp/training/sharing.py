"""How the ranks share a batch and the model."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.axes.batch.batches import Batches
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.lr import rates
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

MICRO_TOKENS = 16384  # tokens in one forward pass of a rank, where trainer.micro_batch is not given


def batches_of(config: Config, data: DatasetFacts) -> Batches:
    batches: Batches = config.batch.batches(data.tokens_per_sample, data.sizes["train"])
    return batches


def rate_of(config: Config, batches: Batches, step: int, measured: float | None = None) -> float:
    """The learning rate of the update that completes `step`, times a fault's factor; see `axes.lr.rates`."""
    rate = rates.rate(config.lr, config.scaling, batches, step, measured)
    factor: float = config.fault.rate_factor(step)
    return factor * rate


@dataclass(frozen=True)
class Split:
    """How one batch is worked through: `micro` samples a forward pass, `accumulate` passes on each rank."""

    micro: int
    accumulate: int


def split_batch(config: Config, size: int, tokens_per_sample: int, world: int) -> Split:
    """A batch of `size` on `world` ranks; UserError where it does not divide."""
    wanted = config.trainer.micro_batch
    if size % world:
        raise UserError(
            f"batch.size={size}: expected a multiple of the {world} ranks, such as {world * -(-size // world)}"
        )
    share = size // world
    if wanted is not None and share % wanted:
        raise UserError(
            f"trainer.micro_batch={wanted}: expected a divisor of {share}, the samples of one rank in a batch"
        )
    group = config.batch.norm_group or 1
    if share % group:
        raise UserError(
            f"batch.norm_group={group}: expected null, or a divisor of {share}, the samples of one rank in a batch of "
            f"{size}"
        )
    if wanted is not None and wanted % group:
        raise UserError(f"trainer.micro_batch={wanted}: expected a multiple of batch.norm_group={group}")
    fits = max(group, MICRO_TOKENS // tokens_per_sample)
    micro = wanted or max(m for m in range(group, min(share, fits) + 1, group) if share % m == 0)
    return Split(micro, share // micro)


def splits(config: Config, data: DatasetFacts, world: int) -> dict[int, Split]:
    """How each batch size of the training is split."""
    return {size: split_batch(config, size, data.tokens_per_sample, world) for size in batches_of(config, data).sizes}


def sharing(config: Config, world: int) -> str:
    """How the ranks share the model: `ddp`, `fsdp`, or `single`, as on one rank there is nothing to share."""
    if world == 1:
        return "single"
    return "ddp" if config.trainer.parallel == "auto" else config.trainer.parallel


def splits_statistics(config: Config, splits: dict[int, Split]) -> bool:
    """Whether BatchNorm, where the model has it, would see fewer samples at once than the whole batch."""
    return config.batch.norm_group is None and any(split.micro < size for size, split in splits.items())


def micro_batches(splits: dict[int, Split]) -> int | list[int]:
    """Samples in a forward pass of a rank: one number, or one for each batch size."""
    found = [split.micro for split in splits.values()]
    return found if len(found) > 1 else found[0]
