"""Export to ONNX, runtimes, latency measurements, and gates that check that two forms of a model agree."""

from typing import NamedTuple

from mirabelle.lazy import lazily


class Listed(NamedTuple):
    """An entry of the table of runtimes; the runtime itself is imported when it is first used.

    Args:
        class_name: name of the subclass of `Runtime`, in the module with the runtime's name.
        title: its name in sentences and tables.
    """

    class_name: str
    title: str


RUNTIMES = {
    "onnxruntime": Listed("OnnxRuntime", "ONNX Runtime"),
}
__getattr__ = lazily("mirabelle.runtime", {module: [listed.class_name] for module, listed in RUNTIMES.items()})
