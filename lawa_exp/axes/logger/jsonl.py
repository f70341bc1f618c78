"""Rows on the disk alone."""

from __future__ import annotations

from dataclasses import dataclass

from lawa_exp.config.shared import Logger


@dataclass(frozen=True)
class JsonlLogger(Logger):
    """Rows in metrics.jsonl and timing.jsonl, which every run writes."""
