"""Contract tests for authors of new steps, terms, scores, codecs, runtimes and replaced modules.

Each function raises an AssertionError that describes the part of the contract that is violated.
"""

from mirabelle.testing.codecs import check_codec
from mirabelle.testing.replacements import check_replacement
from mirabelle.testing.runtimes import check_runtime
from mirabelle.testing.scores import check_score
from mirabelle.testing.steps import check_step
from mirabelle.testing.terms import check_term

__all__ = ["check_codec", "check_replacement", "check_runtime", "check_score", "check_step", "check_term"]
