"""What a layer sees while batches run: ranges, columns of its inputs, and their moments."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.calibration.ranges import Range, activation_ranges

__all__ = [
    "Range",
    "activation_ranges",
]
__getattr__ = lazily(
    "mirabelle.calibration",
    {
        "ranges": ["Range", "activation_ranges"],
    },
)
