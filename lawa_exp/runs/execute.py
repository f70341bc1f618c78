"""From a configuration to a finished run directory: what is there already, what is left to do, how it ended."""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from lawa_exp.axes.logger.follow import following
from lawa_exp.config.shared import Options
from lawa_exp.parallel.sharing import micro_batches
from lawa_exp.runs.builders import admit, builders
from lawa_exp.runs.choices import config_from, config_to
from lawa_exp.runs.done import already_done, warn_of_statistics
from lawa_exp.runs.ending import write_results
from lawa_exp.runs.folder import check_content, check_ranks, locked_folder
from lawa_exp.runs.plan import show_plan
from lawa_exp.runs.prepare import Prepared
from lawa_exp.runs.rerun import check_one_disk, merge_rerun
from lawa_exp.storage import custom
from lawa_exp.storage.metrics import written_metrics
from lawa_exp.storage.rows import read_rows
from lawa_exp.storage.rundir import EXIT, RunDir
from lawa_exp.system import distributed, signals
from lawa_exp.system.distributed import Ranks, on_main
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import DISK_FULL
from lawa_exp.system.machine import this_job
from lawa_exp.training.setup import set_up
from lawa_exp.training.train import Outcome, train


def execute(p: Prepared, options: Options, device: torch.device, ranks: Ranks) -> int:
    """Trains, continues, reads out or only says that it was done; returns the exit code."""
    p.check(ranks.world)
    say: Callable[[str], None] = functools.partial(print, flush=True) if ranks.is_main else lambda _: None
    say(f"run_dir={p.run_dir}")
    check_ranks(p, ranks)
    if p.code:
        custom.use(p.code)  # other entries of a multirun have theirs
    run = RunDir(p.run_dir)
    with on_main(ranks, locked_folder(run, p)):
        if options.rerun:
            check_one_disk(run)
        content = check_content(run, p, ranks)
        marker, facts = ranks.from_main(run.marker() if ranks.is_main else None) or ("", {})
        if marker == "DIVERGED" and not options.rerun:
            say(
                f"this training diverged after step {facts.get('step', 0):,}; the averages hold its last finite weights"
            )
            return EXIT["diverged"]
        earlier = ranks.from_main(run.read_config() if ranks.is_main else None)
        before = config_from(earlier) if earlier else None
        if before and marker == "DONE" and facts["step"] >= p.config.steps and not options.rerun:
            return already_done(p, before, run, ranks, device, facts["step"], say)
        if before and earlier:  # what was attached before stays attached
            admit(before, earlier, run.path, trust=False, groups={"averagers"})
            attached = {a.id: a for a in (*p.config.averagers, *before.averagers)}
            steps = max(p.config.steps, before.steps) if options.rerun else p.config.steps
            every = math.gcd(p.config.trajectory.every, before.trajectory.every)
            config = replace(p.config, averagers=tuple(attached.values()), steps=steps)
            p = replace(p, config=replace(config, trajectory=replace(config.trajectory, every=every)))
        say(show_plan(p, ranks))
        if before and ranks.is_main and not options.rerun:
            warn_of_statistics(p.config, before, read_rows(run.metrics, trained=False), say)
        target = RunDir(run.path / "rerun", run.heartbeat) if options.rerun else run
        loggers = [] if options.rerun else [logger for _, logger in p.config.loggers]
        with following(loggers, run, say) as begun:
            outcome = train_in(p, target, device, ranks, content, say, begun)
            if outcome.how == "stopped":
                say(f"stopped after step {outcome.step:,} and saved; the same command goes on")
            elif ranks.is_main:
                if options.rerun and not merge_rerun(target, run, say):
                    return EXIT["failed"]
                write_results(p, run, outcome, say, alone=options.sweep.name is None)
        return EXIT[outcome.how]


def train_in(
    p: Prepared,
    run: RunDir,
    device: torch.device,
    ranks: Ranks,
    content: str | None,
    say: Callable[[str], None],
    begun: Callable[[], None] = lambda: None,
) -> Outcome:
    """One call of the loop in `run`, with its signals, provenance and marker.

    content: see `check_content`. begun: see `train`.
    """
    if ranks.is_main:
        run.path.mkdir(parents=True, exist_ok=True)
        run.begin()
        metrics = written_metrics(p.data.task.metrics)
        run.write_config({"trajectory_id": p.trajectory, **config_to(p.config), "identity": p.identity, **metrics})
        if p.code:
            custom.write_copies(p.code, run.path / custom.COPIES)
            own = [b for b in builders(p.config).values() if b.address in p.code.addresses]
            for problem in filter(None, (custom.record(builder, p.code) for builder in own)):
                say(f"warning: {problem}")
        job, start = this_job()
        earlier = run.add_provenance(
            slurm={"job": job, "start": start} if job else None,
            ranks=ranks.world,
            threads=p.config.trainer.threads,
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            micro_batch=micro_batches(p.splits),
            data_fingerprint=p.data.fingerprint,
            **({"data_content": content} if content else {}),
        )
        if earlier:
            say(f"start {earlier + 1} of this run ({len(run.errors(say))} of those before it ended with an error)")
    try:
        setup = set_up(p.config, p.data, p.splits, run, ranks, device)
        outcome = train(setup, p.origin, signals.stop_requested, say, begun)
    except UserError:
        raise
    except Exception as error:
        told = distributed.lost(error) if ranks.world > 1 else None
        if told is None:
            reason = f"{type(error).__name__}: {error}"
            with suppress(OSError):  # a full disk may have no room for the marker either
                trace = traceback.format_exc()
                if run.mark_failed(step=run.reached, reason=reason, rank=ranks.rank, traceback=trace):
                    run.note_error(run.reached, reason)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            told = f"no room left on the disk ({error}); the last whole state stays: the same command goes on"
        if told:
            raise Failed(told) from None
        if ranks.world > 1:  # at once: the others fail when this process is gone
            distributed.report(error, ranks)
            raise Failed(f"rank {ranks.rank}: {reason}") from None
        if isinstance(error, OSError):  # of a file that went away in mid-run: no mistake in the command line
            raise Failed(str(error)) from None
        raise
    if ranks.is_main and outcome.how == "stopped":
        run.mark("STOPPED", step=outcome.step)
    return outcome
