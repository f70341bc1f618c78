"""What a training is: the settings that determine its live weights, their hash, its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lawa_exp.axes.choice import Choice
from lawa_exp.axes.configuration import Config
from lawa_exp.config.rules import as_before
from lawa_exp.runs.choices import config_to
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.storage.origin import Origin
from lawa_exp.storage.teacher import find_teacher
from lawa_exp.system.fingerprint import Code

DETERMINING = ("model", "dataset", "optimizer", "lr", "batch", "scaling", "sampling", "objective", "feedback", "fault")
LISTED = ("layers", "update")
ALWAYS = {"scaling", "feedback"}  # in the id although they stand for nothing: they were in the first ids


def identity_of(
    config: Config, data: DatasetFacts, origin: Origin | None = None, code: Mapping[str, Code] | None = None
) -> dict[str, Any]:
    """What determines the live weights, from the resolved configuration; names and places do not.

    A choice that stands for nothing leaves no trace, and neither does a setting with the value that every training had
    before there was one: what is added to the project changes no id. code: of what comes from outside, by its place.
    """
    plain = config_to(config)
    content: dict[str, Any] = {}
    for group in DETERMINING:
        settings = getattr(config, group)
        if group in ALWAYS or not settings.absent:
            content[group] = _determining(settings, plain[group], config)
    for group in LISTED:
        entries = zip(plain.get(group, ()), getattr(config, group), strict=True)
        if found := [_determining(settings, entry, config) for entry, (_, settings) in entries]:
            content[group] = found
    content["seed"] = config.seed
    content["dataset"]["fingerprint"] = data.fingerprint
    for place, fingerprint in (code or {}).items():
        group, _, number = place.partition(".")
        if group in content:  # a watch or an averager is in no id
            part = content[group][int(number)] if number else content[group]
            part["code"] = fingerprint.identity
    if teacher := find_teacher(config.teacher):
        content["teacher"] = teacher.identity
    if origin:
        content["init"] = origin.identity
    return content | {"dtype": config.trainer.dtype, "compile": config.trainer.compile}


def _determining(settings: Choice, plain: Mapping[str, Any], config: Config) -> dict[str, Any]:
    left_out = {"name"} | as_before(settings) | settings.places | settings.idle(config)
    kept = {name: value for name, value in plain.items() if name not in left_out}
    return kept | ({"revision": settings.revision} if settings.revision else {})


def trajectory_id(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def run_folder(root: Path, config: Config, trajectory: str) -> Path:
    """The run's folder in `root`: a readable prefix, with feedback and fault where there are, and the trajectory id.

    No `=` in its name.
    """
    words = [config.model.name, config.dataset.name, *config.lr.folder_words]
    words += [plain["kind"] for group in ("sampling", "objective") if (plain := config_to(config).get(group))]
    words += [entry["kind"] for group in LISTED for entry in config_to(config).get(group, ())]
    words += [*config.feedback.folder_words, *config.fault.folder_words]
    return root / "-".join([*words, f"seed{config.seed}", trajectory])
