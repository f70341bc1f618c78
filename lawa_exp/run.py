"""From a configuration to a finished run directory: what is there already, what is left to do, how it ended."""

from __future__ import annotations

import copy
import functools
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lawa_exp import custom, distributed, plan, signals
from lawa_exp.averaging.swap import averaged_names, live_tensors
from lawa_exp.batchnorm import group_norms, has_statistics_of
from lawa_exp.checkpoint.commit import steps_in
from lawa_exp.config import Config, Failed, Options, UserError
from lawa_exp.data.content import content_digest
from lawa_exp.data.places import NotHere
from lawa_exp.data.stated import stated
from lawa_exp.distributed import Ranks
from lawa_exp.files import DISK_FULL, write_text_atomically
from lawa_exp.fingerprint import Code, fingerprint
from lawa_exp.machine import this_job
from lawa_exp.metrics import averager_ids, encode, read_rows, with_newer
from lawa_exp.models import CustomSettings, ImageModelSettings, build_model, forward_flops
from lawa_exp.origin import Origin, check_continues, find_origin, snapshots_of
from lawa_exp.replay import next_longer, problem_with, replay_run
from lawa_exp.report import loss_table, write_report
from lawa_exp.rerun import merge_rerun
from lawa_exp.rundir import RunDir
from lawa_exp.schedules import WSD
from lawa_exp.settings import config_from, config_to
from lawa_exp.train import Outcome, train
from lawa_exp.wandb_log.follow import following

MERGED = {  # what entries of one training may differ in, see `merge`; names, places and an unused horizon do not matter
    *("averagers", "evaluate.every", "save.every", "save.keep", "trajectory.every", "lr.horizon", "model.name"),
    *("init.from", "dataset.name", "dataset.path", "dataset.folder", "dataset.tokenizer_path"),
}
EXIT = {"done": 0, "failed": 1, "diverged": 3, "stopped": 75}


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to start: everything resolved."""

    config: Config
    data: Any
    splits: dict[int, plan.Split]
    identity: dict[str, Any]
    run_dir: Path
    origin: Origin | None = None
    code: Code | None = None  # of a custom model

    @property
    def trajectory(self) -> str:
        return plan.trajectory_id(self.identity)


@functools.lru_cache(maxsize=4)
def open_dataset(settings: Any, context: int) -> Any:
    return settings.open(context)


def data_for(config: Config, plan: bool) -> Any:
    """The open data set. plan: where it is not here, and was not said to be somewhere, its published sizes."""
    try:
        return open_dataset(config.dataset, config.model.context)
    except NotHere:
        known = stated(config.dataset, config.model.context) if plan and config.dataset.path is None else None
        if known is None:
            raise
        return known


def start_device(name: str, plan: bool = False) -> tuple[torch.device, Ranks]:
    """The device (`auto`: a GPU if there is one) and the ranks. UserError where there is no such device.

    plan: nothing is started, and the device, as WORLD_SIZE ranks, may be another machine's.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"trainer.device={name}: expected auto, cpu or cuda")
    if plan and "RANK" not in os.environ:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        return device, Ranks(0, world, 0, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"trainer.device={name}: this machine has no CUDA device; use trainer.device=cpu")
    ranks = distributed.start(device.type)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", distributed.own_gpu(ranks.local_rank))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams and events are of the current device
    return device, ranks


def prepare(
    config: Config,
    options: Options,
    device: torch.device,
    ranks: Ranks,
    stable: Prepared | None = None,
    data: Any = None,
) -> Prepared:
    """Resolves everything that the data and the machine decide. stable: the run of which this is a cool-down.

    data: the open data set, default: the one that is asked for.
    """
    data = data or data_for(config, options.plan)
    config = plan.resolve_trainer(plan.resolve(config, data), device.type, ranks.local_world)
    if hasattr(data, "workers"):
        data = copy.copy(data)  # others that have the same data open have workers of their own
        data.workers = config.trainer.workers
    splits = plan.splits(config, data, ranks.world)
    code = None
    if isinstance(config.model, CustomSettings):
        code = fingerprint(config.model.builder, "model.builder")
        custom.use(code)
    if config.batch.norm_group:
        group_norms(outline(config.model), config.batch.norm_group)
    origin = branch_point(config, stable) if stable else find_origin(config.init)
    if origin:
        how = "keep" if origin.keep else "reset"
        init = replace(config.init, from_=str(origin.source), step=origin.step or None, optimizer=how)
        config = replace(config, init=init)
        check_origin(origin, config, data, stable)
    identity = plan.identity(config, data, origin, code)
    if plan.splits_statistics(config, splits) and has_norms(config.model):
        identity["batch"]["norm_samples"] = plan.micro_batches(splits)  # who has fewer ranks trains other weights
    folder = plan.run_folder(Path(options.runs_root), config, plan.trajectory_id(identity))
    run_dir = Path(options.run_dir) if options.run_dir else folder
    return Prepared(config, data, splits, identity, run_dir, origin, code)


def branch_point(config: Config, stable: Prepared) -> Origin:
    """Where the (resolved) cool-down leaves the stable run."""
    assert isinstance(config.lr, WSD)
    step = config.init.step or config.lr.stable_steps
    source = stable.run_dir.resolve()  # so that the branch can be read out from another folder
    return Origin(source, step, True, {"trajectory": stable.trajectory, "step": step, "optimizer": "keep"})


def check_origin(origin: Origin, config: Config, data: Any, stable: Prepared | None) -> None:
    """UserError where the (resolved) configuration cannot go on from it."""
    if not origin.keep:
        return
    if origin.step >= config.steps:
        raise UserError(f"init.step={origin.step}: the budget of {config.steps:,} steps is over by then")
    there = stable.config if stable else config_from(RunDir(origin.source).read_config() or {})
    seen, seen_there = (plan.batches_of(c, data).samples(origin.step) for c in (config, there))
    check_continues(origin, config, seen, there, seen_there)


def merge(entries: list[Prepared]) -> Prepared:
    """One training for entries of one trajectory and budget that differ only in averaging: all their averagers.

    Its snapshots, evaluations and kept states are those of all of them. UserError names anything else they differ in.
    """
    first = entries[0]
    for other in entries[1:]:
        one, two = flat(config_to(first.config)), flat(config_to(other.config))
        for key in sorted(one):
            if one[key] != two.get(key) and key not in MERGED:
                raise UserError(
                    f"these entries are one training, but {key} is {one[key]} and {two.get(key)}: choose one"
                )
    configs = [p.config for p in entries]
    config = replace(
        first.config,
        averagers=tuple({a.id: a for c in configs for a in c.averagers}.values()),
        evaluate=replace(first.config.evaluate, every=math.gcd(*(int(c.evaluate.every) for c in configs))),
        save=replace(
            first.config.save,
            every=min(int(c.save.every or 1) for c in configs),
            keep=tuple(sorted({s for c in configs for s in c.save.keep})),
        ),
        trajectory=replace(first.config.trajectory, every=math.gcd(*(int(c.trajectory.every or 1) for c in configs))),
    )
    return replace(first, config=config)


def outline(model: Any) -> nn.Module:
    """The model of these settings, without content where it can be had so: not everything builds on meta."""
    with torch.device("cpu" if isinstance(model, CustomSettings) else "meta"):
        return build_model(model)


def has_norms(model: Any) -> bool:
    """Whether the model of these settings has BatchNorm; none of ours of language does."""
    return model.inputs in ("images", "any") and any(isinstance(m, _BatchNorm) for m in outline(model).modules())


def size(p: Prepared) -> tuple[dict[str, torch.Tensor], int, float]:
    """The model's tensors by name, without content; its trained parameters; the FLOPs of training on one sample."""
    if p.code:
        custom.use(p.code)
    model = outline(p.config.model)
    averaged_names(model)  # refuses what cannot be averaged
    trained = sum(t.numel() for t in model.parameters() if t.requires_grad)
    if isinstance(p.config.model, ImageModelSettings):
        flops = 3.0 * forward_flops(model, p.config.model)  # the backward pass is counted as two
    else:
        flops = plan.flops_per_token(p.config.model, trained) * p.data.tokens_per_sample
    return live_tensors(model), trained, flops


def measure(p: Prepared) -> tuple[dict[str, torch.Tensor], plan.Cost]:
    """(the model's tensors by name, without content, what the training takes)."""
    tensors, trained, flops = size(p)
    return tensors, plan.cost(p.config, p.data, tensors, trained, flops, p.origin)


def show_plan(p: Prepared, ranks: Ranks) -> str:
    """The plan as it is printed, and what the run directory holds of it already. UserError: it cannot be done."""
    plan.check_noise_scale(p.config, p.splits, ranks.world)
    plan.check_sharding(p.config, ranks.world)
    tensors, cost = measure(p)
    described = plan.describe(p.config, p.data, p.splits, ranks.world, tensors, cost, p.origin)
    run = RunDir(p.run_dir)
    marker, facts = run.marker() or ("", {})
    states = list(steps_in(run.resume))
    if marker in ("DONE", "DIVERGED"):
        return f"{described}\non the disk {marker} after step {facts.get('step', 0):,}"
    return f"{described}\non the disk " + (
        f"a state at step {states[-1]:,}, to go on from" if states else "nothing yet"
    )


def execute(p: Prepared, options: Options, device: torch.device, ranks: Ranks) -> int:
    """Trains, continues, reads out or only says that it was done; returns the exit code."""
    say: Callable[[str], None] = functools.partial(print, flush=True) if ranks.is_main else lambda _: None
    say(f"run_dir={p.run_dir}")
    check_ranks(p, ranks)
    if p.code:
        custom.use(p.code)  # other entries of a multirun have theirs
    run = RunDir(p.run_dir)
    with on_main(ranks, opened(run, p)):
        content = check_content(run, p, ranks)
        found: tuple[str, dict[str, Any]] | None = ranks.from_main(run.marker() if ranks.is_main else None)
        marker, facts = found or ("", {})
        if marker == "DIVERGED" and not options.rerun:
            say(
                f"this training diverged after step {facts.get('step', 0):,}; the averages hold its last finite weights"
            )
            return EXIT["diverged"]
        earlier = ranks.from_main(run.read_config() if ranks.is_main else None)
        before = config_from(earlier) if earlier else None
        if before and marker == "DONE" and facts["step"] >= p.config.steps and not options.rerun:
            return already_done(p, before, run, ranks, device, facts["step"], say)
        if before:  # what was attached before stays attached
            attached = {a.id: a for a in (*p.config.averagers, *before.averagers)}
            steps = max(p.config.steps, before.steps) if options.rerun else p.config.steps
            every = math.gcd(int(p.config.trajectory.every or 1), int(before.trajectory.every or 1))
            config = replace(p.config, averagers=tuple(attached.values()), budget=("steps", steps))
            p = replace(p, config=replace(config, trajectory=replace(config.trajectory, every=every)))
        say(show_plan(p, ranks))
        if before and ranks.is_main and not options.rerun:
            warn_of_statistics(p.config, before, read_rows(run.metrics), say)
        target = RunDir(run.path / "rerun", run.heartbeat) if options.rerun else run
        with following(None if options.rerun else p.config.logger, run, say) as begun:
            outcome = carry_out(p, target, device, ranks, content, say, begun)
            if outcome.how == "stopped":
                say(f"stopped after step {outcome.step:,} and saved; the same command goes on")
            elif ranks.is_main:
                if options.rerun and not merge_rerun(target, run, say):
                    return EXIT["failed"]
                finish(p, run, outcome, say)
        return EXIT[outcome.how]


def carry_out(
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
        run.mark(None)
        run.write_config({"trajectory_id": p.trajectory, **config_to(p.config), "identity": p.identity})
        if p.code:
            custom.write_copies(p.code, run.path / custom.COPIES)
            if problem := custom.record(p.config.model, p.code):
                say(f"warning: {problem}")
        job, start = this_job()
        earlier = run.add_provenance(
            slurm={"job": job, "start": start} if job else None,
            ranks=ranks.world,
            threads=p.config.trainer.threads,
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            micro_batch=plan.micro_batches(p.splits),
            data_fingerprint=p.data.fingerprint,
            **({"data_content": content} if content else {}),
        )
        if earlier:
            say(f"start {earlier + 1} of this run ({len(run.errors())} of those before it ended with an error)")
    try:
        outcome = train(p.config, p.data, p.splits, p.origin, run, ranks, device, signals.stop_is_asked, say, begun)
    except UserError:
        raise
    except Exception as error:
        told = distributed.lost(error) if ranks.world > 1 else None
        if told is None:
            reason = f"{type(error).__name__}: {error}"
            with suppress(OSError):  # a full disk may have no room for the marker either
                facts = {"step": run.reached, "reason": reason, "rank": ranks.rank}
                if run.mark_failed(**facts, traceback=traceback.format_exc()):
                    run.note_error(run.reached, reason)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            told = f"no room left on the disk ({error}); the last whole state stays: the same command goes on"
        if told:
            raise Failed(told) from None
        if ranks.world > 1:  # at once: the others fail when this process is gone
            distributed.report(error, ranks)
            raise Failed(f"rank {ranks.rank}: {reason}") from None
        raise
    if ranks.is_main and outcome.how == "stopped":
        run.mark("STOPPED", step=outcome.step)
    return outcome


def finish(p: Prepared, run: RunDir, outcome: Outcome, say: Callable[[str], None]) -> None:
    """The table on the terminal, report.md and curves.png, and the marker last."""
    rows, left_out = evaluated_alike(read_rows(run.metrics), p.config.evaluate.bn)
    say(f"\n{loss_table(rows)}\nsteps saved: steps until the live weights get there; > n: not within the n left")
    if left_out:
        say(left_out)
    facts = [
        f"run directory `{run.path.name}`, trajectory {p.trajectory}, {outcome.step:,} steps"
        + (", DIVERGED after the last of them" if outcome.how == "diverged" else ""),
        f"model {p.config.model.name}, data set {p.config.dataset.name} (fingerprint {p.data.fingerprint[:12]})"
        + (f"; {p.data.note}" if p.data.note else ""),
        f"{type(p.config.lr).__name__.lower()} rate, peak {p.config.lr.peak:g}; "
        f"batch {' to '.join(map(str, p.splits))}; seed {p.config.seed}",
        *([left_out] if left_out else []),
    ]
    title = f"{p.config.model.name} on {p.config.dataset.name}"
    if outcome.test:
        folder = run.readouts / "test"
        folder.mkdir(parents=True, exist_ok=True)
        others = [r for r in read_rows(folder / "metrics.jsonl") if r["step"] != outcome.step]
        ordered = sorted([*others, *outcome.test], key=lambda row: row["step"])
        write_text_atomically(folder / "metrics.jsonl", "".join(encode(row) for row in ordered))
    write_report(run.path, rows, outcome.test, title, facts, command(), f"nats per {p.data.unit}")
    run.mark("DIVERGED" if outcome.how == "diverged" else "DONE", step=outcome.step)
    if outcome.test:
        right = {r["weights"]: f" ({r['accuracy']:.2%} right)" for r in outcome.test if "accuracy" in r}
        shown = "  ".join(f"{r['weights']} {r['loss']:.4f}{right.get(r['weights'], '')}" for r in outcome.test)
        say(f"test loss after step {outcome.step:,}: {shown}")
    say(f"\n{outcome.how}; report: {run.path / 'report.md'}, plot: {run.path / 'curves.png'}")


def command() -> str:
    """The command line of this process, to be run again."""
    return shlex.join(["python", "-m", "lawa_exp", *sys.argv[1:]])


def already_done(
    p: Prepared, before: Config, run: RunDir, ranks: Ranks, device: torch.device, step: int, say: Callable[[str], None]
) -> int:
    """Says so; what was not attached is read out of the snapshots, with the BatchNorm statistics of the others.

    before: how it was trained. UserError, after all others were read out, names the averages for which the snapshots
    do not suffice.
    """
    rows = ranks.from_main(read_rows(run.metrics) if ranks.is_main else None)
    end = min(step, p.config.steps)
    asked = "" if end == step else f"; shown up to step {end:,}, as asked"
    say(f"this training was done already, up to step {step:,}{asked}")
    rows = [r for r in rows if r["step"] <= end]
    known = set(averager_ids(rows))
    if any("bn" in r for r in rows):
        ours, theirs = statistics_of(p.config), statistics_of(before)
        if ours != theirs:
            said = " ".join(f"evaluate.{name}={value}" for name, value in theirs.items())
            say(
                f"its last evaluations are with {said}, and so is what is read out; python -m lawa_exp.readout has --bn"
            )
            p = replace(p, config=replace(p.config, evaluate=replace(p.config.evaluate, **theirs)))
    for warning in plan.warnings(p.config):
        say(f"warning: {warning}")
    evaluated = {r["step"] for r in rows if r["split"] == "val"}
    asked_for = range(int(p.config.evaluate.every), end + 1, int(p.config.evaluate.every))
    if lacking := [s for s in asked_for if s not in evaluated]:
        say(
            f"evaluate.every={p.config.evaluate.every}: {len(lacking):,} of these {len(asked_for):,} evaluations were "
            f"not made (the first: step {lacking[0]:,}); rerun=true trains again and fills them in"
        )
    saved = set(ranks.from_main(snapshots_of(run) if ranks.is_main else None))
    refused = []
    for settings in p.config.averagers:
        if settings.id in known or not settings.needed(end):
            continue
        out = run.readouts / settings.id
        earlier = ranks.from_main(read_rows(out / "metrics.jsonl") if ranks.is_main else None)
        alike = earlier and earlier[-1].get("bn") in (None, p.config.evaluate.bn)  # not so after a rerun with another
        if alike and earlier[-1]["step"] >= max(r["step"] for r in rows if r["split"] == "val"):
            say(f"{settings.id} was read out already, into {out}")
            rows = with_newer(rows, [r for r in earlier if r["step"] <= end])
        elif problem := problem_with(settings, saved, end):
            refused.append(f"{settings.id} cannot be read out: {problem}{instead(settings, saved, end)}")
        else:
            say(f"reading {settings.id} out of the snapshots into {out}")
            rows = with_newer(rows, replay_run(p.config, p.data, run, [settings], out, device, ranks, say, end))
    if ranks.is_main:
        rows, left_out = evaluated_alike(rows, p.config.evaluate.bn)
        say("\n" + loss_table(rows))
        if left_out:
            say(left_out)
    if refused:
        raise UserError("; ".join(refused))
    return EXIT["done"]


def instead(settings: Any, saved: set[int], end: int) -> str:
    """`, or ask for KEY=VALUE`: the next longer spacing of the same average that the snapshots give; empty without."""
    found = next_longer(settings, saved, end)
    return f", or ask for averagers.{settings.kind}.{found[0]}={found[1]}, which they give" if found else ""


def warn_of_statistics(config: Config, before: Config, rows: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    """That a run of a model with BatchNorm goes on, and is evaluated in another way than up to now."""
    now, then = (" ".join(f"evaluate.{n}={v}" for n, v in statistics_of(c).items()) for c in (config, before))
    if now != then and any("bn" in r for r in rows):
        say(f"warning: evaluated with {now} from here on, and with {then} up to here; rerun=true evaluates all alike")


def statistics_of(config: Config) -> dict[str, Any]:
    """The settings of the BatchNorm statistics that weights are evaluated with."""
    names = ("bn", "bn_samples", "batch_size") if config.evaluate.bn == "recalibrate" else ("bn",)
    return {name: getattr(config.evaluate, name) for name in names}


def evaluated_alike(rows: list[dict[str, Any]], bn: str) -> tuple[list[dict[str, Any]], str]:
    """The rows but val rows of other BatchNorm statistics than `bn`'s, and a line that says so (empty: none are)."""

    def fits(row: dict[str, Any]) -> bool:
        if row["split"] != "val" or "bn" not in row:
            return True
        return has_statistics_of(row, bn) if row["weights"] == "live" else row["bn"] == bn

    found = [r for r in rows if fits(r)]
    if len(found) == len(rows):
        return rows, ""
    last = max(r["step"] for r in rows if not fits(r))
    return found, (
        f"shown: evaluations with evaluate.bn={bn} alone; those with other BatchNorm statistics (the last: step "
        f"{last:,}) are left out, and rerun=true evaluates all alike"
    )


@contextmanager
def opened(run: RunDir, p: Prepared) -> Iterator[None]:
    """The run's lock, once the folder is known to be this training's own or new."""
    check_folder(run, p)
    with run.locked():
        yield


def check_content(run: RunDir, p: Prepared, ranks: Ranks) -> str | None:
    """The content of the data set beyond its fingerprint, on every rank; None where that covers it.

    UserError where its files were edited in place since the run began.
    """
    content = content_digest(p.data.sampled, ranks)
    before = ranks.from_main(run.data_content() if ranks.is_main else None)
    if content and before and content != before:
        raise UserError(
            f"dataset={p.config.dataset.name}: its files were edited in place since {run.path} began (their sizes and "
            "names are the same, their content is not); put them back, or choose another run_dir"
        )
    return content


def check_ranks(p: Prepared, ranks: Ranks) -> None:
    """UserError, on every rank, where one has another trajectory than rank 0: each has read its own files."""
    first, *others = (flat(identity) for identity in ranks.all_of(p.identity))
    for rank, other in enumerate(others, 1):
        if keys := sorted(k for k in first.keys() | other.keys() if first.get(k) != other.get(k)):
            raise UserError(
                f"rank {rank} has another trajectory than rank 0 ({', '.join(keys[:3])} differ): "
                "its copy of the data or of the code is not the same; give all nodes the same files"
            )


def check_folder(run: RunDir, p: Prepared) -> None:
    """UserError where the folder holds something else than this training."""
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"run_dir={run.path}: expected a folder, this is a file")
    existing = run.read_config()
    if existing is None and run.path.is_dir() and any(not f.name.startswith(".") for f in run.path.iterdir()):
        raise UserError(f"run_dir={run.path} is not empty and holds no run; choose another run_dir")
    if existing is not None and existing.get("trajectory_id") != p.trajectory:
        there, here = flat(existing.get("identity", {})), flat(p.identity)
        keys = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
        named = "; ".join(f"the run has {k}={there.get(k)}, this command {here.get(k)}" for k in keys[:3])
        if "batch.norm_samples" in keys[:3]:
            named += ": samples that share BatchNorm statistics, by the ranks and micro-batches"
        raise UserError(f"run_dir={run.path} holds another trajectory ({named}); choose another run_dir")


@contextmanager
def on_main(ranks: Ranks, context: AbstractContextManager[None]) -> Iterator[None]:
    """Enters `context` on rank 0; a UserError there is raised on every rank."""
    with ExitStack() as stack:
        error = None
        try:
            if ranks.is_main:
                stack.enter_context(context)
        except UserError as found:
            error = found
        error = ranks.from_main(error)
        if error:
            raise error
        yield


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lr": {"peak": 1}} as {"lr.peak": 1}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
