"""Load ONNX files from any exporter as PyTorch modules, which can be trained, pruned, quantized and exported again."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.sources.models.onnx_graph.loading import module_from_onnx
    from mirabelle.sources.models.onnx_graph.module import OnnxModule

__all__ = [
    "OnnxModule",
    "module_from_onnx",
]
__getattr__ = lazily(
    "mirabelle.sources.models.onnx_graph",
    {
        "loading": ["module_from_onnx"],
        "module": ["OnnxModule"],
    },
)
