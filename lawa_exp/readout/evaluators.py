"""What evaluates checkpoints that are read out: a data set, a function, zero-shot tasks or a text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.axes.configuration import Unresolved
from lawa_exp.axes.dataset.tokenizers import Tokenizer, load_tokenizer
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.config.shared import Options
from lawa_exp.evaluation.score import ByFunction, LanguageModel, OnModel, Score, floating_names
from lawa_exp.published import pythia_rows
from lawa_exp.readout.averagers import readout_name
from lawa_exp.readout.checkpoints import Fitted, read_checkpoint, recorded
from lawa_exp.readout.request import Request
from lawa_exp.readout.subject import Named
from lawa_exp.readout.tokenizer import FILE, check_tokenizer, of_tokens, requested_tokenizer, run_tokenizer
from lawa_exp.runs.choices import unresolved_from
from lawa_exp.runs.prepare import prepare
from lawa_exp.runs.resolve import resolve_trainer
from lawa_exp.seams.task import Task
from lawa_exp.storage.rows import Row
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks, start_device
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import default_threads

if TYPE_CHECKING:
    from lawa_exp.evaluation.perplexity import Perplexity
    from lawa_exp.evaluation.zeroshot import ZeroShot

ZEROSHOT, PERPLEXITY = "zeroshot", "perplexity"


@dataclass(frozen=True)
class Evaluator:
    """score: what evaluates; fitted: reads checkpoints as its weights; bn: see `batchnorm.policy`.

    identity: what decides its results (JSON); label: how the results' name says it. published: rows of the live
    weights, from elsewhere. task: of the data set, where it is one of ours.
    """

    score: Score
    fitted: Fitted
    named: Named
    averaged: frozenset[str]
    device: torch.device
    ranks: Ranks | None = None
    statistics: frozenset[str] = frozenset()
    bn: str | None = None
    no_test: str = ""
    notes: list[str] = field(default_factory=list)
    label: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    published: list[Row] = field(default_factory=list)
    task: Task | None = None


@dataclass(frozen=True)
class Checkpoints:
    """name: as the results call them. folder: where a config.json and a tokenizer.json may lie.

    recorded: the settings of their model that the files themselves hold, see `checkpoints.recorded`.
    """

    name: str
    folder: Path
    recorded: dict[str, Any]


def evaluator_for(request: Request, name: str, first: Callable[[], Path], folder: Path) -> Evaluator:
    """The requested one. name, folder: see `Checkpoints`; first: gives a checkpoint."""
    check_flags(request)
    how = request.evaluation.how
    if how and how not in (ZEROSHOT, PERPLEXITY):
        return by_function(request, how, name, first())
    make = {ZEROSHOT: zero_shot, PERPLEXITY: perplexity}.get(how or "", on_dataset)
    on_hub = request.target.repository is not None
    return make(request, Checkpoints(name, folder, {} if on_hub else recorded(first())))


def check_flags(request: Request) -> None:
    """UserError for one that has nothing to say of this evaluation."""
    e = request.evaluation
    needs = {
        "tasks": (e.tasks, ZEROSHOT),
        "task-data": (e.task_data, ZEROSHOT),
        "limit": (e.limit, ZEROSHOT),
        "published": (e.published, ZEROSHOT),
        "text": (e.text, PERPLEXITY),
    }
    for flag, (value, how) in needs.items():
        if value is not None and e.how != how:
            raise UserError(f"--{flag} is for --evaluate {how}")
    if e.tokenizer is not None and e.how not in (ZEROSHOT, PERPLEXITY):
        raise UserError(f"--tokenizer is for --evaluate {ZEROSHOT} or {PERPLEXITY}; of a data set: dataset.tokenizer=")
    if e.dataset and e.how in (ZEROSHOT, PERPLEXITY):
        raise UserError(f"--dataset={e.dataset}: not with --evaluate {e.how}")


def by_function(request: Request, reference: str, name: str, first: Path) -> Evaluator:
    """--evaluate package.module:function."""
    target = request.target
    if target.bn:
        raise UserError(f"--bn={target.bn}: not with --evaluate, whose function gets the latest statistics")
    torch.set_num_threads(target.threads or default_threads(1))
    own = read_checkpoint(first)
    return Evaluator(
        score=ByFunction(reference),
        fitted=Fitted(own, (), str(first)),
        named=Named(f"{name}, evaluated by {reference}", f"as {reference} gives it"),
        averaged=floating_names(own),
        device=torch.device("cpu"),
        no_test="--evaluate gives one loss",
        identity={"function": reference},
    )


def on_dataset(request: Request, checkpoints: Checkpoints) -> Evaluator:
    """--dataset, with --model or the model that config.json names."""
    target, e, folder = request.target, request.evaluation, checkpoints.folder
    if not e.dataset:
        raise UserError(f"RUN={target.run} is no run of ours: give --model and --dataset, or --evaluate")
    unresolved, options = composed(request, checkpoints, [f"dataset={e.dataset}"])
    if target.bn:
        unresolved = replace(unresolved, evaluate=unresolved.evaluate.changed(bn=target.bn))
    device, ranks = start_device(target.device or unresolved.device)
    p = prepare(replace(unresolved, averagers=()), options, device, ranks)
    dataset, vocab_size = unresolved.dataset, unresolved.model.vocab_size
    if dataset.tokenizer is not None:
        tokenizer = load_tokenizer(dataset.tokenizer, dataset.tokenizer_path)
        check_tokenizer(tokenizer, vocab_size, folder, f"dataset.tokenizer={dataset.tokenizer}")
    elif (folder / FILE).is_file() and (sole := of_tokens(dataset)):
        check_tokenizer(sole, vocab_size, folder, f"dataset={dataset.name} (tokenizer {sole.name})")
    score = OnModel(p.config, p.data, device, ranks)
    if target.bn and score.bn is None:
        raise UserError(f"--bn={target.bn}: model={e.model} has no BatchNorm")
    notes = [f"Data: {p.data.note}."] if p.data.note else []
    name = checkpoints.name
    title = f"{name} as {e.model} on {e.dataset}" if e.model else f"{name} on {e.dataset}"
    identity = {"data": p.data.fingerprint, "evaluate": str(p.config.evaluate), "dtype": p.config.trainer.dtype}
    made = of_model(e.model, score, Named(title, p.data.task.metrics["loss"].unit), identity)
    return replace(made, statistics=score.statistics, bn=score.bn, notes=notes, task=p.data.task)


def zero_shot(request: Request, checkpoints: Checkpoints) -> Evaluator:
    """--evaluate zeroshot --tasks ..."""
    from lawa_exp.evaluation.zeroshot import ZeroShot, load_tasks, local_file

    e = request.evaluation
    if not e.tasks:
        raise UserError("--tasks is missing: expected tasks with commas, such as lambada_openai,arc_easy,piqa")
    names = list(dict.fromkeys(task.strip() for task in e.tasks.split(",")))
    published = []
    if e.published:
        try:
            published = pythia_rows(Path(e.published), checkpoints.name, names)
        except UserError as error:
            raise UserError(f"--published={e.published}, of {checkpoints.name}: {error}") from None
    model, device, ranks, tokenizer = model_and_tokenizer(request, checkpoints)
    folder = Path(e.task_data) if e.task_data else None
    files = {name: local_file(name, folder) if folder else shipped_file(name) for name in names}
    tasks = load_tasks(files)
    score = ZeroShot(model, device, ranks, tokenizer, tasks, e.limit)
    identity = {
        "tasks": list(tasks),
        "documents": {name: file_digest(file) for name, file in files.items() if file} or "hub",
        "published": published,
        "limit": e.limit,
        "tokenizer": tokenizer.fingerprint,
        "dtype": model.trainer.dtype,
    }
    named = Named(f"{checkpoints.name}, zero-shot", "mean over the tasks of 1 - acc", "1 - mean accuracy")
    places = dict.fromkeys(str(file.parent) if file else "the hub" for file in files.values())
    return replace(
        of_model(e.model, score, named, identity),
        no_test="tasks have one split each",
        notes=[f"Documents: {' and '.join(places)}; prompts and metrics are lm-evaluation-harness's."],
        label=f"{ZEROSHOT}-{readout_name(names)}",
        published=published,
    )


def perplexity(request: Request, checkpoints: Checkpoints) -> Evaluator:
    """--evaluate perplexity --text FILE."""
    from lawa_exp.evaluation.perplexity import NORMALISED, Perplexity

    e = request.evaluation
    if not e.text:
        raise UserError("--text is missing: expected a UTF-8 file")
    path = Path(e.text)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"--text={path}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"--text={path}: {error.strerror or 'not UTF-8 text'}") from None
    model, device, ranks, tokenizer = model_and_tokenizer(request, checkpoints)
    score = Perplexity(model, device, ranks, tokenizer, text, path.name)
    identity = {
        "text": path.name,
        "content": file_digest(path),
        "tokenizer": tokenizer.fingerprint,
        "dtype": model.trainer.dtype,
    }
    named = Named(f"{checkpoints.name} on {path.name}", "nats per token", "loss")
    counted = f"{score.tokens:,} tokens, {score.words:,} words, {score.bytes:,} bytes"
    return replace(
        of_model(e.model, score, named, identity),
        no_test="--text is one text",
        notes=[f"Perplexity of {path.name} ({counted}) by token and by word: {NORMALISED}."],
        label=f"{PERPLEXITY}-{path.name}",
    )


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_model(
    model: str | None, score: OnModel | ZeroShot | Perplexity, named: Named, identity: dict[str, Any]
) -> Evaluator:
    """One that evaluates weights in a model of ours. model: what --model names; identity: of the evaluation."""
    own, settings = live_tensors(score.model), score.settings
    names = {*score.model.state_dict(), *stored_with_weights(settings)}
    what = f"--model={model}" if model else f"model={settings.name}"
    return Evaluator(
        score=score,
        fitted=Fitted(own, names, what, asdict(settings), masks(settings)),
        named=named,
        averaged=score.averaged,
        device=score.device,
        ranks=score.ranks,
        identity={"model": str(settings), **identity},
    )


def masks(model: ModelSettings) -> set[str]:
    from lawa_exp.axes.model.gpt.gpt import not_weights
    from lawa_exp.axes.model.gpt.settings import GPTSettings

    return not_weights(model.layers) if isinstance(model, GPTSettings) else set()


def stored_with_weights(model: ModelSettings) -> set[str]:
    from lawa_exp.axes.model.pythia.settings import PythiaSettings

    if not isinstance(model, PythiaSettings):
        return set()
    from lawa_exp.axes.model.pythia.pythia import not_weights

    return not_weights(model.layers)


def model_and_tokenizer(
    request: Request, checkpoints: Checkpoints
) -> tuple[LanguageModel, torch.device, Ranks, Tokenizer]:
    """The language model and its tokenizer: --tokenizer, else the run's own, else the checkpoint's tokenizer.json."""
    target, e, folder = request.target, request.evaluation, checkpoints.folder
    written = RunDir(Path(target.run)).read_config() if target.repository is None else None
    of_run = bool(written) and not e.model
    unresolved = unresolved_from(written) if written and of_run else composed(request, checkpoints, [])[0]
    if unresolved.model.inputs != "tokens":
        raise UserError(f"--evaluate {e.how}: model={unresolved.model.name} is no language model of tokens")
    device, ranks = start_device(target.device or unresolved.device)
    trainer = resolve_trainer(unresolved.trainer, device.type, ranks.local_world)
    if target.threads:
        trainer = replace(trainer, threads=target.threads)
    if e.tokenizer is None and of_run:
        tokenizer, origin = run_tokenizer(unresolved.dataset), "the run's tokenizer"
    else:
        origin = f"--tokenizer={e.tokenizer}" if e.tokenizer else str(folder / FILE)
        tokenizer = requested_tokenizer(e.tokenizer, folder)
    check_tokenizer(tokenizer, unresolved.model.vocab_size, folder, origin)
    model = LanguageModel(unresolved.model, unresolved.seed, trainer, unresolved.evaluate.values["batch_size"])
    return model, device, ranks, tokenizer


def composed(request: Request, checkpoints: Checkpoints, more: list[str]) -> tuple[Unresolved, Options]:
    """The configuration of --model, or of what config.json names, with the overrides `more` and the requested ones.

    The model's settings that the checkpoints record stand where the command says nothing. UserError where it says
    something else.
    """
    target, e, folder = request.target, request.evaluation, checkpoints.folder
    requested = [*more, *e.overrides, *([f"trainer.threads={target.threads}"] if target.threads else [])]
    if e.model:
        model = [f"model={e.model}", *recorded_settings(target.run, e.model, checkpoints.recorded, requested)]
        return settled([*model, *requested])
    if not (folder / "config.json").is_file():
        raise UserError(
            f"RUN={target.run} is no run of ours: give --model and --dataset, or --evaluate (there is no config.json "
            f"in {folder})"
        )
    from lawa_exp.axes.model.pythia.pythia import settings_in

    shape = [f"model.{k}={v}" for k, v in settings_in(folder / "config.json").items()]
    model = ["model=pythia_14m", f"model.name={target.run.rstrip('/').split('/')[-1]}", *shape]
    unresolved, options = settled([*model, *requested])
    overridden = any(override.startswith("dataset.tokenizer") for override in e.overrides)
    if unresolved.dataset.tokenizer is not None and not overridden:
        carried = folder / FILE
        own = [f"dataset.tokenizer_path={carried}"] if carried.is_file() else []
        return settled([*model, *more, "dataset.tokenizer=neox", *own, *requested])
    return unresolved, options


def recorded_settings(run: str, model: str, recorded: dict[str, Any], requested: list[str]) -> list[str]:
    """Overrides with what the checkpoints record, where --model is a GPT. UserError: `requested` contradicts it."""
    if not recorded or composed_values([f"model={model}", *requested])["model"].get("kind") != "gpt":
        return []
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in recorded.items()]
    settings = composed_values([f"model={model}", *overrides, *requested])["model"]
    for key, value in recorded.items():
        if settings[key] != value:
            where = f"the checkpoints of RUN={run} record {json.dumps(value)}"
            raise UserError(f"model.{key}={json.dumps(settings[key])}: {where}; leave model.{key} out")
    return overrides


def composed_values(overrides: list[str]) -> dict[str, Any]:
    """The configuration as plain values."""
    from lawa_exp.launch.compose import compose

    return compose(overrides)[0][0][0]


def settled(overrides: list[str]) -> tuple[Unresolved, Options]:
    from lawa_exp.launch.compose import compose, read

    return read(*compose(overrides)[0][0])


def shipped_file(task: str) -> Path | None:
    """The task's documents in zeroshot/ of LAWA_DATA, or of data/, where they are there."""
    from lawa_exp.evaluation.zeroshot import LOCAL

    if task not in LOCAL:
        return None
    places = [Path(root) / "zeroshot" / f"{task}.jsonl" for root in (os.environ.get("LAWA_DATA"), "data") if root]
    return next((place for place in places if place.is_file()), None)
