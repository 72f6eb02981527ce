"""OpenVINO on the CPU, in float32 or in the precision that it chooses for speed, on the same ONNX files."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from onnx import ModelProto

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import Array
from mirabelle.runtime.runtime import Description, Runtime, Session
from mirabelle.runtime.signature import signature_of
from mirabelle.runtime.views import structure_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_TELEMETRY = "openvino_telemetry"
_NOISE = ("Exception from", "Check '", "[ GENERAL_ERROR ]", "FrontEnd API failed")


class OpenVino(Runtime):
    """OpenVINO with its CPU kernels, in float32: what it computes is compared with torch and ONNX Runtime."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    precision: ClassVar[str] = "f32"

    def describe(self) -> Description:
        version = str(library().__version__).partition("-")[0]
        return Description(self.name, self.title, version, "cpu", ("CPU", self.precision))

    def load(self, model: bytes, threads: int) -> OpenVinoSession:
        core = _core()
        with self._explained():
            read = core.read_model(model)
        inputs, outputs = signature_of(structure_of(model))
        return OpenVinoSession(self, read, threads, [value.name for value in inputs], [value.name for value in outputs])

    def compiled(self, model: Any, threads: int, **settings: Any) -> Any:
        """A compiled model of the package, from one that it has read.

        Raises:
            UserError: E141 if OpenVINO cannot load the file.
        """
        accurate = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0} if self.precision == "f32" else {}
        asked = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            **accurate,
            **settings,
        }
        core = _core()
        with self._explained():
            return core.compile_model(model, "CPU", asked)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UserError("E141", f"{self.title} cannot load the model: {reason(error)}", "use onnxruntime") from error

    def operator_milliseconds(
        self, model: bytes, feed: Mapping[str, Array], *, threads: int, runs: int
    ) -> Mapping[str, Sequence[float]]:
        proto = ModelProto.FromString(model)
        for node in proto.graph.node:
            node.name = node.output[0]
        names = {node.name for node in proto.graph.node}
        read = _core().read_model(proto.SerializeToString())
        request = self.compiled(read, threads, PERF_COUNT=True).create_infer_request()
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(runs):
            request.infer(dict(feed))
            for one in request.profiling_info:
                if one.status == one.Status.EXECUTED and one.node_name in names:
                    times[one.node_name].append(one.real_time.total_seconds() * 1e3)
        return times


class OpenVinoBf16(OpenVino):
    """OpenVINO with bfloat16 where the processor has it: faster, with about three digits. This is its own default there."""

    name: ClassVar[str] = "openvino_bf16"
    title: ClassVar[str] = "OpenVINO in bfloat16"
    precision: ClassVar[str] = "bf16"

    def usable(self) -> bool:
        return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoSession(Session):
    """A model loaded into OpenVINO on the CPU.

    Args:
        runtime: that loads it.
        model: an ONNX file as OpenVINO has read it; compiling it anew leaves it as it is.
        threads: number of threads.
        inputs: names of the inputs of the ONNX file, in its order.
        outputs: names of its outputs.
    """

    def __init__(self, runtime: OpenVino, model: Any, threads: int, inputs: list[str], outputs: list[str]) -> None:
        super().__init__(runtime.name, threads, inputs, outputs)
        self._runtime, self._model = runtime, model
        compiled = runtime.compiled(model, threads)
        self._request = compiled.create_infer_request()
        self._ports = {name: compiled.input(name) for name in inputs}

    def anew(self) -> OpenVinoSession:
        return OpenVinoSession(self._runtime, self._model, self.threads, self.input_names, self.output_names)

    def run(self, feed: Mapping[str, Array]) -> Sequence[Any]:
        results = self._request.infer({self._ports[name]: array for name, array in feed.items()}, share_inputs=True)
        return [results[name] for name in self.output_names]


def library() -> Any:
    """The package openvino, imported without its telemetry: importing it tells a server of Google that it was imported.

    Raises:
        UserError: E160 if it is not installed.
    """
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise UserError("E160", f"this runtime needs openvino: {error}", "pip install 'mirabelle[openvino]'") from error
    return openvino


def reason(error: Exception) -> str:
    """The line of a message of OpenVINO that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    found = [line for line in lines if line and not line.startswith(_NOISE)]
    return next(iter(found), type(error).__name__)


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let the import of the package for telemetry fail, unless somebody has imported it before."""
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what Python takes as: it cannot be imported
    try:
        yield
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]


_cores: list[Any] = []


def _core() -> Any:
    """The one core of this process; making it loads the plugins."""
    if not _cores:
        _cores.append(library().Core())
    return _cores[0]
