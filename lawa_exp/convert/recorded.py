"""What a checkpoint itself says of its model: shapes show neither heads nor the scale of attention."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lawa_exp.axes.model.gpt.folder import is_hugging_face
from lawa_exp.axes.model.pythia.settings import IN_CONFIG_JSON, PythiaSettings
from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.convert.hugging_face import hugging_face_settings
from lawa_exp.convert.nanogpt import of_nanogpt
from lawa_exp.formats.checkpoint import open_file
from lawa_exp.formats.pytorch import TorchFile
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

OF_OTHERS = ("layers", "heads", "width")  # what any config.json may say of them
SHOWN = (
    "name",
    "kind",
    "builder",
    "args",
    "context",
    "vocab_size",
    "classes",
    "image_size",
    "channels",
)  # or no matter


def recorded(path: Path, key: str | None = None) -> dict[str, Any]:
    """Settings of the model, by our names: of nanoGPT's `model_args`, a config.json, or the run that wrote it.

    Empty where there is no record. Without dropout, which no evaluation uses. key: of the state dict. UserError: the
    record is damaged.
    """
    if is_hugging_face(path):
        return hugging_face_settings(path)
    source = open_file(path, None, key) if path.is_file() else None
    if isinstance(source, TorchFile) and (settings := of_nanogpt(source.content.get("model_args"))):
        for key, value in settings.items():
            if not isinstance(value, int | float):
                raise UserError(f"{path}: {key} in its model_args is no number")
        return {key: value for key, value in settings.items() if "dropout" not in key}
    folder = path if path.is_dir() else path.parent
    return _in_config_json(folder / "config.json") or _in_run(path)


def check_pythia(folder: Path) -> None:
    """UserError: the config.json in `folder` is of a GPT-NeoX whose rotary embedding, activation or norms are others.

    A folder without one, or of another kind of model, is none of its business.
    """
    config = folder / "config.json"
    if config.is_file() and read_json(config).get("model_type") == "gpt_neox":
        from lawa_exp.axes.model.pythia.pythia import settings_in

        settings_in(config)


def check_record(path: Path, model: ModelSettings, named: str) -> None:
    """UserError: the record of the weights that `named` names contradicts the model's settings."""
    own = dataclasses.asdict(model)  # type: ignore[call-overload]
    for key, value in recorded(path).items():
        if key in own and key not in SHOWN and own[key] != value:
            raise UserError(
                f"model.{key}={json.dumps(own[key])}: {named}={path} records {json.dumps(value)}, with which its "
                f"weights were trained; give model.{key}={json.dumps(value)}"
            )
    if isinstance(model, PythiaSettings):
        check_pythia(path if path.is_dir() else path.parent)


def _in_config_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected a JSON object")
    return {ours: content[name] for ours in OF_OTHERS if isinstance(content.get(name := IN_CONFIG_JSON[ours]), int)}


def _in_run(path: Path) -> dict[str, Any]:
    """Of the run that the path lies in, if any; no builder is among it."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents[:3]):
        if (content := RunDir(folder).read_config() if RunDir(folder).config.is_file() else None) is not None:
            model = content.get("model")
            if "trajectory_id" not in content or not isinstance(model, dict):
                return {}
            numbers = {k: v for k, v in model.items() if isinstance(v, int | float)}
            return {k: v for k, v in numbers.items() if k not in SHOWN and "dropout" not in k and "depth" not in k}
    return {}
