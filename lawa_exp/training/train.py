"""The training loop: one trajectory of snapshots, and every average that is attached to it.

A step is: samples, batch, loss, gradients, weights, and what is seen of them. Each is decided by a choice on a seam
(`lawa_exp.seams`); the loop knows their protocols alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lawa_exp.system.distributed import Agreement
from lawa_exp.training.evaluating import evaluate_all
from lawa_exp.training.keeper import Keeper
from lawa_exp.training.reader import Reader
from lawa_exp.training.recorder import Recorder
from lawa_exp.training.restore import restore
from lawa_exp.training.update import update

if TYPE_CHECKING:
    from lawa_exp.storage.origin import Origin
    from lawa_exp.storage.rows import Row
    from lawa_exp.training.setup import Setup


@dataclass(frozen=True)
class Outcome:
    """How a training ended (done, stopped or diverged), after which step, and its rows on the test split."""

    how: str
    step: int
    test: list[Row] = field(default_factory=list)


def train(
    t: Setup,
    origin: Origin | None,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    begun: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains to the budget in `t.run`, from the newest whole state there or from its beginning.

    origin: where it begins, if not from the seed. should_stop: called after each step, on every rank. say: prints a
    line (rank 0). begun: called when the files of rows are cut back to where it goes on (rank 0).
    """
    state, saved = restore(t, origin, say)
    agreement = Agreement(t.ranks)
    record, keep, read = Recorder(t, state, saved), Keeper(t, state, saved), Reader(t, state.step)
    with closing(record), closing(keep), closing(read):
        if t.ranks.is_main:
            begun()
        if agreement.now(should_stop()):  # before there was anything to save
            return Outcome("stopped", state.step)
        if saved.is_new:
            record.evaluation(evaluate_all(t, state, keep, "val"))
        how = "done"
        while state.step < t.config.steps and how == "done":
            if not one_step(t, state.step + 1, record, keep, read):
                how = "diverged"
                break
            how = after_step(t, record, keep, agreement.vote(should_stop()))
        keep.end(how, record)
        return Outcome(how, state.step, evaluate_all(t, state, keep, "test") if how == "done" else [])


def one_step(t: Setup, step: int, record: Recorder, keep: Keeper, read: Reader) -> bool:
    """The update that completes `step`, and what is seen of its weights; False if the training has diverged."""
    if not read.decided(step):  # which samples come next follows from losses that are on their way
        if record.bad(wait=True):
            return False
        read.decide(step)
    rate = t.rates.of(step)
    record.step(step, rate, update(t, step, rate, read.passes(step)))
    if record.bad(wait=t.callbacks.waits(step) or keep.copies(step)):
        return False
    record.state.step = t.run.reached = step
    for call in t.callbacks.after_update:  # may change the weights in place
        call(step, t.live)
    keep.observe(step)  # averagers and snapshots
    return True


def after_step(t: Setup, record: Recorder, keep: Keeper, stop: bool) -> str:
    """Evaluates and saves where it is due; returns how the training goes on (done: with the next step, if any)."""
    state, config = record.state, t.config
    at_end = state.step == config.steps
    evaluation_due = state.step % config.evaluate.every == 0 or at_end
    save_due = state.step % config.save.every == 0 or state.step in config.save.keep or at_end or stop
    if (evaluation_due or save_due) and record.bad(wait=True):
        return "diverged"
    if evaluation_due and not record.evaluation(evaluate_all(t, state, keep, "val")):
        return "diverged"
    if save_due:
        keep.save(record)
    return "stopped" if stop and not at_end else "done"
