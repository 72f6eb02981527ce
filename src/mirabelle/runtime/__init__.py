"""Export to ONNX, runtimes, latency measurements, and gates that check that two forms of a model agree."""

from typing import NamedTuple

from mirabelle.lazy import lazily


class Listed(NamedTuple):
    """An entry of the table of runtimes; the runtime itself is imported when it is first used.

    Args:
        class_name: name of the subclass of `Runtime`.
        title: its name in sentences and tables.
        module: of the class, and name of the package that it uses.
    """

    class_name: str
    title: str
    module: str


RUNTIMES = {
    "onnxruntime": Listed("OnnxRuntime", "ONNX Runtime", "onnxruntime"),
    "onnxruntime_extended": Listed("OnnxRuntimeExtended", "ONNX Runtime at level extended", "onnxruntime"),
    "onnxruntime_cuda": Listed("OnnxRuntimeCuda", "ONNX Runtime with CUDA", "onnxruntime"),
    "openvino": Listed("OpenVino", "OpenVINO", "openvino"),
    "openvino_bf16": Listed("OpenVinoBf16", "OpenVINO in bfloat16", "openvino"),
}
_MODULES = {listed.module for listed in RUNTIMES.values()}
__getattr__ = lazily(
    "mirabelle.runtime",
    {module: [listed.class_name for listed in RUNTIMES.values() if listed.module == module] for module in sorted(_MODULES)},
)
