"""How the ranks share a batch and the model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lawa_exp.axes.configuration import Config
from lawa_exp.seams.batches import Batches, Split
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError

MICRO_TOKENS = 16384  # tokens in one forward pass of a rank, where trainer.micro_batch is not given


def batches_of(config: Config, data: DatasetFacts) -> Batches:
    """Batch sizes by step."""
    return config.batch.batches(data.tokens_per_sample, data.sizes["train"])


def split_batch(config: Config, size: int, tokens_per_sample: int, world: int) -> Split:
    """A batch of `size` on `world` ranks; UserError where it does not divide."""
    wanted, phases = config.trainer.micro_batch, config.objective.phases
    if size % (world * phases):
        of = f"the {world} ranks" + (f" and the objective's {phases} phases" if phases > 1 else "")
        fitting = phases * world * -(-size // (phases * world))
        raise UserError(f"batch.size={size}: expected a multiple of {of}, such as {fitting}")
    share = size // (world * phases)
    if wanted is not None and share % wanted:
        raise UserError(
            f"trainer.micro_batch={wanted}: expected a divisor of {share}, the samples of one rank in a batch"
        )
    groups = {"batch.norm_group": config.batch.norm_group or 1, "objective.group": config.objective.group}
    for key, group in groups.items():
        if share % group:
            raise UserError(
                f"{key}={group}: expected null, or a divisor of {share}, the samples of one rank in a batch of {size}"
            )
        if wanted is not None and wanted % group:
            raise UserError(f"trainer.micro_batch={wanted}: expected a multiple of {key}={group}")
    group = math.lcm(*groups.values())
    fits = max(group, MICRO_TOKENS // tokens_per_sample)
    found = [m for m in range(group, min(share, fits) + 1, group) if share % m == 0]
    if not (wanted or found):
        raise UserError(
            f"batch.size={size}: expected a multiple of {group} samples on each rank, for {' and '.join(groups)}"
        )
    micro = wanted or max(found)
    return Split(micro, phases * share // micro)


def splits(config: Config, data: DatasetFacts, world: int) -> dict[int, Split]:
    """How each batch size of the training is split."""
    return {size: split_batch(config, size, data.tokens_per_sample, world) for size in batches_of(config, data).sizes}


def sharing(config: Config, world: int) -> str:
    """How the ranks share the model: `ddp`, `fsdp`, or `single`, as on one rank there is nothing to share."""
    if world == 1:
        return "single"
    return "ddp" if config.trainer.parallel == "auto" else config.trainer.parallel


def splits_statistics(config: Config, splits: Mapping[int, Split]) -> bool:
    """Whether BatchNorm, where the model has it, would see fewer samples at once than the whole batch."""
    return config.batch.norm_group is None and any(split.micro < size for size, split in splits.items())


def micro_batches(splits: Mapping[int, Split]) -> int | list[int]:
    """Samples in a forward pass of a rank: one number, or one for each batch size."""
    found = [split.micro for split in splits.values()]
    return found if len(found) > 1 else found[0]
