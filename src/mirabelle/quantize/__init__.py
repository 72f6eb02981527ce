"""Steps that store numbers in fewer bits: one file a step."""

from mirabelle.quantize.dynamic import Dynamic
from mirabelle.quantize.layers import DynamicLayer, StaticLayer
from mirabelle.quantize.static import Static

__all__ = ["Dynamic", "DynamicLayer", "Static", "StaticLayer"]
