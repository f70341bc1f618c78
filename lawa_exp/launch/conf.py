"""The folder conf/: its groups, their choices, the keys in its files."""

from __future__ import annotations

import functools
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


def attached(overrides: list[str]) -> set[str] | None:
    """The kinds of averagers that the last avg=... attaches, and those whose settings are given.

    None where there is no avg=..., or a choice is not of conf/.
    """
    given = [o.partition("=")[2] for o in overrides if o.split("=")[0].lstrip("+") == "avg"]
    names = [name.strip() for name in given[-1].strip("[]").split(",") if name.strip()] if given else ["?"]
    if not set(names) <= {*groups()["avg"]}:
        return None
    files = [(CONF / "avg" / f"{name}.yaml").read_text() for name in names]
    found = {kind for text in files for kind in re.findall(r"^# @package averagers\.(\w+)", text, re.MULTILINE)}
    return found | {o.split(".")[1] for o in overrides if re.match(r"\+*averagers\.\w+\.", o)}


@functools.cache
def _contents() -> list[tuple[Any, str]]:
    """What stands in each configuration file, from the top on, and the group that it belongs to."""
    import yaml

    files = [(CONF / "config.yaml", "")] + [
        (path, group) for group, names in groups().items() for path in ((CONF / group / f"{n}.yaml") for n in names)
    ]
    files += [(path, "hydra.launcher") for path in (CONF / "hydra" / "launcher").glob("*.yaml")]
    found = []
    for path, group in files:
        text = path.read_text()
        package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
        prefix = group if package is None else package[1].replace("_global_", "")
        content: Any = {k: v for k, v in (yaml.safe_load(text) or {}).items() if k not in ("defaults", "hydra")}
        for step in reversed(prefix.split(".") if prefix else []):
            content = {step: content}
        found.append((content, group))
    return found


def siblings(parent: str) -> list[str]:
    """The keys that stand under `parent` ("" for the top) in any configuration file."""
    found: set[str] = set()
    for content, group in _contents():
        if (group == "hydra.launcher") != (parent == "hydra.launcher"):
            continue
        for step in parent.split(".") if parent else []:
            content = content.get(step) if isinstance(content, dict) else None
        found |= {key for key in content if not key.startswith("_")} if isinstance(content, dict) else set()
    if not parent:
        found |= set(groups())
    return sorted(found)
