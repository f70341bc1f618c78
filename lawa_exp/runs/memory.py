"""What a training takes of a rank's memory: computed on tensors without content, for any model and number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lawa_exp.averaging import build_averager
from lawa_exp.averaging.tensors import averaged_names, live_tensors, statistics_names
from lawa_exp.averaging.window import Window
from lawa_exp.axes.choice import Planned
from lawa_exp.axes.configuration import Config
from lawa_exp.seams.dataset import Dataset
from lawa_exp.system.files import size_text

NOT_COUNTED = "activations, casts of the weights, batches that are read ahead"


@dataclass(frozen=True)
class Memory:
    """Bytes of rank 0, which has the most.

    On the device. weights: parameters and buffers. gradients: when the optimizer takes its step. optimizer: its state;
    None where the optimizer does not run on tensors without content. averages: running tensors, also of choices that
    average. evaluation: besides all these while averages are evaluated.
    In the host's memory. window: the snapshots that are kept there, so many as `snapshots`. staged: the copy of a
    complete state while it is written. host_evaluation: an average of a window while it is evaluated.
    own: whether the modules of an objective, where it has any, are counted.
    """

    weights: int
    gradients: int
    optimizer: int | None
    averages: int
    evaluation: int
    snapshots: int
    window: int
    staged: int
    host_evaluation: int
    own: bool = True

    @property
    def training(self) -> int:
        """On the device, between evaluations."""
        return self.weights + self.gradients + (self.optimizer or 0) + self.averages


def memory_of(planned: Planned, model: nn.Module, data: Dataset | None) -> Memory:
    """model: of the configuration, with or without content, which is lost. data: the open data set, if there is one.

    UserError: the optimizer refuses the model.
    """
    config, steps, sharded = planned.config, planned.config.steps, planned.sharing == "fsdp"
    trained, own = trained_module(config, model, data)
    gradients = 0
    if sharded and any(split.accumulate > 1 for split in planned.splits.values()):
        # They are whole, in float32, until those of a step's last pass meet over the ranks.
        gradients = 4 * sum(p.numel() for p in trained.parameters() if p.requires_grad)
    drop_content(trained, planned.world if sharded else 1)
    gradients += size(p for p in trained.parameters() if p.requires_grad)
    weights, snapshot = size((*trained.parameters(), *trained.buffers())), size(live_tensors(model).values())
    of_objective = weights - size((*model.parameters(), *model.buffers()))
    optimizer, averages = optimizer_bytes(config, trained), averages_bytes(config, model)
    windows = [a for a in config.averagers if a.windowed]
    of_choices = sum(choice.snapshots(steps) for choice in config.choices.values())
    snapshots = of_choices + snapshots_in_memory(config)
    # The live weights, what they stand for where that is something else, and an average of running tensors.
    swapped = bool(config.averagers or config.optimizer.evaluates_others)
    more = config.optimizer.evaluates_others or len(windows) < len(config.averagers)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        averages=averages,
        evaluation=snapshot * (swapped + more),
        snapshots=snapshots,
        window=snapshot * snapshots,
        staged=snapshot * (1 + of_choices) + of_objective + (optimizer or 0) + averages,
        host_evaluation=snapshot * bool(windows),
        own=own,
    )


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes; what is tied counts once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def trained_module(config: Config, model: nn.Module, data: Dataset | None) -> tuple[nn.Module, bool]:
    """What is trained: `model`, or the objective around it; and whether all of it is there.

    An objective needs the open data set's task, and some a teacher, which may be of a run that is not trained yet.
    """
    if config.objective.absent or config.objective.takes_teacher or data is None:
        return model, config.objective.absent
    try:
        with torch.device("meta"):
            return config.objective.build(model, data.task, config.model.computes_loss(model)), True
    except (RuntimeError, NotImplementedError):  # an operation that needs content
        return model, False


def drop_content(module: nn.Module, shards: int) -> None:
    """Puts its tensors onto the meta device, in place; of parameters the first of `shards` parts of their rows.

    Tied tensors stay tied.
    """
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the old one, which stays alive for it
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    rows = [-(-count // shards) for count in parameter.shape[:1]]
                    new = torch.empty([*rows, *parameter.shape[1:]], dtype=parameter.dtype, device="meta")
                    moved[id(parameter)] = parameter, nn.Parameter(new, parameter.requires_grad)
                part._parameters[name] = moved[id(parameter)][1]  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved.setdefault(id(buffer), (buffer, buffer.detach().to("meta")))[1]


def optimizer_bytes(config: Config, trained: nn.Module) -> int | None:
    """The state that the optimizer of `trained`, on the meta device, has after a step; None: it does not run there."""
    try:
        optimizer = config.optimizer.build(trained)
        for group in optimizer.param_groups:
            group["lr"] = config.lr.peak
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    except (RuntimeError, NotImplementedError):  # an operation that needs content
        return None
    finally:
        for parameter in trained.parameters():
            parameter.grad = None
    return size(t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))


def snapshots_in_memory(config: Config) -> int:
    """How many snapshots the run's window has at most: what averages need, and the one that was taken last."""
    trajectory, windows = config.trajectory, [a for a in config.averagers if a.windowed]
    if trajectory.window == "disk":
        return 0
    last = config.steps // trajectory.every * trajectory.every
    counts = []
    for step in (config.steps, last, last - trajectory.every):
        kept = {s for a in windows for s in a.needed(step)}
        taken = min(step, last) if trajectory.keep != "none" else 0
        counts.append(len(kept | {taken} - {0}) if taken >= 0 else 0)
    return max(counts)


def averages_bytes(config: Config, model: nn.Module) -> int:
    """The running tensors of averagers, and of choices that average. model: on the meta device."""
    live, averaged, statistics = live_tensors(model), averaged_names(model), statistics_names(model)
    copies = sum(choice.copies(config.steps) for choice in config.choices.values())
    total = copies * sum(4 * live[name].numel() for name in averaged)
    for settings in config.averagers:
        if not settings.windowed and (observed := settings.needed(config.steps)):
            averager = build_averager(settings, averaged, Window(), statistics)
            averager.update(observed[0], live)
            total += size(averager.state()[0].values())
    return total


def whole_text(planned: Planned) -> str:
    """That gradients of shards are whole until the last pass of a step."""
    accumulates = any(split.accumulate > 1 for split in planned.splits.values())
    return " (whole until a step's last pass)" if planned.sharing == "fsdp" and accumulates else ""


def memory_lines(memory: Memory, planned: Planned) -> Iterator[str]:
    """What a plan says of it."""
    m, config = memory, planned.config
    optimizer = "unknown" if m.optimizer is None else size_text(m.optimizer)
    parts = [
        f"weights {size_text(m.weights)}",
        f"gradients {size_text(m.gradients)}{whole_text(planned)}",
        f"optimizer {optimizer}",
    ]
    parts += [f"averages {size_text(m.averages)}"] if m.averages else []
    parts = [f"{', '.join(parts)}: {size_text(m.training)}"]
    parts += [f"in evaluations {size_text(m.evaluation)} more"] if m.evaluation else []
    where = "GPU" if config.trainer.device == "cuda" else "rank"
    yield f"memory      of a {where}: {'; '.join(parts)}"
    host = [f"{m.snapshots} snapshot{'s' * (m.snapshots > 1)} {size_text(m.window)}"] if m.snapshots else []
    host += [f"a complete state while it is written {size_text(m.staged)}"]
    host += [f"an average in evaluations {size_text(m.host_evaluation)}"] if m.host_evaluation else []
    yield f"            of the host: {', '.join(host)}"
    if config.trajectory.window == "disk":
        yield "            snapshots are read from the disk"
    not_counted = [NOT_COUNTED]
    not_counted += ["layers that are gathered from all ranks"] if planned.sharing == "fsdp" else []
    not_counted += [] if m.own else ["modules of the objective and a teacher"]
    yield f"            not counted: {', '.join(not_counted)}"
