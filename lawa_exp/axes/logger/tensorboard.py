"""The rows as scalars in TensorBoard's own files: `tensorboard --logdir RUNS` shows every run below that folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from lawa_exp.axes.logger.rows import Steps
from lawa_exp.axes.logger.settings import LoggerSettings
from lawa_exp.storage.rundir import RunDir


@dataclass(frozen=True)
class TensorBoardLogger(LoggerSettings):
    """One file in RUN/tensorboard, written whole at each start: a scalar for each of W&B's keys (`rows.py`)."""

    title = "TensorBoard"
    package = "tensorboard"

    def sender(self, run: RunDir, watch: int | None = None) -> TensorBoardSender:
        return TensorBoardSender(run)


class TensorBoardSender:
    """Earlier files of the run make way: the new one has their rows, as the run's files have them now."""

    url = None

    def __init__(self, run: RunDir) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.run, folder = run, run.path / "tensorboard"
        self.steps = Steps(run.metrics, run.timing)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self.writer = EventFileWriter(str(folder))
        self._text("configuration", run.read_config() or {})

    def send(self, whole: bool) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for step, row in self.steps.new(whole):
            scalars = [
                Summary.Value(tag=tag, simple_value=value) for tag, value in row.items() if is_scalar(tag, value)
            ]
            self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self.writer.flush()

    def finish(self) -> int:
        self.send(whole=bool(self.run.marker()))
        self.writer.close()
        return self.steps.count

    def _text(self, tag: str, content: Mapping[str, object]) -> None:
        """A mapping in the tab of texts."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.util.tensor_util import make_tensor_proto

        text = "\n".join(f"    {line}" for line in json.dumps(content, indent=1, default=str).splitlines())
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(text.encode()))
        self.writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))


def is_scalar(tag: str, value: object) -> bool:
    return tag != "step" and isinstance(value, int | float) and not isinstance(value, bool)
