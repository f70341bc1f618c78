"""What the config.json next to a GPT-2 of transformers says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lawa_exp.formats.stored import reading
from lawa_exp.system.files import read_json


def config_file(path: Path) -> Path:
    """The config.json of a folder, or of the folder of a file."""
    return (path if path.is_dir() else path.parent) / "config.json"


def is_hugging_face(path: Path) -> bool:
    """Whether a folder, or what lies with a file, is a GPT-2 as transformers saves it."""
    config = config_file(path)
    return config.is_file() and content_of(config).get("model_type") == "gpt2"


def activation_note(path: Path) -> str:
    """Where the GPT-2 in `path` has another activation than ours; empty where it has the same."""
    activation = (
        content_of(config_file(path)).get("activation_function", "gelu_new") if is_hugging_face(path) else "gelu"
    )
    same = activation == "gelu"
    return (
        "" if same else f"config.json has activation_function={activation}; our model has the exact GELU in its place."
    )


def content_of(config: Path) -> dict[str, Any]:
    with reading(config):
        content: dict[str, Any] = read_json(config)
        content.get("model_type")
    return content
