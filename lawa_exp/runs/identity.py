"""What a training is: the settings that determine its live weights, their hash, its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lawa_exp.axes.batch.constant import ConstantBatch
from lawa_exp.axes.fault import FAULTS
from lawa_exp.axes.fault.none import NoFault
from lawa_exp.axes.feedback import FEEDBACK
from lawa_exp.axes.feedback.none import NoFeedback
from lawa_exp.axes.optimizer.adamw import AdamW
from lawa_exp.config.shared import Config
from lawa_exp.runs.choices import config_to
from lawa_exp.storage.origin import Origin
from lawa_exp.system.fingerprint import Code

DETERMINING = ("model", "dataset", "optimizer", "lr", "batch", "scaling", "feedback", "fault", "seed")


def identity_of(config: Config, data: Any, origin: Origin | None = None, code: Code | None = None) -> dict[str, Any]:
    """What determines the live weights, from the resolved configuration; names and places do not. code: the model's."""
    content = {k: v for k, v in config_to(config).items() if k in DETERMINING}
    for part in ("model", "dataset"):
        content[part] = {
            k: v for k, v in content[part].items() if k not in ("name", "path", "folder", "tokenizer_path")
        }
    content["dataset"]["fingerprint"] = data.fingerprint
    if code:
        content["model"]["code"] = code.identity
    if isinstance(config.fault, NoFault):
        del content["fault"]
    if not config.lr.uses_horizon:
        del content["lr"]["horizon"]
    if config.batch.norm_group is None:
        del content["batch"]["norm_group"]
    if isinstance(config.optimizer, AdamW) and config.optimizer.decays == "matrices":
        del content["optimizer"]["decays"]
    if isinstance(config.batch, ConstantBatch):  # then it is all the same
        del content["lr"]["unit"]
    if origin:
        content["init"] = origin.identity
    return content | {"dtype": config.trainer.dtype, "compile": config.trainer.compile}


def trajectory_id(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def run_folder(root: Path, config: Config, trajectory: str) -> Path:
    """The run's folder in `root`: a readable prefix, with feedback and fault where there are, and the trajectory id.

    No `=` in its name. Before the feedback was in it the folder had a shorter one, under which it is still found.
    """
    head = f"{config.model.name}-{config.dataset.name}-{type(config.lr).__name__.lower()}{config.lr.peak:g}"
    tail = f"seed{config.seed}-{trajectory}"
    if not isinstance(config.fault, NoFault):
        tail = f"bad_{FAULTS.kind_of(config.fault)}-{tail}"
    without = root / f"{head}-{tail}"
    if isinstance(config.feedback, NoFeedback):
        return without
    folder = root / f"{head}-{FEEDBACK.kind_of(config.feedback)}-{tail}"
    return without if without.exists() and not folder.exists() else folder
