"""Only Mirabelle's own lines reach the terminal: messages of the libraries that it calls are kept back."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Read by the libraries when they are imported, for messages that pass neither `warnings` nor `logging`.
_LEVELS = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@contextmanager
def own_lines_only(*, verbose: bool = False) -> Iterator[None]:
    """A context in which warnings and log messages of libraries are not printed.

    What a user must know of them is told as a note of `check`, the run and the report, see `job.notes`. Variables of the
    environment that are set keep their values, and warnings that Python is asked to show (-W, PYTHONWARNINGS) are shown.

    Args:
        verbose: keep nothing back.
    """
    if verbose:
        yield
        return
    for name, level in _LEVELS.items():
        os.environ.setdefault(name, level)
    before = logging.root.manager.disable
    logging.disable(max(logging.ERROR, before))
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
