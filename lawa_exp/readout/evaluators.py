"""What evaluates checkpoints that are read out: a data set, a function, zero-shot tasks or a text."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.axes.configuration import Unresolved
from lawa_exp.axes.dataset.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer, read_tokenizer, tokenizer_of
from lawa_exp.config.rules import setting_names
from lawa_exp.config.shared import Options
from lawa_exp.evaluation.score import ByFunction, LanguageModel, OnModel, Score, floating_names
from lawa_exp.published import pythia_rows
from lawa_exp.readout.asked import readout_name
from lawa_exp.readout.foreign import Fitted, read_checkpoint, recorded
from lawa_exp.readout.revisions import HUB
from lawa_exp.results.tables import NATS
from lawa_exp.runs.choices import unresolved_from
from lawa_exp.runs.prepare import prepare
from lawa_exp.runs.resolve import resolve_trainer
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks, start_device
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import default_threads

if TYPE_CHECKING:
    from lawa_exp.evaluation.perplexity import Perplexity
    from lawa_exp.evaluation.zeroshot import ZeroShot

ZEROSHOT, PERPLEXITY = "zeroshot", "perplexity"
PADDING = 512  # rows that a vocabulary may have beyond its tokenizer's: padded to a multiple of 128 times the GPUs
PROBE = "The 2 quick brown foxes, naïve as ever,\n\tjumped over def f(x):\n    return x**12 -- didn't they?"


@dataclass
class Evaluator:
    """score: what evaluates; fitted: reads checkpoints as its weights. title: what the results are of."""

    score: Score
    fitted: Fitted
    averaged: frozenset[str]
    title: str
    device: torch.device
    ranks: Ranks | None = None
    statistics: frozenset[str] = frozenset()
    bn: str | None = None
    no_test: str = ""
    unit: str = NATS
    measure: str = "val loss"
    notes: list[str] = field(default_factory=list)
    label: str = ""  # of the evaluation, in the results' name
    identity: dict[str, Any] = field(default_factory=dict)  # what decides its results
    published: list[dict[str, Any]] = field(default_factory=list)  # rows of the live weights from elsewhere


def evaluator_for(args: argparse.Namespace, name: str, first: Callable[[], Path], beside: Path) -> Evaluator:
    """The one that the flags ask for. first: a checkpoint; beside: the folder that may hold its config.json, ..."""
    check_flags(args)
    if args.evaluate and args.evaluate not in (ZEROSHOT, PERPLEXITY):
        return by_function(args, name, first())
    made = {ZEROSHOT: zero_shot, PERPLEXITY: perplexity}.get(args.evaluate, on_dataset)
    record = {} if args.run.startswith(HUB) else recorded(first())
    return made(args, name, beside, record)


def check_flags(args: argparse.Namespace) -> None:
    """UserError for one that has nothing to say here."""
    of = {"tasks": ZEROSHOT, "task_data": ZEROSHOT, "limit": ZEROSHOT, "published": ZEROSHOT, "text": PERPLEXITY}
    for flag, evaluation in of.items():
        if getattr(args, flag) is not None and args.evaluate != evaluation:
            raise UserError(f"--{flag.replace('_', '-')} is for --evaluate {evaluation}")
    if args.tokenizer is not None and args.evaluate not in (ZEROSHOT, PERPLEXITY):
        raise UserError(f"--tokenizer is for --evaluate {ZEROSHOT} or {PERPLEXITY}; of a data set: dataset.tokenizer=")
    if args.dataset and args.evaluate in (ZEROSHOT, PERPLEXITY):
        raise UserError(f"--dataset={args.dataset}: not with --evaluate {args.evaluate}")


def by_function(args: argparse.Namespace, name: str, first: Path) -> Evaluator:
    """--evaluate package.module:function."""
    if args.bn:
        raise UserError(f"--bn={args.bn}: not with --evaluate, whose function gets the latest statistics")
    torch.set_num_threads(args.threads or default_threads(1))
    own = read_checkpoint(first)
    return Evaluator(
        ByFunction(args.evaluate),
        Fitted(own, (), str(first)),
        floating_names(own),
        f"{name}, evaluated by {args.evaluate}",
        torch.device("cpu"),
        no_test="--evaluate gives one loss",
        unit=f"as {args.evaluate} gives it",
        identity={"function": args.evaluate},
    )


def on_dataset(args: argparse.Namespace, name: str, beside: Path, record: dict[str, Any]) -> Evaluator:
    """--dataset, with --model or the model that config.json names."""
    if not args.dataset:
        raise UserError(f"RUN={args.run} is no run of ours: give --model and --dataset, or --evaluate")
    unresolved, options = composed(args, beside, record, [f"dataset={args.dataset}"])
    if args.bn:
        unresolved = replace(unresolved, evaluate=unresolved.evaluate.changed(bn=args.bn))
    device, ranks = start_device(args.device or unresolved.device)
    p = prepare(replace(unresolved, averagers=()), options, device, ranks)
    dataset, vocab_size = unresolved.dataset, unresolved.model.vocab_size
    if dataset.tokenizer is not None:
        tokenizer = load_tokenizer(dataset.tokenizer, dataset.tokenizer_path)
        check_tokenizer(tokenizer, vocab_size, beside, f"dataset.tokenizer={dataset.tokenizer}")
    elif (beside / "tokenizer.json").is_file() and (sole := of_tokens(dataset)):
        check_tokenizer(sole, vocab_size, beside, f"dataset={dataset.name} (tokenizer {sole.name})")
    score = OnModel(p.config, p.data, device, ranks)
    if args.bn and score.bn is None:
        raise UserError(f"--bn={args.bn}: model={args.model} has no BatchNorm")
    notes = [f"Data: {p.data.note}."] if p.data.note else []
    as_model = f"{name} as {args.model} on {args.dataset}" if args.model else f"{name} on {args.dataset}"
    identity = {"data": p.data.fingerprint, "evaluate": str(p.config.evaluate), "dtype": p.config.trainer.dtype}
    made = of_model(args, score, as_model, identity)
    return replace(made, statistics=score.statistics, bn=score.bn, unit=f"nats per {p.data.unit}", notes=notes)


def zero_shot(args: argparse.Namespace, name: str, beside: Path, record: dict[str, Any]) -> Evaluator:
    """--evaluate zeroshot --tasks ..."""
    from lawa_exp.evaluation.zeroshot import ZeroShot, load_tasks, local_file

    if not args.tasks:
        raise UserError("--tasks is missing: expected tasks with commas, such as lambada_openai,arc_easy,piqa")
    asked = list(dict.fromkeys(task.strip() for task in args.tasks.split(",")))
    published = []
    if args.published:
        try:
            published = pythia_rows(Path(args.published), name, asked)
        except UserError as error:
            raise UserError(f"--published={args.published}, of {name}: {error}") from None
    subject, device, ranks, tokenizer = model_and_tokenizer(args, beside, record)
    folder = Path(args.task_data) if args.task_data else None
    files = {name: local_file(name, folder) if folder else shipped_file(name) for name in asked}
    tasks = load_tasks(files)
    score = ZeroShot(subject, device, ranks, tokenizer, tasks, args.limit)
    identity = {
        "tasks": list(tasks),
        "documents": {name: file_digest(file) for name, file in files.items() if file} or "hub",
        "published": published,
        "limit": args.limit,
        "tokenizer": tokenizer.fingerprint,
    }
    made = of_model(args, score, f"{name}, zero-shot", identity | {"dtype": subject.trainer.dtype})
    places = dict.fromkeys(str(file.parent) if file else "the hub" for file in files.values())
    made.notes.append(f"Documents: {' and '.join(places)}; prompts and metrics are lm-evaluation-harness's.")
    return replace(
        made,
        no_test="tasks have one split each",
        unit="mean over the tasks of 1 - acc",
        measure="1 - mean accuracy",
        label=f"{ZEROSHOT}-{readout_name(asked)}",
        published=published,
    )


def perplexity(args: argparse.Namespace, name: str, beside: Path, record: dict[str, Any]) -> Evaluator:
    """--evaluate perplexity --text FILE."""
    from lawa_exp.evaluation.perplexity import NORMALISED, Perplexity

    if not args.text:
        raise UserError("--text is missing: expected a UTF-8 file")
    path = Path(args.text)
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text={path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    subject, device, ranks, tokenizer = model_and_tokenizer(args, beside, record)
    score = Perplexity(subject, device, ranks, tokenizer, text, path.name)
    identity = {"text": path.name, "content": file_digest(path), "tokenizer": tokenizer.fingerprint}
    made = of_model(args, score, f"{name} on {path.name}", identity | {"dtype": subject.trainer.dtype})
    counted = f"{score.tokens:,} tokens, {score.words:,} words, {score.bytes:,} bytes"
    made.notes.append(f"Perplexity of {path.name} ({counted}) by token and by word: {NORMALISED}.")
    return replace(
        made, no_test="--text is one text", unit="nats per token", measure="loss", label=f"{PERPLEXITY}-{path.name}"
    )


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_model(
    args: argparse.Namespace, score: OnModel | ZeroShot | Perplexity, title: str, identity: dict[str, Any]
) -> Evaluator:
    own = live_tensors(score.model)
    names = {*score.model.state_dict(), *beside_weights(score.settings)}
    what = f"--model={args.model}" if args.model else f"model={score.settings.name}"
    fitted = Fitted(own, names, what, score.settings, masks(score.settings))
    made = Evaluator(score, fitted, score.averaged, title, score.device, score.ranks)
    return replace(made, identity={"model": str(score.settings), **identity})


def masks(model: Any) -> set[str]:
    from lawa_exp.axes.model.gpt.gpt import not_weights
    from lawa_exp.axes.model.gpt.settings import GPTSettings

    return not_weights(model.layers) if isinstance(model, GPTSettings) else set()


def beside_weights(model: Any) -> set[str]:
    from lawa_exp.axes.model.pythia.settings import PythiaSettings

    if not isinstance(model, PythiaSettings):
        return set()
    from lawa_exp.axes.model.pythia.pythia import not_weights

    return not_weights(model.layers)


def model_and_tokenizer(
    args: argparse.Namespace, beside: Path, record: dict[str, Any]
) -> tuple[LanguageModel, torch.device, Ranks, Tokenizer]:
    """The language model and its tokenizer: --tokenizer, else the run's own, else the checkpoint's tokenizer.json."""
    written = RunDir(Path(args.run)).read_config() if not args.run.startswith(HUB) else None
    unresolved = unresolved_from(written) if written and not args.model else composed(args, beside, record, [])[0]
    if unresolved.model.inputs != "tokens":
        raise UserError(f"--evaluate {args.evaluate}: model={unresolved.model.name} is no language model of tokens")
    device, ranks = start_device(args.device or unresolved.device)
    trainer = resolve_trainer(unresolved.trainer, device.type, ranks.local_world)
    if args.threads:
        trainer = replace(trainer, threads=args.threads)
    if args.tokenizer is None and written and not args.model:
        tokenizer, said = run_tokenizer(unresolved.dataset), "the run's tokenizer"
    else:
        said = f"--tokenizer={args.tokenizer}" if args.tokenizer else str(beside / "tokenizer.json")
        tokenizer = asked_tokenizer(args.tokenizer, beside)
    check_tokenizer(tokenizer, unresolved.model.vocab_size, beside, said)
    subject = LanguageModel(unresolved.model, unresolved.seed, trainer, unresolved.evaluate.values["batch_size"])
    return subject, device, ranks, tokenizer


def of_tokens(dataset: Any) -> Tokenizer | None:
    """The one that made a data set's tokens, where it is known and its files are here."""
    name, path = tokenizer_of(dataset)
    with contextlib.suppress(UserError):
        return load_tokenizer(name, path) if name else None
    return None


def run_tokenizer(dataset: Any) -> Tokenizer:
    """Of the data set that a run was trained on."""
    name, path = tokenizer_of(dataset)
    if name is None:
        raise UserError(f"--tokenizer is missing: dataset={dataset.name} does not say which made its tokens")
    return load_tokenizer(name, path)


def asked_tokenizer(asked: str | None, beside: Path) -> Tokenizer:
    """A name, a file, or what lies beside the checkpoint."""
    if asked in TOKENIZERS:
        return load_tokenizer(asked, None)
    file = Path(asked) if asked else beside / "tokenizer.json"
    if asked and file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        where = (
            f"--tokenizer={asked}: no such file" if asked else f"--tokenizer is missing: no tokenizer.json in {beside}"
        )
        raise UserError(f"{where}; expected {', '.join(TOKENIZERS)}, or a tokenizer.json")
    return read_tokenizer(file, file.name)


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int | None, beside: Path, said: str) -> None:
    """UserError where the tokens are not those that the checkpoint's model was trained on, as far as that is known."""
    carried = beside / "tokenizer.json"
    if carried.is_file():
        own = read_tokenizer(carried, "its own")
        if not np.array_equal(own.encode(PROBE), tokenizer.encode(PROBE)):
            raise UserError(f"{said} does not fit the model: {carried} gives other tokens")
    elsewhere = (beside / "config.json").is_file() and not carried.is_file()
    if vocab_size is None:
        return
    if tokenizer.vocab_size > vocab_size or (elsewhere and vocab_size - tokenizer.vocab_size >= PADDING):
        counts = f"{tokenizer.vocab_size:,} tokens, and a vocabulary of {vocab_size:,} there"
        raise UserError(f"{said} does not fit the model: {counts}")


def composed(
    args: argparse.Namespace, beside: Path, record: dict[str, Any], more: list[str]
) -> tuple[Unresolved, Options]:
    """The configuration of --model, or of what config.json names, with further settings.

    record: the model's settings that the checkpoints hold, which stand where the command says nothing. UserError where
    it says something else.
    """
    from lawa_exp.launch.compose import compose
    from lawa_exp.launch.compose import read as settings_of

    threads = [f"trainer.threads={args.threads}"] if args.threads else []

    def values_of(overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
        return compose([*overrides, *more, *args.overrides, *threads])[0][0]

    def settled(overrides: list[str]) -> tuple[Unresolved, Options]:
        return settings_of(*values_of(overrides))

    if args.model:
        model = [f"model={args.model}"]
        if record and values_of(model)[0]["model"].get("kind") == "gpt":
            model += [f"model.{key}={json.dumps(said)}" for key, said in record.items()]
            chosen = values_of(model)[0]["model"]
            for key, said in record.items():
                if chosen[key] != said:
                    where = f"the checkpoints of RUN={args.run} record {json.dumps(said)}"
                    raise UserError(f"model.{key}={json.dumps(chosen[key])}: {where}; leave model.{key} out")
        return settled(model)
    if not (beside / "config.json").is_file():
        raise UserError(
            f"RUN={args.run} is no run of ours: give --model and --dataset, or --evaluate (there is no config.json in "
            f"{beside})"
        )
    from lawa_exp.axes.model.pythia.pythia import settings_in

    shape = [f"model.{k}={v}" for k, v in settings_in(beside / "config.json").items()]
    model = ["model=pythia_14m", f"model.name={args.run.rstrip('/').split('/')[-1]}", *shape]
    unresolved, options = settled(model)
    overridden = any(override.startswith("dataset.tokenizer") for override in args.overrides)
    if "tokenizer" in setting_names(type(unresolved.dataset)) and not overridden:
        carried = beside / "tokenizer.json"
        own = [f"dataset.tokenizer_path={carried}"] if carried.is_file() else []
        return settled([*model, *more, "dataset.tokenizer=neox", *own])
    return unresolved, options


def shipped_file(task: str) -> Path | None:
    """The task's documents in zeroshot/ of LAWA_DATA, or of data/, where they are there."""
    from lawa_exp.evaluation.zeroshot import LOCAL

    if task not in LOCAL:
        return None
    places = [Path(root) / "zeroshot" / f"{task}.jsonl" for root in (os.environ.get("LAWA_DATA"), "data") if root]
    return next((place for place in places if place.is_file()), None)
