"""The rows as one table of comma-separated values, for spreadsheets: RUN/csv/metrics.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from lawa_exp.axes.logger.rows import Payload, Steps
from lawa_exp.axes.logger.settings import LoggerSettings
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.files import write_text_atomically


@dataclass(frozen=True)
class CsvLogger(LoggerSettings):
    """A line for each step that has rows, a column for each of W&B's keys (`rows.py`), in the order they first come."""

    title = "CSV"

    def sender(self, run: RunDir, watch: int | None = None) -> CsvSender:
        return CsvSender(run)


class CsvSender:
    """Lines are appended; a step with a new key makes the file anew."""

    url = None

    def __init__(self, run: RunDir) -> None:
        self.run, self.file = run, run.path / "csv" / "metrics.csv"
        self.steps = Steps(run.metrics, run.timing)
        self.columns: list[str] = []

    def send(self, whole: bool) -> None:
        new = [row for _, row in self.steps.new(whole)]
        found = dict.fromkeys(key for row in new for key in row if key not in self.columns)
        if not found:
            if new:
                with self.file.open("a", newline="") as file:
                    file.write(table(self.columns, new))
            return
        earlier = []
        if self.columns:
            with self.file.open(newline="") as file:
                earlier = list(csv.DictReader(file))
        self.columns += found
        titles = {name: name for name in self.columns}
        write_text_atomically(self.file, table(self.columns, [titles, *earlier, *new]))

    def finish(self) -> int:
        self.send(whole=bool(self.run.marker()))
        return self.steps.count


def table(columns: list[str], rows: list[Payload]) -> str:
    """The lines of rows; a value that a row lacks is empty."""
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()
