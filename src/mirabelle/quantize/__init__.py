"""Quantization steps, which store weights, and optionally compute activations, in few bits."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily
from mirabelle.quantize.aware import Aware
from mirabelle.quantize.bits import MixedBits
from mirabelle.quantize.codebook import Codebook
from mirabelle.quantize.dynamic import Dynamic
from mirabelle.quantize.entropy_constrained import EntropyConstrained
from mirabelle.quantize.half import Half
from mirabelle.quantize.rate_distortion import RateDistortion
from mirabelle.quantize.static import Static
from mirabelle.quantize.weights import Weights

if TYPE_CHECKING:
    from mirabelle.quantize.batch_norm_folding import FoldedNorm
    from mirabelle.quantize.codebook_layer import CodebookLayer
    from mirabelle.quantize.group_layer import GroupLayer
    from mirabelle.quantize.half_layer import HalfLayer
    from mirabelle.quantize.layers import DynamicLayer, RoundedValue, StaticLayer, TokenLayer, WeightLayer

__all__ = [
    "Aware",
    "Codebook",
    "CodebookLayer",
    "Dynamic",
    "DynamicLayer",
    "EntropyConstrained",
    "FoldedNorm",
    "GroupLayer",
    "Half",
    "HalfLayer",
    "MixedBits",
    "RateDistortion",
    "RoundedValue",
    "Static",
    "StaticLayer",
    "TokenLayer",
    "WeightLayer",
    "Weights",
]
__getattr__ = lazily(
    "mirabelle.quantize",
    {
        "batch_norm_folding": ["FoldedNorm"],
        "codebook_layer": ["CodebookLayer"],
        "group_layer": ["GroupLayer"],
        "half_layer": ["HalfLayer"],
        "layers": ["DynamicLayer", "RoundedValue", "StaticLayer", "TokenLayer", "WeightLayer"],
    },
)
