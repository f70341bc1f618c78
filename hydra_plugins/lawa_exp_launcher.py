"""Hydra's part in a multirun: it composes the entries, and lawa_exp runs them once Hydra is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from lawa_exp.system.prefixed import prefixed

COMPOSED: list[tuple[Any, list[str]]] = []  # (configuration, overrides) of each entry
CLUSTER: dict[str, Any] = {}  # the settings of hydra/launcher=slurm, where that is chosen


class Collect(Launcher):
    """Composes every entry, for lawa_exp to train; a sweeper that chooses by values has them trained at once."""

    started = False  # whether a multirun got as far as to its launcher

    def __init__(self) -> None:
        CLUSTER.clear()

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.config = hydra_context, config
        Collect.started = True

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lawa_exp.launch import job
        from lawa_exp.launch.recipes import composed

        entries = [composed(self.context.config_loader, self.config, list(own)) for own in job_overrides]
        if self.config.hydra.sweeper._target_ == job.SWEEPER:
            COMPOSED.extend((config, job.without_name(own)) for config, own in entries)
            return []
        job.restore_words(self.config)
        with prefixed(""):
            values = job.train(entries)
        return [returned(own, value) for (_, own), value in zip(entries, values, strict=True)]


def returned(overrides: list[str], value: float | Exception) -> JobReturn:
    """What a sweeper that chooses by values is given."""
    failed = isinstance(value, Exception)
    done = JobReturn(overrides=overrides, status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
    done.return_value = value
    return done


class Slurm(Collect):
    """The same, and keeps what is asked of the cluster."""

    def __init__(self, **settings: Any) -> None:
        CLUSTER.update(settings)
