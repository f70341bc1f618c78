"""The plan of a training as it is printed, its warnings, and what it cannot do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lawa_exp.axes.choice import Planned
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.model.papers_names import PAPERS_NAMES
from lawa_exp.runs.cost import A100, MFU, Cost, planned_model, tensors_and_cost
from lawa_exp.runs.memory import Memory, memory_lines, memory_of
from lawa_exp.runs.prepare import Prepared
from lawa_exp.runs.trial import try_model
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.storage import custom
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.origin import Origin
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.files import size_text


def describe(planned: Planned, cost: Cost, memory: Memory, origin: Origin | None = None) -> str:
    """The plan as it is printed."""
    config, data, world = planned.config, planned.data, planned.world
    steps, first = config.steps, cost.first
    said = {name: list(choice.lines(planned)) for name, choice in config.choices.items()}
    has_norms = cost.bn is not None
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
        *batch_lines(planned, has_norms),
        f"machine     {config.trainer.device}, {config.trainer.dtype}, {config.trainer.threads} CPU thread(s) a rank"
        + {"single": "", "ddp": ", ddp", "fsdp": f", fsdp: 1/{world} of the tensors on each"}[planned.sharing]
        + (", activations recomputed" if config.trainer.checkpoint_activations else ""),
        budget_line(config, data, cost),
        *said.pop("lr"),
        *storage_lines(config, cost),
        *memory_lines(memory, planned),
        f"evaluation  every {config.evaluate.every} steps" + (f"; {norms_evaluated(config)}" if has_norms else ""),
        f"            evaluations take about {100 * cost.evaluation_share:.2g}% of the FLOPs",
        "averages    " + (", ".join(a.id for a in config.averagers) or "none"),
        *(line for of_choice in said.values() for line in of_choice),
    ]
    return "\n".join(lines + [f"warning     {w}" for w in warnings(planned)])


def in_tokens(data: DatasetFacts, samples: int) -> str:
    return f" = {samples * data.tokens_per_sample:,} tokens" if data.unit == "token" else ""


def batch_lines(planned: Planned, has_norms: bool) -> Iterator[str]:
    """Each batch size, how the ranks share it, and how many samples share BatchNorm statistics."""
    batches, splits = planned.batches, planned.splits
    for start, size in zip(batches.starts, batches.sizes, strict=True):
        split = splits[size]
        from_step = f"from step {start + 1:,}: " if len(batches.sizes) > 1 else ""
        yield (
            f"batch       {from_step}{size} samples{in_tokens(planned.data, size)} a step: "
            f"{planned.world} rank(s) x {split.accumulate} x {split.micro}"
        )
    if has_norms and planned.config.batch.norm_group is None:
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
        + (f" in {cost.passes:.3g} passes over a sample" if cost.passes != 1 else "")
        + (hours if cost.gpu_hours() >= 1 else "")
    )


def storage_lines(config: Config, cost: Cost) -> Iterator[str]:
    """What snapshots and states take on the disk."""
    steps = config.steps
    yield (
        f"snapshots   every {config.trajectory.every} steps: {cost.snapshots:,}; "
        f"on the disk {cost.on_disk:,} = {size_text(cost.on_disk * cost.model_bytes)}"
    )
    copies = 1 + len({s for a in config.averagers if a.windowed for s in a.needed(steps)})
    copies += sum(a.copies() for a in config.averagers)
    copies += sum(choice.copies(steps) + choice.snapshots(steps) for choice in config.choices.values())
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


def warnings(planned: Planned) -> list[str]:
    """Averages that the budget cannot fill, what choices warn of, and states that the budget does not reach."""
    config, found = planned.config, []
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
    first = ("feedback", "fault")
    for _, choice in sorted(config.choices.items(), key=lambda item: item[0] not in first):
        found += choice.warnings(planned)
    beyond = [s for s in config.save.keep if s > config.steps]
    return found + [f"save.keep={s} is beyond the budget of {config.steps} steps" for s in beyond]


def show_plan(p: Prepared, ranks: Ranks) -> str:
    """The plan as it is printed, and what the run directory holds of it already. UserError: it cannot be done."""
    if p.code:
        custom.use(p.code)
    p.check(ranks.world)
    planned, model = p.planned(ranks.world), planned_model(p)
    if p.config.model.outside and p.opened:
        try_model(p.config, model, p.opened)
    _, cost = tensors_and_cost(p, model)
    described = describe(planned, cost, memory_of(planned, model, p.opened), p.origin)
    run = RunDir(p.run_dir)
    marker, facts = run.marker() or ("", {})
    states = list(steps_in(run.resume))
    if marker in ("DONE", "DIVERGED"):
        return f"{described}\non the disk {marker} after step {facts.get('step', 0):,}"
    return f"{described}\non the disk " + (
        f"a state at step {states[-1]:,}, to go on from" if states else "nothing yet"
    )
