"""ONNX Runtime on the CPU, and on CUDA devices where its package for them is installed."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import Array
from mirabelle.run.machine import int8_saturates
from mirabelle.runtime.initializers import with_own_integer_weights
from mirabelle.runtime.runtime import Description, OperatorShapes, Runtime, Session
from mirabelle.runtime.views import Viewed, viewed, worth_viewing

EXACT_INTEGERS = ("session.x64quantprecision", "1")  # otherwise sums of uint8 · int8 saturate on processors without VNNI
NO_IDLE_SPINNING = ("session.force_spinning_stop", "1")  # otherwise idle threads of a session slow down the next measurement
SHARING = "ConstantSharing"  # this optimizer breaks exact integers if two layers have equal zero points
_SILENT = 4  # of the levels of its log, 0 to 4; what fails is raised, too
_PROVIDERS, _CUDA = ("CPUExecutionProvider",), "CUDAExecutionProvider"
_KERNEL = "_kernel_time"  # the end of the name of an operator's event
_FUSED = "fused "  # the beginning of the name of an operator with an activation
_REORDERS = ("ReorderInput", "ReorderOutput")  # changes of the memory layout, which ONNX Runtime adds


class OnnxRuntime(Runtime):
    """ONNX Runtime with its CPU kernels and all of its optimizations."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"
    level: ClassVar[str] = "ORT_ENABLE_ALL"
    providers: ClassVar[tuple[str, ...]] = _PROVIDERS

    def describe(self) -> Description:
        return Description(self.name, self.title, library().__version__, "cpu", self.providers)

    def load(self, model: bytes, threads: int) -> OnnxSession:
        return OnnxSession(model, threads, self)

    def operator_milliseconds(
        self, model: bytes, feed: Mapping[str, Array], *, threads: int, runs: int
    ) -> Mapping[str, Sequence[float]]:
        given = viewed(model)
        for node in given.proto.graph.node:
            node.name = node.output[0]
        names = sorted((node.name for node in given.proto.graph.node if node.name), key=len, reverse=True)
        events = _profiled(given, feed, _options(threads, self.level), runs, self.providers)
        times: dict[str, list[float]] = defaultdict(list)
        for event in events:
            told, kind = event["name"].removeprefix(_FUSED), event.get("args", {}).get("op_name")
            if kind not in _REORDERS:
                # The name of an operator in another memory layout is the name of its output with a suffix.
                name = next((name for name in names if told.startswith(name)), None)
                if name is not None:
                    times[name].append(event["dur"] / 1e3)
        return times

    def operator_shapes(self, model: bytes, feed: Mapping[str, Array]) -> list[OperatorShapes]:
        options = _options(1, "ORT_DISABLE_ALL")  # every node runs as it is
        return [
            OperatorShapes(
                event["name"].removesuffix(_KERNEL),
                [tuple(shape) for value in event["args"]["input_type_shape"] for shape in value.values()],
                [tuple(shape) for value in event["args"]["output_type_shape"] for shape in value.values()],
            )
            for event in _profiled(viewed(model), feed, options, runs=1, providers=_PROVIDERS)
        ]


class OnnxRuntimeExtended(OnnxRuntime):
    """ONNX Runtime without changes of the memory layout (graph optimization level "extended"); faster for some small models."""

    name: ClassVar[str] = "onnxruntime_extended"
    title: ClassVar[str] = "ONNX Runtime at level extended"
    level: ClassVar[str] = "ORT_ENABLE_EXTENDED"


class OnnxRuntimeCuda(OnnxRuntime):
    """ONNX Runtime with its kernels for CUDA devices, without TF32; operators without such a kernel run on the CPU.

    Times include the copies of inputs and outputs.
    """

    name: ClassVar[str] = "onnxruntime_cuda"
    title: ClassVar[str] = "ONNX Runtime with CUDA"
    providers: ClassVar[tuple[str, ...]] = (_CUDA, *_PROVIDERS)

    def describe(self) -> Description:
        return dataclasses.replace(super().describe(), device="cuda")

    def usable(self) -> bool:
        return _CUDA in library().get_available_providers()


class OnnxSession(Session):
    """A model loaded into ONNX Runtime.

    Args:
        model: bytes of an ONNX file.
        threads: number of threads of an operator.
        runtime: with the level of its optimizations.

    Raises:
        UserError: E141 if ONNX Runtime cannot load the file; E122 if it would run it without the first of its providers.
    """

    def __init__(self, model: bytes, threads: int, runtime: OnnxRuntime | None = None) -> None:
        self._model, self._runtime = model, runtime or OnnxRuntime()
        self._session, self._views = self._loaded(threads)
        names = [[value.name for value in values] for values in (self._session.get_inputs(), self._session.get_outputs())]
        super().__init__(self._runtime.name, threads, *names)

    def _loaded(self, threads: int) -> tuple[Any, list[Any]]:
        """(session, the values in the bytes of the model that it reads)."""
        options, model = _options(threads, self._runtime.level), self._model
        try:
            if int8_saturates():
                options.add_session_config_entry(*EXACT_INTEGERS)
                model = with_own_integer_weights(model)
            views: list[Any] = []
            if worth_viewing(model):
                given = viewed(model)
                views = _with_views(options, given)
                model = given.proto.SerializeToString() if views else model
            chosen = self._runtime.providers
            session = library().InferenceSession(model, options, providers=_asked(chosen), disabled_optimizers=[SHARING])
        except Exception as error:
            raise UserError("E141", f"ONNX Runtime cannot load the model: {error}", "export it again") from error
        if session.get_providers()[0] != chosen[0]:  # it goes on with the others, and says so in its log alone
            message = (
                f"{chosen[0]} of ONNX Runtime does not work here; it would run the model with {session.get_providers()[0]}"
            )
            raise UserError("E122", message, "install onnxruntime-gpu with the versions of CUDA and cuDNN that it needs")
        return session, views

    def anew(self) -> OnnxSession:
        return OnnxSession(self._model, self.threads, self._runtime)

    def release(self) -> None:
        self._session, self._views = None, []

    def run(self, feed: Mapping[str, Array]) -> Sequence[Any]:
        if self._session is None:
            self._session, self._views = self._loaded(self.threads)
        outputs: Sequence[Any] = self._session.run(None, feed)
        return outputs


def _asked(providers: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options: products in float32 are computed in float32, not in TF32."""
    return [(name, {"use_tf32": "0"} if name == _CUDA else {}) for name in providers]


def library() -> Any:
    """The package onnxruntime, imported with its telemetry off: otherwise a thread of it reports which models are run.

    The environment variable ORT_DISABLE_TELEMETRY=0 allows these reports.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.set_default_logger_severity(_SILENT)
    return onnxruntime


def _with_views(options: Any, model: Viewed) -> list[Any]:
    """Let a session read tensors from where they are; the values that must live as long as the session."""
    values = [library().OrtValue.ortvalue_from_numpy(array) for array in model.tensors.values()]
    if values:
        options.add_external_initializers(list(model.tensors), values)
    return values


def _profiled(
    model: Viewed, feed: Mapping[str, Array], options: Any, runs: int, providers: Sequence[str]
) -> list[dict[str, Any]]:
    """The events of all operators in some runs of a model, in the order in which they ended."""
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        views = _with_views(options, model)
        session = library().InferenceSession(model.proto.SerializeToString(), options, providers=_asked(providers))
        for _ in range(runs):
            session.run(None, feed)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        del session, views
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]


def _options(threads: int, level: str) -> Any:
    """Session options: threads of an operator, level of optimizations; no spinning of idle threads, no log."""
    options = library().SessionOptions()
    options.graph_optimization_level = getattr(library().GraphOptimizationLevel, level)
    options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT
    options.add_session_config_entry(*NO_IDLE_SPINNING)
    return options
