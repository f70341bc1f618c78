"""What a training is: the settings that determine its live weights, their hash, its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lawa_exp.axes.batch.constant import ConstantBatch
from lawa_exp.axes.configuration import Config
from lawa_exp.axes.fault import FAULTS
from lawa_exp.axes.fault.none import NoFault
from lawa_exp.axes.feedback import FEEDBACK
from lawa_exp.axes.feedback.none import NoFeedback
from lawa_exp.config.rules import as_before
from lawa_exp.runs.choices import TABLES, config_to
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.storage.origin import Origin
from lawa_exp.system.fingerprint import Code

DETERMINING = {"model", "dataset", "optimizer", "lr", "batch", "scaling", "feedback", "fault", "seed"}
PLACES = {"model": {"name"}, "dataset": {"name", "path", "folder", "tokenizer_path"}}  # names and places


def identity_of(
    config: Config, data: DatasetFacts, origin: Origin | None = None, code: Code | None = None
) -> dict[str, Any]:
    """What determines the live weights, from the resolved configuration; names and places do not. code: the model's."""
    content = {k: v for k, v in config_to(config).items() if k in DETERMINING}
    for name in DETERMINING & TABLES.keys():
        left_out = PLACES.get(name, set()) | as_before(getattr(config, name))
        content[name] = {k: v for k, v in content[name].items() if k not in left_out}
    content["dataset"]["fingerprint"] = data.fingerprint
    if code:
        content["model"]["code"] = code.identity
    if isinstance(config.fault, NoFault):  # which every training was before they came
        del content["fault"]
    if not config.lr.uses_horizon:
        del content["lr"]["horizon"]
    if isinstance(config.batch, ConstantBatch):  # steps, samples and tokens are in proportion
        del content["lr"]["unit"]
    if origin:
        content["init"] = origin.identity
    return content | {"dtype": config.trainer.dtype, "compile": config.trainer.compile}


def trajectory_id(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def run_folder(root: Path, config: Config, trajectory: str) -> Path:
    """The run's folder in `root`: a readable prefix, with feedback and fault where there are, and the trajectory id.

    No `=` in its name.
    """
    words = [config.model.name, config.dataset.name, f"{type(config.lr).__name__.lower()}{config.lr.peak:g}"]
    if not isinstance(config.feedback, NoFeedback):
        words.append(FEEDBACK.kind_of(config.feedback))
    if not isinstance(config.fault, NoFault):
        words.append(f"bad_{FAULTS.kind_of(config.fault)}")
    return root / "-".join([*words, f"seed{config.seed}", trajectory])
