"""Inspect a model: its layers, the groups of units that can be removed, and the sensitivity of each part to pruning."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.inspection.layers import Layer, layers_of_module, layers_of_onnx
    from mirabelle.inspection.sensitivity import Sensitivity, sensitivity_of
    from mirabelle.inspection.structure import Structure, structure_of

__all__ = [
    "Layer",
    "Sensitivity",
    "Structure",
    "layers_of_module",
    "layers_of_onnx",
    "sensitivity_of",
    "structure_of",
]
__getattr__ = lazily(
    "mirabelle.inspection",
    {
        "layers": ["Layer", "layers_of_module", "layers_of_onnx"],
        "sensitivity": ["Sensitivity", "sensitivity_of"],
        "structure": ["Structure", "structure_of"],
    },
)
