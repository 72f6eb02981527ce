"""Jobs: check and forecast a recipe, run it, evaluate and report the result, compare recipes, and verify artifacts."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.job.block_by_block import LargeResult, compress_large
    from mirabelle.job.comparison import compare
    from mirabelle.job.comparison_results import Budget, Comparison
    from mirabelle.job.job import Source, compress
    from mirabelle.job.result import Result

__all__ = [
    "Budget",
    "Comparison",
    "LargeResult",
    "Result",
    "Source",
    "compare",
    "compress",
    "compress_large",
]
__getattr__ = lazily(
    "mirabelle.job",
    {
        "block_by_block": ["LargeResult", "compress_large"],
        "comparison": ["compare"],
        "comparison_results": ["Budget", "Comparison"],
        "job": ["Source", "compress"],
        "result": ["Result"],
    },
)
