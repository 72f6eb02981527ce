"""The machine and software versions under which a run measures."""

from __future__ import annotations

import os
from typing import Any

from mirabelle.run.machine import processor_name


def environment() -> dict[str, Any]:
    """Versions of Python and packages, operating system, processor, number of cores and threads, as JSON-compatible data."""
    import platform
    from importlib.metadata import version

    import torch

    packages = ("mirabelle", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "constriction", "scikit-learn")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in packages},
    }
