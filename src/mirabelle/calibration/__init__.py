"""Calibration: ranges of activations, and inputs of layers and their moments, from calibration data in bounded batches."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.calibration.columns import Columns, columns_of
    from mirabelle.calibration.moments import Moments, damped, least_squares
    from mirabelle.calibration.passes import layer_by_layer
    from mirabelle.calibration.ranges import Range, activation_ranges
    from mirabelle.calibration.samples import CalibrationSamples, DrawnRows, SampleBatches

__all__ = [
    "CalibrationSamples",
    "Columns",
    "DrawnRows",
    "Moments",
    "Range",
    "SampleBatches",
    "activation_ranges",
    "columns_of",
    "damped",
    "layer_by_layer",
    "least_squares",
]
__getattr__ = lazily(
    "mirabelle.calibration",
    {
        "columns": ["Columns", "columns_of"],
        "moments": ["Moments", "damped", "least_squares"],
        "passes": ["layer_by_layer"],
        "ranges": ["Range", "activation_ranges"],
        "samples": ["CalibrationSamples", "DrawnRows", "SampleBatches"],
    },
)
