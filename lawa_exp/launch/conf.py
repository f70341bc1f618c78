"""The folder conf/: its groups, their choices, the keys in its files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).parents[1] / "conf"  # in the wheel
CHECKOUT = Path(__file__).parents[2] / "conf"
CONF = INSIDE if INSIDE.is_dir() else CHECKOUT


def groups() -> dict[str, list[str]]:
    """The configuration groups and their choices."""
    return {
        folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


def launchers() -> list[str]:
    """The choices of hydra/launcher that train."""
    return sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml"))


def siblings(parent: str) -> list[str]:
    """The keys that stand under `parent` ("" for the top) in any configuration file."""
    import yaml

    found: set[str] = set()
    files = [(CONF / "config.yaml", "")] + [
        (path, group) for group, names in groups().items() for path in ((CONF / group / f"{n}.yaml") for n in names)
    ]
    if parent == "hydra.launcher":
        files = [(path, parent) for path in (CONF / "hydra" / "launcher").glob("*.yaml")]
    for path, group in files:
        text = path.read_text()
        package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
        prefix = group if package is None else package[1].replace("_global_", "")
        content: Any = {k: v for k, v in (yaml.safe_load(text) or {}).items() if k not in ("defaults", "hydra")}
        for step in reversed(prefix.split(".") if prefix else []):
            content = {step: content}
        for step in parent.split(".") if parent else []:
            content = content.get(step) if isinstance(content, dict) else None
        found |= {key for key in content if not key.startswith("_")} if isinstance(content, dict) else set()
    if not parent:
        found |= set(groups())
    return sorted(found)
