"""Entries of a multirun that differ in values alone are composed once.

Hydra composes every entry from all of its files, and twice: to see whether it can be composed, and for its launcher.
That is half a second for an entry. What it is in Hydra 1.3 alone: in another version that lacks these methods nothing
changes.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def compose_alike_once() -> None:
    """From here on, an entry with the choices and the keys of an earlier one is that one, with its own values."""
    from hydra._internal import config_loader_impl as hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = hydra.ConfigLoaderImpl
    original = getattr(loader, "load_sweep_config", None)
    there = hasattr(hydra, "get_overrides_dirname") and hasattr(loader, "_apply_overrides_to_config")
    if original is None or not there or hasattr(original, "__wrapped__"):  # the last: it was called before
        return
    whole: list[DictConfig] = []  # the multirun that the templates are of
    templates: dict[tuple[tuple[str, ...], tuple[str, ...]], DictConfig] = {}

    @functools.wraps(original)
    def load_sweep_config(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        if not whole or whole[0] is not master_config:
            whole[:] = [master_config]
            templates.clear()
        overrides = OverridesParser.create().parse_overrides(sweep_overrides)
        values = [override for override in overrides if is_value(self, override)]
        choices = [override for override in overrides if is_choice(self, override)]
        if len(values) + len(choices) < len(overrides):  # what is added, removed or merged depends on the order
            return cast("DictConfig", original(self, master_config, sweep_overrides))
        key = tuple(str(o.input_line) for o in choices), tuple(o.key_or_group for o in values)
        if key not in templates:
            templates[key] = original(self, master_config, sweep_overrides)
            return copy.deepcopy(templates[key])
        entry = copy.deepcopy(templates[key])
        self._apply_overrides_to_config(values, entry)
        entry.hydra.overrides.task = [override.input_line for override in overrides]
        names = entry.hydra.job.config.override_dirname
        entry.hydra.job.override_dirname = hydra.get_overrides_dirname(
            overrides=overrides, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        hydra.OmegaConf.copy_cache(from_config=master_config, to_config=entry)
        return entry

    loader.load_sweep_config = load_sweep_config  # type: ignore[method-assign]


def is_choice(loader: ConfigLoaderImpl, override: Override) -> bool:
    """Whether it chooses a file of a group that is not Hydra's own."""
    return changes(override) and loader.repository.group_exists(override.key_or_group)


def is_value(loader: ConfigLoaderImpl, override: Override) -> bool:
    """Whether it gives a setting a value which takes the place of the one before, whatever that was."""
    key = override.key_or_group
    return changes(override) and not loader.repository.group_exists(key) and not isinstance(override.value(), dict)


def changes(override: Override) -> bool:
    plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.is_sweep_override())
    return plain and override.package is None and not override.is_hydra_override()
