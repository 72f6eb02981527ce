"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import Array
from mirabelle.run.machine import int8_saturates
from mirabelle.runtime.runtime import Description, Runtime, Session

EXACT_INTEGERS = ("session.x64quantprecision", "1")  # otherwise sums of uint8 · int8 saturate on processors without VNNI
NO_IDLE_SPINNING = ("session.force_spinning_stop", "1")  # otherwise idle threads of a session slow down the next measurement
SHARING = "ConstantSharing"  # this optimizer breaks exact integers if two layers have equal zero points
_PROVIDERS = ("CPUExecutionProvider",)
_REORDERS = ("ReorderInput", "ReorderOutput")  # changes of the memory layout, which ONNX Runtime adds


class OnnxRuntime(Runtime):
    """ONNX Runtime with its CPU kernels."""

    def describe(self) -> Description:
        return Description("onnxruntime", "ONNX Runtime", library().__version__, "cpu", _PROVIDERS)

    def load(self, model: bytes, threads: int) -> OnnxSession:
        return OnnxSession(model, threads)

    def operator_milliseconds(
        self, model: bytes, feed: Mapping[str, Array], *, threads: int, runs: int
    ) -> Mapping[str, Sequence[float]]:
        names = sorted((node.name for node in ModelProto.FromString(model).graph.node if node.name), key=len, reverse=True)
        with tempfile.TemporaryDirectory() as folder:
            options = _options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = library().InferenceSession(model, options, providers=list(_PROVIDERS))
            for _ in range(runs):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        times: dict[str, list[float]] = defaultdict(list)
        for event in events:
            given, kind = event["name"], event.get("args", {}).get("op_name")
            if event.get("cat") == "Node" and given.endswith("_kernel_time") and kind not in _REORDERS:
                # The name of an operator in another memory layout is the name of its output with a suffix.
                name = next((name for name in names if given.startswith(name)), None)
                if name is not None:
                    times[name].append(event["dur"] / 1e3)
        return times


class OnnxSession(Session):
    """A model loaded into ONNX Runtime on the CPU.

    Args:
        model: bytes of an ONNX file.
        threads: number of threads of an operator.

    Raises:
        UserError: E141 if ONNX Runtime cannot load the file.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        options = _options(threads)
        if int8_saturates():
            options.add_session_config_entry(*EXACT_INTEGERS)
        try:
            self._session = library().InferenceSession(
                model, options, providers=list(_PROVIDERS), disabled_optimizers=[SHARING]
            )
        except Exception as error:
            raise UserError("E141", f"ONNX Runtime cannot load the model: {error}", "export it again") from error
        names = [[value.name for value in values] for values in (self._session.get_inputs(), self._session.get_outputs())]
        super().__init__("onnxruntime", threads, *names)

    def run(self, feed: Mapping[str, Array]) -> Sequence[Any]:
        outputs: Sequence[Any] = self._session.run(None, feed)
        return outputs


def library() -> Any:
    """The package onnxruntime, imported with its telemetry off: otherwise a thread of it reports which models are run.

    The environment variable ORT_DISABLE_TELEMETRY=0 allows these reports.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _options(threads: int) -> Any:
    """Session options: the number of threads of an operator, no spinning of idle threads, and a log of errors only."""
    options = library().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(*NO_IDLE_SPINNING)
    return options
