"""Writes rows to TensorBoard event files.

Records are written directly with the file formats of TensorBoard, not through `SummaryWriter`, which writes in a thread: there,
an error such as a full disk is reported late and with a traceback.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mirabelle.run.tracking.rows import TrackedRow

_FILE_VERSION = "brain.Event:2"


class TensorBoard:
    """An event file in <folder>/tensorboard; each process that works on the run writes its own.

    Each file contains the run from its beginning. It starts with a session-start record, at which TensorBoard discards the data
    of earlier files.

    Args:
        folder: of the run.
        recipe: text of the resolved recipe, shown in TensorBoard under "recipe".
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory = folder / "tensorboard"
        directory.mkdir(parents=True, exist_ok=True)
        self._event = event_pb2.Event
        self._file = (directory / _file_name()).open("xb")
        self._records = RecordWriter(self._file)
        try:
            self._add(time.time(), file_version=_FILE_VERSION)
            self._add(time.time(), step=0, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            self._add(time.time(), step=0, summary=_text("recipe", f"```toml\n{recipe}\n```"))
            self._file.flush()
        except BaseException:
            self.abandon()
            raise

    def write(self, row: TrackedRow) -> None:
        self._add(row.time, step=row.position, summary=_scalars(row))
        self._file.flush()  # so that nothing is lost if the process is killed; the whole call takes 0.1 ms

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        with suppress(OSError):
            self._file.close()

    def _add(self, wall_time: float, **content: Any) -> None:
        self._records.write(self._event(wall_time=wall_time, **content).SerializeToString())


def _file_name() -> str:
    """A unique file name. TensorBoard reads files with "tfevents" in their name, in alphabetical order."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{os.getpid()}"


def _scalars(row: TrackedRow) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in row.scalars.items()])


def _text(name: str, markdown: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=shape)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])
