"""What every evaluator of checkpoints gives, and the models that it evaluates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lawa_exp.averaging.tensors import live_tensors
from lawa_exp.axes.configuration import Unresolved
from lawa_exp.axes.dataset.tokenizers import Tokenizer
from lawa_exp.axes.layers.settings import LayersSettings
from lawa_exp.axes.model.auto import POSITIONS, AutoSettings
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.config.shared import Options
from lawa_exp.convert.recorded import check_pythia
from lawa_exp.evaluation.score import LanguageModel, Score
from lawa_exp.readout.checkpoints import Fitted
from lawa_exp.readout.request import Request
from lawa_exp.readout.subject import Named
from lawa_exp.readout.tokenizer import FILE, check_tokenizer, requested_tokenizer, run_tokenizer
from lawa_exp.runs.builders import admit
from lawa_exp.runs.choices import config_from, unresolved_from
from lawa_exp.runs.resolve import resolve_trainer
from lawa_exp.seams.task import Task
from lawa_exp.storage.rows import Row
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.distributed import Ranks, start_device
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

PYTHIA, NEOX = "model=pythia_14m", 50_254  # tokens of its tokenizer
CAUSAL = ("ForCausalLM", "LMHeadModel")  # ends of transformers' classes


@dataclass(frozen=True)
class Evaluator:
    """score: what evaluates; fitted: reads checkpoints as its weights; bn: see `batchnorm.policy`.

    identity: what decides its results (JSON); label: how the results' name says it. published: rows of the live
    weights, from elsewhere. task: of the data set, where `score` gives its metrics and sums. of_averages: notes that
    say nothing of a single model.
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
    of_averages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoints:
    """name: as the results call them. folder: where a config.json and a tokenizer.json may lie.

    recorded: the settings of their model that the files themselves hold, see `convert/recorded.py`.
    """

    name: str
    folder: Path
    recorded: dict[str, Any]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class InOurModel(Score, Protocol):
    """What evaluates weights inside a model of ours, such as an `InModel`."""

    model: nn.Module
    settings: ModelSettings
    averaged: frozenset[str]
    device: torch.device
    ranks: Ranks


def of_model(model: str | None, score: InOurModel, named: Named, identity: dict[str, Any]) -> Evaluator:
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
    request: Request, checkpoints: Checkpoints, tokenizer_name: str | None
) -> tuple[LanguageModel, torch.device, Ranks, Tokenizer]:
    """The language model and its tokenizer: --tokenizer, else the run's own, else the checkpoint's tokenizer.json."""
    target, e, folder = request.target, request.evaluation, checkpoints.folder
    written = RunDir(Path(target.run)).read_config() if target.repository is None else None
    of_run = bool(written) and not e.model
    layers: tuple[tuple[str, LayersSettings], ...] = ()
    if written and of_run:
        config, unresolved = config_from(written), unresolved_from(written)
        layers = config.layers
    else:
        unresolved = composed(request, checkpoints, [])[0]
        if unresolved.layers:
            names = ",".join(name for name, _ in unresolved.layers)
            raise UserError(f"layers=[{names}]: not with --evaluate {e.how}, but of a run of ours")
    if unresolved.model.inputs != "tokens" and not isinstance(unresolved.model, AutoSettings):
        raise UserError(f"--evaluate {e.how}: model={unresolved.model.name} is no language model of tokens")
    if written and of_run:
        admit(unresolved, written, Path(target.run), target.trust, {"model", "layers"})
    device, ranks = start_device(target.device or unresolved.device)
    trainer = resolve_trainer(unresolved.trainer, device.type, ranks.local_world)
    if target.threads:
        trainer = replace(trainer, threads=target.threads)
    if tokenizer_name is None and of_run:
        tokenizer, origin = run_tokenizer(unresolved.dataset), "the run's tokenizer"
    else:
        origin = f"--tokenizer={tokenizer_name}" if tokenizer_name else str(folder / FILE)
        tokenizer = requested_tokenizer(tokenizer_name, folder)
    check_tokenizer(tokenizer, unresolved.model.vocab_size, folder, origin)
    batch_size = unresolved.evaluate.values["batch_size"]
    model = LanguageModel(unresolved.model, unresolved.seed, trainer, batch_size, layers)
    return model, device, ranks, tokenizer


def composed(request: Request, checkpoints: Checkpoints, more: list[str]) -> tuple[Unresolved, Options]:
    """The configuration of --model, or of what config.json names, with the overrides `more` and the requested ones.

    The model's settings that the checkpoints record stand where the command says nothing. UserError where it says
    something else.
    """
    target, e, folder = request.target, request.evaluation, checkpoints.folder
    requested = [*more, *e.overrides, *([f"trainer.threads={target.threads}"] if target.threads else [])]
    if e.model:
        model = [f"model={e.model}", *recorded_settings(target.run, e.model, checkpoints, requested)]
        return settled([*model, *requested])
    if not (folder / "config.json").is_file():
        raise UserError(
            f"RUN={target.run} is no run of ours: give --data, --model and --dataset, or --evaluate (there is no "
            f"config.json in {folder})"
        )
    model = [*in_config_json(folder), f"model.name={target.run.rstrip('/').split('/')[-1]}"]
    unresolved, options = settled([*model, *requested])
    overridden = any(override.startswith("dataset.tokenizer") for override in e.overrides)
    if unresolved.dataset.tokenizer is not None and not overridden:
        own = [f"dataset.tokenizer_path={folder / FILE}"] if (folder / FILE).is_file() else []
        if model[0] == PYTHIA and (own or (unresolved.model.vocab_size or 0) >= NEOX):
            own.append("dataset.tokenizer=neox")
        if own:
            return settled([*model, *more, *own, *requested])
    return unresolved, options


def in_config_json(folder: Path) -> list[str]:
    """The model that config.json names: Pythia's as ours, any other as transformers builds it."""
    from lawa_exp.axes.model.pythia.pythia import settings_in

    content = read_json(folder / "config.json")
    if content.get("model_type") == "gpt_neox":
        return [PYTHIA, *(f"model.{k}={v}" for k, v in settings_in(folder / "config.json").items())]
    names = content.get("architectures") or ["none"]
    if not str(names[0]).endswith(CAUSAL):
        raise UserError(f"{folder / 'config.json'}: architectures={names[0]}: expected a causal language model")
    positions = next((content[key] for key in POSITIONS if isinstance(content.get(key), int)), None)
    context = [f"model.context={positions}"] if positions else []
    return ["model=auto", f"model.config={folder}", *context]


def recorded_settings(run: str, model: str, checkpoints: Checkpoints, requested: list[str]) -> list[str]:
    """Overrides with what the checkpoints record of --model's settings. UserError: `requested` contradicts it."""
    if not checkpoints.recorded:
        return []
    has = composed_values([f"model={model}", *requested])["model"]
    if has.get("kind") == "pythia":
        check_pythia(checkpoints.folder)
    recorded = {key: value for key, value in checkpoints.recorded.items() if key in has}
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
