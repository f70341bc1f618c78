"""README.md of an exported folder: the model card that the hub shows."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lawa_exp.averaging import AVERAGERS
from lawa_exp.axes.configuration import Config
from lawa_exp.formats.about import FILE as AVERAGE
from lawa_exp.results.tables import markdown
from lawa_exp.storage.metrics import metrics_of
from lawa_exp.storage.rows import name_of, read_rows, read_starts
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_small

PRIVATE = re.compile(r"[/\\~]|\$\{")  # in a word: perhaps a path of somebody's own machine
PLACES = ("path", "tokenizer_path", "from", "run_dir", "runs_root")  # ends of keys whose values are paths
PIPELINES = {"ForCausalLM": "text-generation", "LMHeadModel": "text-generation", "ForMaskedLM": "fill-mask"}


@dataclass(frozen=True)
class Card:
    """What is known of the weights. weights: live, or an average's id. average: what average.json says of it.

    losses: (split, weights, loss) of them and of the live weights after the same step; unit: of the losses. command:
    the words after `python -m lawa_exp` of the training's last start. versions: of the packages there.
    """

    model: str
    data: str
    step: int
    weights: str
    average: Mapping[str, object] | None = None
    losses: Sequence[tuple[str, str, float]] = ()
    unit: str = "nats"
    run: str = ""
    command: Sequence[str] = ()
    versions: Mapping[str, str] | None = None


def card_of(run: RunDir, folder: Path, config: Config, step: int) -> Card:
    """What the run says of the weights in `folder`."""
    said = folder / AVERAGE
    average = json.loads(read_small(said)) if said.is_file() else None
    if average is not None and not (isinstance(average, dict) and average.get("averager") in AVERAGERS):
        raise UserError(f"{said}: it does not say by which averager the average was made; remove it")
    weights = folder.parent.name if folder.parent.parent == run.averages else "live"
    rows = [*read_rows(run.metrics, trained=False), *read_rows(run.readouts / "test" / "metrics.jsonl")]
    shown = [r for r in rows if r["step"] == step and name_of(r) in ("live", weights) and r["split"] in ("val", "test")]
    losses = [(r["split"], name_of(r), r["loss"]) for r in shown if r.get("loss") is not None]
    starts = read_starts(run.path)
    command, versions = (starts[-1]["command"][1:], starts[-1]["versions"]) if starts else ((), None)
    unit, name = metrics_of(run.path)["loss"].unit, run.path.resolve().name
    return Card(config.model.name, config.dataset.name, step, weights, average, losses, unit, name, command, versions)


def model_card(card: Card, architecture: str) -> str:
    """Markdown with the hub's front matter. Values that are paths are left out of the command."""
    pipeline = next((p for end, p in PIPELINES.items() if architecture.endswith(end)), None)
    tags = ["weight-averaging", card.average["averager"]] if card.average else []
    front = ["---", "library_name: transformers", *([f"pipeline_tag: {pipeline}"] if pipeline else [])]
    front += ["tags:", *(f"- {json.dumps(tag)}" for tag in [*tags, "lawa_exp"]), "---"]
    parts = ["\n".join(front), f"# {card.model} on {card.data}, step {card.step:,}: {card.weights}"]
    parts.append(what_it_is(card))
    if card.losses:
        splits = list(dict.fromkeys(split for split, _, _ in card.losses))
        by_weights: dict[str, dict[str, float]] = {}
        for split, weights, loss in card.losses:
            by_weights.setdefault(weights, {})[split] = loss
        lines = [["weights", *(f"{split} loss" for split in splits)]]
        for weights, of in by_weights.items():
            lines.append([weights, *(f"{of[split]:.4f}" if split in of else "-" for split in splits)])
        parts.append(f"{markdown(lines)}\n\nAfter step {card.step:,}, in {card.unit}, of this one training.")
    if card.command:
        words = [public(word) for word in card.command]
        versions = ", ".join(f"{name} {version}" for name, version in (card.versions or {}).items())
        said = f"Trained (run `{card.run}`{f'; {versions}' if versions else ''}) with"
        parts.append(f"{said}\n\n    {shlex.join(['python', '-m', 'lawa_exp', *words])}")
    return "\n\n".join(parts) + "\n"


def public(word: str) -> str:
    """A word of the command without what may be a path."""
    key, equals, value = word.partition("=")
    if not equals:
        return "..." if PRIVATE.search(word) else word
    return f"{key}=..." if PRIVATE.search(value) or key.rpartition(".")[2] in PLACES else word


def what_it_is(card: Card) -> str:
    """In a sentence."""
    if card.average is None:
        return "The live weights, not averaged." if card.weights == "live" else f"The average {card.weights}."
    steps, settings = card.average.get("steps"), card.average.get("settings")
    if isinstance(steps, Mapping):
        of = f"{steps['number']:,} steps from {steps['first']:,} to {steps['last']:,}"
    else:
        of = f"steps {', '.join(f'{step:,}' for step in steps)}" if isinstance(steps, list) else "one training"
    with_settings = ", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items()) if isinstance(settings, dict) else ""
    return f"The average `{card.average['averager']}` ({with_settings}) of the weights after {of}."
