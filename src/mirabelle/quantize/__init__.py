"""Steps that store numbers in fewer bits: one file a step."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily
from mirabelle.quantize.dynamic import Dynamic
from mirabelle.quantize.static import Static

if TYPE_CHECKING:
    from mirabelle.quantize.folding import FoldedNorm
    from mirabelle.quantize.layers import DynamicLayer, StaticLayer

__all__ = ["Dynamic", "DynamicLayer", "FoldedNorm", "Static", "StaticLayer"]
__getattr__ = lazily("mirabelle.quantize", {"DynamicLayer": "layers", "FoldedNorm": "folding", "StaticLayer": "layers"})
