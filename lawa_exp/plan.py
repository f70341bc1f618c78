"""From what was asked to what will be done: resolved steps, the trajectory id, the batch on each rank, the cost."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lawa_exp import schedules
from lawa_exp.averaging.feedback import FEEDBACK, NoFeedback
from lawa_exp.batches import Batches, ConstantBatch
from lawa_exp.config import Config, UserError, resolve_steps, setting_names
from lawa_exp.fault import FAULTS, NoFault, RateBurst
from lawa_exp.files import size_text
from lawa_exp.fingerprint import Code
from lawa_exp.formats.stored import STATISTICS
from lawa_exp.machine import default_threads, default_workers
from lawa_exp.models import PAPERS_NAMES
from lawa_exp.optim import SGD, AdamW, ScheduleFree
from lawa_exp.origin import Origin
from lawa_exp.scaling import SCALINGS, NoScaling
from lawa_exp.settings import config_to, kind_of

DETERMINING = ("model", "dataset", "optimizer", "lr", "batch", "scaling", "feedback", "fault", "seed")
MICRO_TOKENS = 16384  # tokens in one forward pass of a rank, where trainer.micro_batch is not given
A100, MFU = 312e12, 0.4  # FLOP/s, dense, in bfloat16 (NVIDIA's data sheet), and the share of them that hours assume


def resolve(config: Config, data: Any) -> Config:
    """The configuration with every budget, `1epoch`, `75%`, device default and averager in plain numbers.

    data: the open data set. Raises UserError for what contradicts it.
    """
    config = replace(config, model=config.model.fitted(data, config.dataset.name))
    if isinstance(config.optimizer, ScheduleFree) and not isinstance(config.feedback, NoFeedback):
        raise UserError(
            f"feedback={kind_of(FEEDBACK, config.feedback)}: expected none with optimizer=schedule_free, which keeps "
            "an average of its own that would not follow"
        )
    batches = batches_of(config, data)
    in_samples = {"epochs": data.sizes["train"], "samples": 1, "tokens": 1 / data.tokens_per_sample}

    def steps_for(amount: float, unit: str) -> int:
        return int(amount) if unit == "steps" else batches.steps(amount * in_samples[unit])

    unit, amount = config.budget
    total = steps_for(amount, unit)
    horizon = resolve_steps(config.lr.horizon or total, steps_for, total, "lr.horizon", 1)

    def at_end(amount: float, unit: str) -> int:
        return batches.steps_at_end(horizon, amount * in_samples[unit])

    def fixed(value: Any, key: str, low: int = 0, steps_for: Any = steps_for) -> Any:
        if isinstance(value, tuple):
            return tuple(fixed(v, key, low) for v in value)
        return None if value is None else resolve_steps(value, steps_for, horizon, key, low)

    def of_horizon(value: Any) -> Any:
        """A percentage is one of the horizon in `lr.unit`: of its samples, where the schedule counts these."""
        unit = getattr(config.lr, "unit", "steps")
        if not (isinstance(value, str) and value.endswith("%")) or unit == "steps":
            return tuple(map(of_horizon, value)) if isinstance(value, tuple) else value
        return f"{float(value[:-1]) / 100 * batches.seen(unit, horizon):.6f}{unit}"

    names = ("warmup_steps", *config.lr.lengths)
    lengths = {name: fixed(of_horizon(getattr(config.lr, name)), f"lr.{name}") for name in names}
    if isinstance(config.lr, schedules.Decaying):
        lengths["decay_steps"] = fixed(of_horizon(config.lr.decay_steps), "lr.decay_steps", steps_for=at_end)
    if config.scaling.warmup == "samples":
        if isinstance(config.lr.warmup_steps, int):  # what was given in epochs, or of the horizon, is right already
            at_base = config.scaling.base_samples(data.tokens_per_sample)
            lengths["warmup_steps"] = batches.steps(config.lr.warmup_steps * at_base)
        config = replace(config, scaling=replace(config.scaling, warmup="steps"))  # so that it is resolved once
    lr = replace(config.lr, horizon=horizon, **lengths)
    schedules.check(lr)
    if batches.starts[-1] >= total:
        raise UserError(
            f"batch: its size becomes {batches.sizes[-1]} only at step {batches.starts[-1] + 1:,}, "
            f"beyond the budget of {total:,} steps"
        )

    def in_steps_of(settings: Any, where: str) -> Any:
        changes = {
            name: fixed(getattr(settings, name), f"{where}.{name}", 0 if name in ("start", "at") else 1)
            for name in ("spacing", "every", "start", "at", "length")
            if name in setting_names(type(settings))
        }
        return replace(settings, **changes)

    averagers: dict[str, Any] = {}
    for settings in config.averagers:
        settings = in_steps_of(settings, f"averagers.{settings.kind}")
        averagers[settings.id] = settings
    evaluate_every = fixed(config.evaluate.every, "evaluate.every", 1)
    spacings = [a.spacing for a in averagers.values() if a.windowed]
    snapshot_every = fixed(config.trajectory.every, "trajectory.every", 1)
    if snapshot_every is None:
        snapshot_every = math.gcd(*spacings) if spacings else evaluate_every
    if config.trajectory.window == "disk":
        if config.trajectory.keep != "all":
            raise UserError(f"trajectory.window=disk: expected trajectory.keep=all, not {config.trajectory.keep}")
        for spacing in spacings:
            if spacing % snapshot_every:
                raise UserError(
                    f"trajectory.window=disk: trajectory.every={snapshot_every} does not divide the spacing {spacing}"
                )
    return replace(
        config,
        lr=lr,
        averagers=tuple(averagers.values()),
        feedback=in_steps_of(config.feedback, "feedback"),
        fault=in_steps_of(config.fault, "fault"),
        evaluate=replace(config.evaluate, every=evaluate_every),
        save=replace(
            config.save,
            every=fixed(config.save.every, "save.every", 1) or evaluate_every,
            keep=tuple(fixed(s, "save.keep", 1) for s in config.save.keep),
        ),
        trajectory=replace(config.trajectory, every=snapshot_every),
        budget=("steps", total),
    )


def batches_of(config: Config, data: Any) -> Batches:
    return config.batch.batches(data.tokens_per_sample, data.sizes["train"])


def rate_of(config: Config, batches: Batches, step: int, measured: float | None = None) -> float:
    """The learning rate of the update that completes `step`, with what a fault makes of it; see `schedules.rate`."""
    rate = schedules.rate(config.lr, config.scaling, batches, step, measured)
    return config.fault.rate_factor(step) * rate


def identity(config: Config, data: Any, origin: Origin | None = None, code: Code | None = None) -> dict[str, Any]:
    """What determines the live weights, from the resolved configuration; names and places do not. code: the model's."""
    content = {k: v for k, v in config_to(config).items() if k in DETERMINING}
    for part in ("model", "dataset"):
        content[part] = {
            k: v for k, v in content[part].items() if k not in ("name", "path", "folder", "tokenizer_path")
        }
    content["dataset"]["fingerprint"] = data.fingerprint
    if code:
        content["model"]["code"] = code.identity
    if isinstance(config.fault, NoFault):
        del content["fault"]
    if not config.lr.uses_horizon:
        del content["lr"]["horizon"]
    if config.batch.norm_group is None:
        del content["batch"]["norm_group"]
    if isinstance(config.optimizer, AdamW) and config.optimizer.decays == "matrices":
        del content["optimizer"]["decays"]
    if isinstance(config.batch, ConstantBatch):  # then it is all the same
        del content["lr"]["unit"]
    if origin:
        content["init"] = origin.identity
    return content | {"dtype": config.trainer.dtype, "compile": config.trainer.compile}


def trajectory_id(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def run_folder(root: Path, config: Config, trajectory: str) -> Path:
    """The run's folder in `root`: a readable prefix, with feedback and fault where there are, and the trajectory id.

    No `=` in its name. Before the feedback was in it the folder had a shorter one, under which it is still found.
    """
    head = f"{config.model.name}-{config.dataset.name}-{type(config.lr).__name__.lower()}{config.lr.peak:g}"
    tail = f"seed{config.seed}-{trajectory}"
    if not isinstance(config.fault, NoFault):
        tail = f"bad_{kind_of(FAULTS, config.fault)}-{tail}"
    without = root / f"{head}-{tail}"
    if isinstance(config.feedback, NoFeedback):
        return without
    folder = root / f"{head}-{kind_of(FEEDBACK, config.feedback)}-{tail}"
    return without if without.exists() and not folder.exists() else folder


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


def splits(config: Config, data: Any, world: int) -> dict[int, Split]:
    """How each batch size of the training is split."""
    return {size: split_batch(config, size, data.tokens_per_sample, world) for size in batches_of(config, data).sizes}


def sharing(config: Config, world: int) -> str:
    """How the ranks share the model: `ddp`, `fsdp`, or `single`, as on one rank there is nothing to share."""
    if world == 1:
        return "single"
    return "ddp" if config.trainer.parallel == "auto" else config.trainer.parallel


def check_sharding(config: Config, world: int) -> None:
    """UserError for what needs whole gradients or weights on each rank, where it has rows of them."""
    if sharing(config, world) != "fsdp":
        return
    if config.logger.noise_scale:
        raise UserError(
            "logger.noise_scale=true: expected false with trainer=fsdp, whose ranks hold no gradient of their own "
            "samples; or choose trainer=ddp"
        )
    if isinstance(config.lr, schedules.OnTheFly):
        raise UserError("lr=on_the_fly: not with trainer=fsdp, which does not differentiate twice; choose trainer=ddp")


def check_noise_scale(config: Config, splits: dict[int, Split], world: int) -> None:
    """UserError where logger.noise_scale has only one gradient for a batch, and nothing to compare it with."""
    for size, split in splits.items():
        if config.logger.noise_scale and split.accumulate * world == 1:
            smaller = max((m for m in range(1, size) if size % m == 0), default=None)
            choice = f"choose trainer.micro_batch={smaller} or a smaller one" if smaller else "choose a larger batch"
            raise UserError(f"logger.noise_scale=true: a batch of {size} is one micro-batch on one rank; {choice}")


def splits_statistics(config: Config, splits: dict[int, Split]) -> bool:
    """Whether BatchNorm, where the model has it, would see fewer samples at once than the whole batch."""
    return config.batch.norm_group is None and any(split.micro < size for size, split in splits.items())


def micro_batches(splits: dict[int, Split]) -> int | list[int]:
    """Samples in a forward pass of a rank: one number, or one for each batch size."""
    found = [split.micro for split in splits.values()]
    return found if len(found) > 1 else found[0]


def resolve_trainer(config: Config, device_type: str, local_world: int) -> Config:
    """Device, dtype `auto`, threads and workers, as they are at hand: bfloat16 on a GPU, float32 on a CPU."""
    trainer = config.trainer
    dtype = {"cuda": "bfloat16"}.get(device_type, "float32") if trainer.dtype == "auto" else trainer.dtype
    threads = trainer.threads or default_threads(local_world)
    workers = trainer.workers
    if workers is None:
        workers = default_workers(local_world) if device_type == "cuda" else 0
    return replace(config, trainer=replace(trainer, device=device_type, dtype=dtype, threads=threads, workers=workers))


@dataclass(frozen=True)
class Cost:
    """What a training takes, of which `first` steps are done already.

    parameters: those that are trained. model_bytes: of a snapshot. on_disk: snapshots that stay there.
    """

    first: int
    parameters: int
    model_bytes: int
    samples: int
    flops: float
    snapshots: int
    on_disk: int

    def gpu_hours(self, peak: float = A100, mfu: float = MFU) -> float:
        """At a share `mfu` of a GPU's `peak` FLOP/s."""
        return self.flops / (peak * mfu) / 3600


def cost(
    config: Config,
    data: Any,
    tensors: dict[str, Any],
    trained: int,
    flops_per_sample: float,
    origin: Origin | None = None,
) -> Cost:
    """tensors: the model's tensors by name (on any device); trained: its parameters."""
    steps, batches, every = config.steps, batches_of(config, data), int(config.trajectory.every or 1)
    first = origin.first_step if origin else 0
    keep, snapshots = config.trajectory.keep, steps // every - first // every
    return Cost(
        first,
        trained,
        sum(t.numel() * t.element_size() for t in tensors.values()),
        batches.samples(steps),
        flops_per_sample * (batches.samples(steps) - batches.samples(first)),
        snapshots,
        snapshots if keep == "all" else 0 if keep == "none" else min(snapshots, int(keep)),
    )


def describe(
    config: Config,
    data: Any,
    splits: dict[int, Split],
    world: int,
    tensors: dict[str, Any],
    cost: Cost,
    origin: Origin | None = None,
) -> str:
    """The plan as it is printed. tensors: the model's tensors by name (on any device)."""
    steps, batches = config.steps, batches_of(config, data)
    samples, first, model_bytes = cost.samples, cost.first, cost.model_bytes
    in_tokens = {
        a: f" = {a * data.tokens_per_sample:,} tokens" if data.unit == "token" else "" for a in (samples, *splits)
    }
    marks = {1, config.lr.warmup_steps or 1, steps // 4 or 1, steps // 2 or 1, 3 * steps // 4 or 1, steps}
    if isinstance(config.lr, schedules.Decaying):
        marks.add(config.lr.stable_steps)
    marks.add(first + 1)
    if isinstance(config.fault, RateBurst):
        marks |= {at := int(config.fault.at), at + 1, at + int(config.fault.length) + 1}
    on_the_fly = isinstance(config.lr, schedules.OnTheFly)
    marked = [s for s in sorted(marks) if first < s <= (min(steps, config.lr.first) if on_the_fly else steps)]
    held = len({s for a in config.averagers if a.windowed for s in a.needed(steps)}) + 1
    running = sum(a.copies for a in config.averagers)
    if not isinstance(config.feedback, NoFeedback):  # it has an averager and a window of its own
        fed_back = config.feedback.averager
        running += fed_back.copies + (len(fed_back.needed(steps)) if fed_back.windowed else 0)
    e = config.evaluate
    has_norms = any(map(STATISTICS.search, tensors))
    bn = f"live weights and averages with evaluate.bn={e.bn}" + (
        f", on {e.bn_samples} training samples" if e.bn == "recalibrate" else ""
    )
    horizon = int(config.lr.horizon or steps)
    called = f" ({PAPERS_NAMES[config.model.name]})" if config.model.name in PAPERS_NAMES else ""
    hours = f", {cost.gpu_hours():,.0f} hours of an A100 at {MFU:.0%} of its {A100 / 1e12:g} TFLOP/s"
    lines = [
        f"model       {cost.parameters:,} parameters{called}, {size_text(model_bytes)}",
        f"data        {config.dataset.name}, fingerprint {data.fingerprint[:12]}: {data.sizes['train']:,} train, "
        f"{data.sizes['val']:,} val, {data.sizes['test']:,} test samples of {data.sample}",
    ]
    lines += [f"            {data.note}"] if data.note else []
    if origin:
        what = f"the state after step {first:,}: {steps - first:,} steps are left to train" if first else "its weights"
        lines.append(f"goes on from {origin.source.name}, {what}")
    for start, size in zip(batches.starts, batches.sizes, strict=True):
        split = splits[size]
        from_step = f"from step {start + 1:,}: " if len(batches.sizes) > 1 else ""
        lines.append(
            f"batch       {from_step}{size} samples{in_tokens[size]} a step: "
            f"{world} rank(s) x {split.accumulate} x {split.micro}"
        )
    if has_norms and config.batch.norm_group is None:
        micro = sorted({split.micro for split in splits.values()})
        lines.append(
            f"            BatchNorm statistics of {' or '.join(map(str, micro))} samples; "
            f"batch.norm_group={math.gcd(*micro)} fixes this on any machine"
        )
    lines += [
        f"machine     {config.trainer.device}, {config.trainer.dtype}, {config.trainer.threads} CPU thread(s) a rank"
        + {"single": "", "ddp": ", ddp", "fsdp": f", fsdp: 1/{world} of the tensors on each"}[sharing(config, world)]
        + (", activations recomputed" if config.trainer.checkpoint_activations else ""),
        f"budget      {steps:,} steps = {samples:,} samples{in_tokens[samples]} "
        f"= {samples / data.sizes['train']:.2f} epochs; about {cost.flops:.2e} FLOPs"
        + (hours if cost.gpu_hours() >= 1 else ""),
        "rate        "
        + ", ".join(f"{rate_of(config, batches, s):.3g} at step {s:,}" for s in marked)
        + (f"; measured every {config.lr.every:,} steps from step {config.lr.first:,} on" if on_the_fly else ""),
        f"            warm-up to step {config.lr.warmup_steps:,} ({batches.samples(config.lr.warmup_steps):,} samples)"
        + (
            f", decay after step {config.lr.stable_steps:,} ({batches.samples(config.lr.stable_steps):,} samples)"
            if isinstance(config.lr, schedules.Decaying)
            else ""
        )
        + (f"; planned for {horizon:,} steps" if config.lr.uses_horizon and horizon != steps else ""),
        f"snapshots   every {config.trajectory.every} steps: {cost.snapshots:,}; "
        f"on the disk {cost.on_disk:,} = {size_text(cost.on_disk * model_bytes)}",
        f"states      every {config.save.every} steps: the last 2, at most "
        f"{size_text(2 * model_bytes * (3 + held + running))}"
        + (f"; kept at {list(config.save.keep)}" if config.save.keep else ""),
        f"evaluation  every {config.evaluate.every} steps" + (f"; {bn}" if has_norms else ""),
        "averages    " + (", ".join(a.id for a in config.averagers) or "none"),
    ]
    if not isinstance(config.feedback, NoFeedback):
        chosen = ", ".join(f"{k}={v}" for k, v in asdict(config.feedback).items())
        lines.append(f"feedback    {kind_of(FEEDBACK, config.feedback)}: {chosen}")
    if not isinstance(config.fault, NoFault):
        at, length = int(config.fault.at), int(config.fault.length)
        lines.append(f"fault       {config.fault.described}, in steps {at + 1:,} to {at + length:,}")
    return "\n".join(lines + [f"warning     {w}" for w in warnings(config)])


def warnings(config: Config) -> list[str]:
    """Averages that the budget cannot fill, and states that it does not reach."""
    found = []
    for a in config.averagers:
        observed, needed = len(a.needed(config.steps)), a.observations
        if observed < needed:
            budget = f"the budget of {config.steps} steps gives {observed}"
            found.append(f"{a.id} needs {needed} snapshots, {budget}: never defined")
    if config.lr.warmup_steps >= config.steps:
        found.append(f"the warm-up of {config.lr.warmup_steps} steps does not end within the budget of {config.steps}")
    if config.lr.uses_horizon and int(config.lr.horizon or 0) < config.steps:
        found.append(
            f"lr.horizon={config.lr.horizon}: the last {config.steps - int(config.lr.horizon or 0):,} of the "
            f"{config.steps:,} steps are trained at the schedule's last rate"
        )
    if not isinstance(config.feedback, NoFeedback):
        fed_back, every = config.feedback.averager, int(config.feedback.every)
        last = config.steps // every * every
        if len(fed_back.needed(last)) < fed_back.observations:
            name = kind_of(FEEDBACK, config.feedback)
            found.append(f"feedback={name} every {every} steps: the budget of {config.steps} steps never gets to it")
    if (
        not isinstance(config.fault, NoFault)
        and (last := int(config.fault.at) + int(config.fault.length)) > config.steps
    ):
        found.append(
            f"fault.at={config.fault.at}: it lasts until step {last:,}, beyond the budget of {config.steps:,} steps"
        )
    if isinstance(config.lr, schedules.Steps):
        late = [s for s in config.lr.at if s >= config.steps]
        found += [f"lr.at: step {s:,} is beyond the budget of {config.steps:,} steps" for s in late]
    if isinstance(config.lr, schedules.Power) and not isinstance(config.scaling, NoScaling):
        name = kind_of(SCALINGS, config.scaling)
        found.append(f"lr=power is proportional to the batch already: scaling={name} multiplies its rate once more")
    if isinstance(config.lr, schedules.OnTheFly):
        if config.lr.first >= config.steps:
            found.append(f"lr=on_the_fly: the first measurement, after step {config.lr.first:,}, is beyond the budget")
        if not isinstance(config.optimizer, SGD):
            found.append("lr=on_the_fly measures a rate for gradient descent: meant for optimizer=sgd")
    beyond = [s for s in config.save.keep if s > config.steps]
    return found + [f"save.keep={s} is beyond the budget of {config.steps} steps" for s in beyond]


def flops_per_token(model: Any, trained: int) -> float:
    """Forward and backward: 6 N, and 12 * layers * width * context for attention (Chowdhery et al. 2022, app. B)."""
    attention = 12 * model.layers * model.width * model.context if hasattr(model, "heads") else 0
    return 6 * trained + attention
