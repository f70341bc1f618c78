"""The plan of a training as it is printed, its warnings, and what it cannot do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from torch import Tensor

from lawa_exp.axes.choice import Planned
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.fault.rate import RateBurst
from lawa_exp.axes.feedback import FEEDBACK
from lawa_exp.axes.feedback.none import NoFeedback
from lawa_exp.axes.lr.decaying import Decaying
from lawa_exp.axes.lr.on_the_fly import OnTheFly
from lawa_exp.axes.lr.power import Power
from lawa_exp.axes.lr.rates import Rates
from lawa_exp.axes.lr.step import Steps
from lawa_exp.axes.model.papers_names import PAPERS_NAMES
from lawa_exp.axes.optimizer.sgd import SGD
from lawa_exp.axes.scaling import SCALINGS
from lawa_exp.axes.scaling.none import NoScaling
from lawa_exp.formats.stored import STATISTICS
from lawa_exp.parallel.sharing import batches_of, sharing
from lawa_exp.runs.cost import A100, MFU, Cost, tensors_and_cost
from lawa_exp.runs.prepare import Prepared
from lawa_exp.seams.batches import Batches, Split
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.storage import custom
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.origin import Origin
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.files import size_text


def describe(
    config: Config,
    data: DatasetFacts,
    splits: dict[int, Split],
    world: int,
    tensors: Mapping[str, Tensor],
    cost: Cost,
    origin: Origin | None = None,
) -> str:
    """The plan as it is printed. tensors: the model's tensors by name (on any device)."""
    steps, first = config.steps, cost.first
    has_norms = any(map(STATISTICS.search, tensors))
    called = f" ({PAPERS_NAMES[config.model.name]})" if config.model.name in PAPERS_NAMES else ""
    lines = [
        f"model       {cost.parameters:,} parameters{called}, {size_text(cost.model_bytes)}",
        f"data        {config.dataset.name}, fingerprint {data.fingerprint[:12]}: {data.sizes['train']:,} train, "
        f"{data.sizes['val']:,} val, {data.sizes['test']:,} test samples of {data.sample}",
    ]
    lines += [f"            {data.note}"] if data.note else []
    if origin:
        what = f"the state after step {first:,}: {steps - first:,} steps are left to train" if first else "its weights"
        lines.append(f"goes on from {origin.source.name}, {what}")
    lines += [
        *batch_lines(config, data, splits, world, has_norms),
        f"machine     {config.trainer.device}, {config.trainer.dtype}, {config.trainer.threads} CPU thread(s) a rank"
        + {"single": "", "ddp": ", ddp", "fsdp": f", fsdp: 1/{world} of the tensors on each"}[sharing(config, world)]
        + (", activations recomputed" if config.trainer.checkpoint_activations else ""),
        budget_line(config, data, cost),
        *rate_lines(config, batches_of(config, data), first),
        *storage_lines(config, cost),
        f"evaluation  every {config.evaluate.every} steps" + (f"; {norms_evaluated(config)}" if has_norms else ""),
        "averages    " + (", ".join(a.id for a in config.averagers) or "none"),
    ]
    if not isinstance(config.feedback, NoFeedback):
        settings = ", ".join(f"{k}={v}" for k, v in asdict(config.feedback).items())
        lines.append(f"feedback    {FEEDBACK.kind_of(config.feedback)}: {settings}")
    if (at := config.fault.at) is not None:
        lines.append(f"fault       {config.fault.described}, in steps {at + 1:,} to {at + config.fault.length:,}")
    return "\n".join(lines + [f"warning     {w}" for w in warnings(config)])


def in_tokens(data: DatasetFacts, samples: int) -> str:
    return f" = {samples * data.tokens_per_sample:,} tokens" if data.unit == "token" else ""


def batch_lines(
    config: Config, data: DatasetFacts, splits: dict[int, Split], world: int, has_norms: bool
) -> Iterator[str]:
    """Each batch size, how the ranks share it, and how many samples share BatchNorm statistics."""
    batches = batches_of(config, data)
    for start, size in zip(batches.starts, batches.sizes, strict=True):
        split = splits[size]
        from_step = f"from step {start + 1:,}: " if len(batches.sizes) > 1 else ""
        yield (
            f"batch       {from_step}{size} samples{in_tokens(data, size)} a step: "
            f"{world} rank(s) x {split.accumulate} x {split.micro}"
        )
    if has_norms and config.batch.norm_group is None:
        micro = sorted({split.micro for split in splits.values()})
        yield (
            f"            BatchNorm statistics of {' or '.join(map(str, micro))} samples; "
            f"batch.norm_group={math.gcd(*micro)} fixes this on any machine"
        )


def budget_line(config: Config, data: DatasetFacts, cost: Cost) -> str:
    hours = f", {cost.gpu_hours():,.0f} hours of an A100 at {MFU:.0%} of its {A100 / 1e12:g} TFLOP/s"
    return (
        f"budget      {config.steps:,} steps = {cost.samples:,} samples{in_tokens(data, cost.samples)} "
        f"= {cost.samples / data.sizes['train']:.2f} epochs; about {cost.flops:.2e} FLOPs"
        + (hours if cost.gpu_hours() >= 1 else "")
    )


def rate_lines(config: Config, batches: Batches, first: int) -> Iterator[str]:
    """The rate at some steps after `first`, and its warm-up and decay."""
    lr, steps = config.lr, config.steps
    marks = {1, lr.warmup_steps or 1, steps // 4 or 1, steps // 2 or 1, 3 * steps // 4 or 1, steps, first + 1}
    if isinstance(lr, Decaying):
        marks.add(lr.stable_steps)
    if isinstance(config.fault, RateBurst):
        begin = config.fault.at
        marks |= {begin, begin + 1, begin + config.fault.length + 1}
    measured = lr if isinstance(lr, OnTheFly) else None
    last = min(steps, measured.first) if measured else steps
    of_step = Rates(lr, config.scaling, config.fault, batches).of
    rates = [f"{of_step(s):.3g} at step {s:,}" for s in sorted(marks) if first < s <= last]
    yield (
        "rate        "
        + ", ".join(rates)
        + (f"; measured every {measured.every:,} steps from step {measured.first:,} on" if measured else "")
    )
    warmup = f"            warm-up to step {lr.warmup_steps:,} ({batches.samples(lr.warmup_steps):,} samples)"
    if isinstance(lr, Decaying):
        warmup += f", decay after step {lr.stable_steps:,} ({batches.samples(lr.stable_steps):,} samples)"
    yield warmup + (f"; planned for {lr.horizon:,} steps" if lr.uses_horizon and lr.horizon != steps else "")


def storage_lines(config: Config, cost: Cost) -> Iterator[str]:
    """What snapshots and states take on the disk."""
    steps = config.steps
    yield (
        f"snapshots   every {config.trajectory.every} steps: {cost.snapshots:,}; "
        f"on the disk {cost.on_disk:,} = {size_text(cost.on_disk * cost.model_bytes)}"
    )
    copies = 1 + len({s for a in config.averagers if a.windowed for s in a.needed(steps)})
    copies += sum(a.copies() for a in config.averagers)
    if not isinstance(config.feedback, NoFeedback):  # it has an averager and a window of its own
        averager = config.feedback.averager
        copies += averager.copies() + (len(averager.needed(steps)) if averager.windowed else 0)
    yield (
        f"states      every {config.save.every} steps: the last 2, at most "
        f"{size_text(2 * cost.model_bytes * (3 + copies))}"
        + (f"; kept at {list(config.save.keep)}" if config.save.keep else "")
    )


def norms_evaluated(config: Config) -> str:
    """With which BatchNorm statistics weights are evaluated."""
    e = config.evaluate
    samples = f", on {e.bn_samples} training samples" if e.bn == "recalibrate" else ""
    return f"live weights and averages with evaluate.bn={e.bn}{samples}"


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
    if config.lr.uses_horizon and config.lr.horizon < config.steps:
        found.append(
            f"lr.horizon={config.lr.horizon}: the last {config.steps - config.lr.horizon:,} of the "
            f"{config.steps:,} steps are trained at the schedule's last rate"
        )
    if not isinstance(config.feedback, NoFeedback):
        fed_back, every = config.feedback.averager, config.feedback.every
        last = config.steps // every * every
        if len(fed_back.needed(last)) < fed_back.observations:
            name = FEEDBACK.kind_of(config.feedback)
            found.append(f"feedback={name} every {every} steps: the budget of {config.steps} steps never gets to it")
    if config.fault.at is not None and (last := config.fault.at + config.fault.length) > config.steps:
        found.append(
            f"fault.at={config.fault.at}: it lasts until step {last:,}, beyond the budget of {config.steps:,} steps"
        )
    if isinstance(config.lr, Steps):
        late = [s for s in config.lr.at if s >= config.steps]
        found += [f"lr.at: step {s:,} is beyond the budget of {config.steps:,} steps" for s in late]
    if isinstance(config.lr, Power) and not isinstance(config.scaling, NoScaling):
        name = SCALINGS.kind_of(config.scaling)
        found.append(f"lr=power is proportional to the batch already: scaling={name} multiplies its rate once more")
    if isinstance(config.lr, OnTheFly):
        if config.lr.first >= config.steps:
            found.append(f"lr=on_the_fly: the first measurement, after step {config.lr.first:,}, is beyond the budget")
        if not isinstance(config.optimizer, SGD):
            found.append("lr=on_the_fly measures a rate for gradient descent: meant for optimizer=sgd")
    beyond = [s for s in config.save.keep if s > config.steps]
    return found + [f"save.keep={s} is beyond the budget of {config.steps} steps" for s in beyond]


def show_plan(p: Prepared, ranks: Ranks) -> str:
    """The plan as it is printed, and what the run directory holds of it already. UserError: it cannot be done."""
    if p.code:
        custom.use(p.code)
    planned = Planned(
        p.config, p.facts, batches_of(p.config, p.facts), p.splits, ranks.world, sharing(p.config, ranks.world)
    )
    for choice in p.config.choices.values():
        choice.check(planned)
    tensors, cost = tensors_and_cost(p)
    described = describe(p.config, p.facts, p.splits, ranks.world, tensors, cost, p.origin)
    run = RunDir(p.run_dir)
    marker, facts = run.marker() or ("", {})
    states = list(steps_in(run.resume))
    if marker in ("DONE", "DIVERGED"):
        return f"{described}\non the disk {marker} after step {facts.get('step', 0):,}"
    return f"{described}\non the disk " + (
        f"a state at step {states[-1]:,}, to go on from" if states else "nothing yet"
    )
