"""Where a training stands when its process starts: its own newest state, what it goes on from, or the seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lawa_exp.averaging import build_averager
from lawa_exp.averaging.tensors import averaged_names, statistics_names
from lawa_exp.averaging.window import Window
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.feedback.feedback import Feedback
from lawa_exp.axes.feedback.none import NoFeedback
from lawa_exp.storage.commit import remove, steps_in
from lawa_exp.storage.origin import Origin, snapshots_of
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.store import Store
from lawa_exp.training.rebuild import rebuild
from lawa_exp.training.sharing import Split, micro_batches, sharing
from lawa_exp.training.state import State, load_weights, saved_averagers

STATES_KEPT = 2


def restore(
    config: Config,
    splits: dict[int, Split],
    origin: Origin | None,
    run: RunDir,
    store: Store,
    model: nn.Module,
    live: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> tuple[State, dict[str, Any]]:
    """The state to go on from, and the scalars saved with it ("metrics_bytes", "environment").

    An averager that was not attached before is rebuilt from the snapshots where they suffice; else it is left out, and
    said so.
    """
    ranks = store.ranks
    step, folder, damaged = run.newest_state(ranks)
    for message in damaged:
        say(f"warning: {message}; " + (f"going on from step {step:,}" if folder else "starting from step 0"))
    every, first = config.save.every, origin.first_step if origin else 0
    if folder is None and ranks.is_main and (aside := run.set_rows_aside((first // every + 1) * every)):
        say(f"warning: no state to go on from: training again from its beginning; the rows there were are in {aside}")
    snapshots = snapshots_of(run)
    branch = origin if folder is None else None
    if branch and branch.keep:
        step, folder = branch.step, branch.state()
        snapshots = {s: path for s, path in snapshots_of(RunDir(branch.source)).items() if s <= step}
    held = saved_averagers(folder) if folder else []
    window = Window()
    averaged = averaged_names(model)
    device = next(iter(live.values())).device
    attached = {}
    for settings in config.averagers:
        averager = build_averager(settings, averaged, window, statistics_names(model))
        if folder and settings.id not in held:
            taken_in, problem = rebuild(averager, snapshots, step, device, store)
            if problem:
                say(f"warning: {settings.id} is not attached: {problem}")
                continue
            say(f"{settings.id} {how_rebuilt(taken_in, len(settings.needed(step)), step)}")
        attached[settings.id] = averager
    feedback = None
    if not isinstance(config.feedback, NoFeedback):
        feedback = Feedback(config.feedback, averaged, optimizer)
    state = State(step, model, live, optimizer, attached, window, feedback, store=store)
    environment = {
        "ranks": ranks.world,
        "parallel": sharing(config, ranks.world),
        "threads": config.trainer.threads,
        "micro_batch": micro_batches(splits),
        "deterministic": config.trainer.deterministic,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    if branch:
        if folder:
            state.load(folder, RunDir(branch.source).trajectory, branches=True)
        else:
            load_weights(model, live, branch.weights(), store)
        say(f"going on from {branch.source}" + (f", step {step:,}" if branch.keep else ""))
    if folder is None or branch:
        return state, {"metrics_bytes": 0, "environment": environment}
    saved = state.load(folder, run.trajectory)
    for key, now in environment.items():
        before = saved["environment"].get(key, now)
        if before != now:
            say(f"warning: {key} was {before} and is {now}: the run goes on, but not to the same bytes")
    say(f"continuing from step {step:,}")
    return state, saved | {"environment": environment}


def how_rebuilt(taken_in: list[int], needed: int, step: int) -> str:
    """What an averager that is attached after `step` begins with: the steps of its snapshots, of those needed."""
    if not taken_in:
        why = "the snapshots that it needs were not saved" if needed else "it takes in none before"
        return f"starts empty after step {step:,}: {why}"
    of = f"{needed} snapshot{'s' * (needed > 1)}"
    if len(taken_in) < needed:
        of = f"{len(taken_in)} of {of}, as the others were not saved"
    return f"was rebuilt from {of}, up to that of step {taken_in[-1]:,}"


def remove_old_states(run: RunDir, step: int) -> None:
    """Keeps the last states up to `step`; later ones were damaged and passed over."""
    found = steps_in(run.resume)
    for other in sorted(found.keys() - [s for s in found if s <= step][-STATES_KEPT:]):
        remove(found[other])
