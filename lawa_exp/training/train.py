"""The training loop: one trajectory of snapshots, and every average that is attached to it.

It reads from top to bottom: `train` sets up, restores and loops; the helpers below it are in the order of their use.
"""

from __future__ import annotations

import contextlib
import functools
import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lawa_exp.averaging import Averager, observes, row_fields
from lawa_exp.averaging.swap import Swap
from lawa_exp.averaging.tensors import averaged_names, live_tensors, statistics_names
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.dataset.loading import train_batches
from lawa_exp.axes.dataset.order import hash_of
from lawa_exp.axes.layers.ghost_norm import group_norms, statistics_kept
from lawa_exp.axes.objective.task import Objective
from lawa_exp.evaluation.batchnorm import policy, policy_field, recalibrate, running_field, with_statistics
from lawa_exp.evaluation.evaluate import evaluate, fixed_set
from lawa_exp.evaluation.hessian import TrainingLoss, gradient_step
from lawa_exp.evaluation.numerics import autocast_for, objective_for, seeded_model, set_up_arithmetic
from lawa_exp.results.statistics import estimates
from lawa_exp.seams.dataset import Dataset
from lawa_exp.storage.origin import Origin
from lawa_exp.storage.rows import LIVE, Row, Rows, Timing, evaluation_row
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.store import Store
from lawa_exp.system.distributed import Agreement, Ranks
from lawa_exp.training import parallel
from lawa_exp.training.background import Background, Readback, spill, write_average, write_snapshot
from lawa_exp.training.noise_scale import MicroNorms
from lawa_exp.training.progress import Progress
from lawa_exp.training.restore import remove_old_states, restore
from lawa_exp.training.sharing import Split, batches_of, rate_of, sharing
from lawa_exp.training.statistics import TrainingStatistics


@dataclass(frozen=True)
class Outcome:
    """How a training ended (done, stopped or diverged), after which step, and its rows on the test split."""

    how: str
    step: int
    test: list[Row]


def train(
    config: Config,
    data: Dataset,
    splits: dict[int, Split],
    origin: Origin | None,
    run: RunDir,
    ranks: Ranks,
    device: torch.device,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    begun: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains (resolved) `config` to its budget in `run`, from the newest whole state there or from its beginning.

    origin: where it begins, if not from the seed.
    should_stop: called after each step, on every rank. say: prints a line (rank 0).
    begun: called when the files of rows are cut back to where it goes on (rank 0).
    """
    set_up_arithmetic(config)
    autocast = autocast_for(config, device)
    kind = sharing(config, ranks.world)
    model = parallel.outlined(config, ranks) if kind == "fsdp" else seeded_model(config, device)
    if config.batch.norm_group:
        group_norms(model, config.batch.norm_group)
    if config.trainer.checkpoint_activations:
        parallel.checkpoint_activations(model)
    if kind == "fsdp":
        parallel.shard(model, config, ranks, device)
    if kind == "fsdp":  # its units are compiled
        objective: nn.Module = Objective(model, config.model.computes_loss(model))
    else:
        objective = objective_for(config, model)
    trained = objective if kind != "ddp" else parallel.replicate(objective, data, device, autocast)
    store = Store(ranks, parallel.rows_of(model), config.trajectory.shard_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    micro_norms = MicroNorms(parameters, device) if config.logger.noise_scale else None
    optimizer = config.optimizer.build(model)
    live, averaged = live_tensors(model), averaged_names(model)
    state, saved = restore(config, splits, origin, run, store, model, live, optimizer, say)
    run.reached = state.step
    begins = saved["metrics_bytes"] == 0
    if state.feedback and state.step == 0:
        state.feedback.begin(live)
    fused = all(group.get("fused") for group in optimizer.param_groups)  # otherwise each step waits for the device
    swap = Swap(model, live)
    bn = policy(config, model)
    statistics = TrainingStatistics(model, config.batch.norm_group, ranks)
    state.window.fence_before(optimizer)
    rows = Rows(run.metrics, saved["metrics_bytes"]) if ranks.is_main else None
    timing = Rows(run.timing) if ranks.is_main else None
    if ranks.is_main:
        begun()
    background = Background()
    snapshots_kept = config.trajectory.keep
    snapshots_every = config.trajectory.every
    window_on_disk = config.trajectory.window == "disk"
    evaluate_every, save_every = config.evaluate.every, config.save.every
    batches = batches_of(config, data)
    drawn = config.fault.drawn(data, batches)
    agreement = Agreement(ranks)
    readback = Readback(device)
    diverged = torch.zeros((), dtype=torch.bool, device=device)
    others_evaluated = config.optimizer.evaluates_others
    progress = Progress(config.steps, state.step, ranks.is_main, data.unit, run.heartbeat)

    @contextlib.contextmanager
    def in_place(averager: Averager, weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The average in place of the live weights; gives it with the statistics that it is evaluated with."""
        weights = with_statistics(averager, weights, bn)
        with swap.applied(weights):
            if bn == "recalibrate":
                recalibrate(model, data, config, ranks, device, autocast)
                own = {name: live[name].clone() for name in statistics_names(model)}
                if all(t.isfinite().all() for t in own.values()):  # else the file has the latest ones
                    weights |= own
            yield weights

    def settle() -> None:
        """From here on the window's snapshots can be read, on every rank, and the live weights be changed in place."""
        state.window.fence()
        if window_on_disk:
            background.drain()
            ranks.barrier()

    def evaluate_all(split: str) -> list[Row]:
        """A row of the live weights and of every average that is defined; evaluated on val, averages go to the disk."""
        settle()
        score = functools.partial(evaluate, objective, data, split, config.evaluate, ranks, device, autocast)
        seen = {"trained_samples": batches.samples(state.step), "trained_tokens": batches.tokens(state.step)}
        weights = config.optimizer.evaluated(optimizer, live)
        with contextlib.nullcontext() if weights is live else swap.applied(weights):
            scored = score()
            running = running_field(bn, scored["loss"])
            if bn == "recalibrate":
                with statistics_kept(model):
                    recalibrate(model, data, config, ranks, device, autocast)
                    scored = score()
            found = [evaluation_row(state.step, split, LIVE, policy_field(bn), scored, running, seen)]
        del weights  # a copy of the model, where they are not the live ones
        for id, averager in state.averagers.items():
            average = averager.average()
            if average is None:
                continue
            with in_place(averager, average) as as_evaluated:
                named = row_fields(averager.settings)
                found.append(evaluation_row(state.step, split, named, policy_field(bn), score(), seen))
            if split == "val":
                keep_average(id, averager, as_evaluated)
        return found

    def keep_average(id: str, averager: Averager, weights: dict[str, Tensor]) -> None:
        if store.writes:
            keeps_all = averager.settings.keeps_all
            background.submit(write_average, store, run.averages / id, state.step, weights, keeps_all)

    def validate() -> bool:
        """Val rows; False if the live loss is not finite."""
        seconds, tokens_per_second = progress.timing()
        found = evaluate_all("val")
        if rows and timing:
            for row in found:
                rows.write(row)
            rows.flush()
            timing.write(
                Timing(
                    step=state.step, seconds=seconds, tokens_per_second=tokens_per_second, memory=peak_memory(device)
                )
            )
            timing.flush()
        progress.evaluated(state.step, {row["weights"]: row["loss"] for row in found})
        return math.isfinite(found[0]["loss"])

    def save() -> None:
        """Everything before this step is on the disk before the state that says so is."""
        assert not swap.away, "averaged weights are in place of the live ones"
        background.drain()
        if store.writes:
            scalars = {"metrics_bytes": rows and rows.sync(), "environment": saved["environment"]}
            if state.step in config.save.keep:  # before what a restart goes on from: it would not come back here
                state.save(run.states, scalars)
            state.save(run.resume, scalars)
        if ranks.is_main:
            remove_old_states(run, state.step)
        ranks.barrier()

    def write_training_rows(ready: Iterator[tuple[int, float, list[float]]]) -> bool:
        """Rows of the steps whose numbers have arrived; True if one of them is not finite."""
        for step, rate, (loss, grad_norm, bad, *micro_squared) in ready:
            if rows and (step % config.logger.every == 0 or bad):
                row = Row(step=step, split="train", weights="live", loss=loss, lr=rate)
                row |= {"grad_norm": grad_norm, "batch_size": batches.size(step)}
                for squared in micro_squared:
                    row["grad_squared"], row["grad_variance"] = estimates(
                        grad_norm**2, squared, batches.size(step), splits[batches.size(step)].micro
                    )
                rows.write(row)
            if bad:
                state.step = step - 1  # from here on the updates have changed nothing
                return True
            progress.trained(batches.size(step) * data.tokens_per_sample, loss)
        return False

    def passes() -> Iterator[tuple[int, int, int]]:
        """What the forward passes of this rank are over: the seed, the number of the first sample, how many."""
        for done in range(state.step, config.steps):
            size, seen = batches.size(done + 1), batches.samples(done)
            for micro in range(splits[size].accumulate):
                first = (micro * ranks.world + ranks.rank) * splits[size].micro
                yield config.seed, seen + first, splits[size].micro

    coming = train_batches(drawn, passes(), device)
    how = "done"
    try:
        if agreement.now(should_stop()):  # asked before there was anything to save
            return Outcome("stopped", state.step, [])
        if begins:
            validate()
        while state.step < config.steps:
            # One update. Nothing here waits for the device.
            step = state.step + 1
            if config.lr.measured_after(state.step):
                measured = gradient_step(
                    TrainingLoss(objective, data, ranks), fixed_set(data.sizes["train"], config.lr.samples)
                )
                state.measured_rate = ranks.from_main(measured) or state.measured_rate
            rate = rate_of(config, batches, step, state.measured_rate)
            size, seen = batches.size(step), batches.samples(state.step)
            split = splits[size]
            # The loss is a mean over the whole batch; DDP divides the gradient by the ranks, so that is taken back.
            counted = data.train_targets(config.seed, seen, size)
            scale = ranks.world / max(counted, 1)  # of a few short lines no token may be masked
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_ratio", 1.0)
            torch.manual_seed(int(hash_of(config.seed, step, ranks.rank)) >> 1)  # dropout: no random state to save
            loss_sum = torch.zeros((), device=device)
            noise_due = micro_norms is not None and step % config.logger.every == 0
            if micro_norms:
                micro_norms.start(noise_due)
            for micro in range(split.accumulate):
                first = (micro * ranks.world + ranks.rank) * split.micro
                inputs, targets = next(coming)
                statistics.before_pass(first, split.micro, size)
                if micro_norms and noise_due:
                    here = data.train_targets(config.seed, seen + first, split.micro)
                    micro_norms.micro_batch(here, counted * split.micro / size)
                last = micro == split.accumulate - 1
                with contextlib.nullcontext() if last or kind != "ddp" else trained.no_sync():  # type: ignore[operator]
                    with autocast():
                        loss = trained(inputs, targets)
                    (loss * scale).backward()
                loss_sum += loss.detach()
            statistics.after_step()
            grad_norm = parallel.whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
            if config.optimizer.clip_norm:
                nn.utils.clip_grads_with_norm_(parameters, config.optimizer.clip_norm, grad_norm)
            loss_mean = ranks.sum(loss_sum) * (scale / ranks.world)
            diverged |= ~(grad_norm.isfinite() & loss_mean.isfinite())
            if fused:
                optimizer.found_inf = diverged.float()  # type: ignore[attr-defined]  # the update then changes nothing
            if fused or not diverged.item():
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            numbers = [loss_mean, grad_norm, diverged.float()]
            if micro_norms and noise_due:  # the gradient of a micro-batch is its part of the sum, times the passes
                numbers.append((ranks.sum(micro_norms.total) * (split.accumulate / ranks.world)).float())
            readback.push(step, rate, torch.stack(numbers))
            snapshot_due = snapshots_kept != "none" and step % snapshots_every == 0
            must_be_finite = snapshot_due or (state.feedback is not None and state.feedback.due(step))
            must_be_finite |= any(a.settings.windowed and observes(a.settings, step) for a in state.averagers.values())
            if write_training_rows(readback.rest() if must_be_finite else readback.ready()):
                how = "diverged"
                break
            state.step = run.reached = step
            if state.feedback:  # changes `live` in place: the optimizer's step has waited for the window's copies
                state.feedback.update(step, live)

            # What only observes training.
            observed = live
            if others_evaluated and (snapshot_due or any(observes(a.settings, step) for a in state.averagers.values())):
                observed = config.optimizer.evaluated(optimizer, live)
            for averager in state.averagers.values():
                averager.update(step, observed)
            if snapshot_due:
                snapshot = state.window.take(step, observed, averaged)
                if store.writes:
                    background.submit(write_snapshot, store, run.trajectory, snapshot, snapshots_kept)
                if window_on_disk:
                    background.submit(spill, store, snapshot, run.trajectory)
            stop = agreement.vote(should_stop())
            at_end = step == config.steps
            evaluation_due = step % evaluate_every == 0 or at_end
            save_due = step % save_every == 0 or step in config.save.keep or at_end or stop
            if (evaluation_due or save_due) and write_training_rows(readback.rest()):
                how = "diverged"
                break
            if evaluation_due and not validate():
                how = "diverged"
                break
            if save_due:
                save()
            if stop and not at_end:
                how = "stopped"
                break
        if how == "diverged":  # on a GPU a running average may have seen the last weights twice more
            settle()
            for id, averager in state.averagers.items():
                if (weights := averager.average()) is not None:
                    with in_place(averager, weights) as as_evaluated:
                        keep_average(id, averager, as_evaluated)
        background.drain()
        if rows:
            rows.sync()
            remove_old_states(run, state.step)  # a kill may have come between the last save and this
        return Outcome(how, state.step, evaluate_all("test") if how == "done" else [])
    finally:
        progress.close()
        coming.close()
        background.close()
        for file in (rows, timing):
            if file:
                file.close()


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
