"""Hydra's part in a multirun: it composes the entries, and lawa_exp runs them once Hydra is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

COMPOSED: list[tuple[Any, list[str]]] = []  # (configuration, overrides) of each entry
CLUSTER: dict[str, Any] = {}  # the settings of hydra/launcher=slurm, where that is chosen


class Collect(Launcher):
    """Composes every entry and starts none."""

    started = False  # whether a multirun got as far as to its launcher

    def __init__(self) -> None:
        CLUSTER.clear()

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config = hydra_context, config
        Collect.started = True

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lawa_exp.launch.recipes import with_recipe

        compose = self.context.config_loader.load_sweep_config
        for overrides in map(list, job_overrides):
            config = compose(self.config, overrides)
            model = config.hydra.runtime.choices.model
            named = with_recipe(overrides, model, str(config.recipe))
            if named[-1] != f"model={model}":
                config = compose(self.config, named)
            COMPOSED.append((config, overrides))
        return []


class Slurm(Collect):
    """The same, and keeps what is asked of the cluster."""

    def __init__(self, **settings: Any) -> None:
        CLUSTER.update(settings)
