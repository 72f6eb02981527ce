"""The machine and software versions under which a run measures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from mirabelle.run.launch import launched
from mirabelle.run.machine import processor_name


def environment(modules: Iterable[str] = (), device: str = "cpu") -> dict[str, Any]:
    """Versions of Python and packages, operating system, processor, number of cores and threads, as JSON-compatible data.

    Args:
        modules: names of modules that the model uses; the versions of their packages are included if they are known.
        device: with which models compute, with its name. The number of processes is added if there are several, and for a CUDA
            device what computes in TF32 where float32 is asked for.
    """
    import platform
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version

    import torch

    packages = ("mirabelle", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "constriction", "scikit-learn")
    launch = launched()
    versions = {name: version(name) for name in packages}
    for name in sorted({module.partition(".")[0] for module in modules} - {*packages, *sys.stdlib_module_names}):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        **({} if launch is None else {"processes": launch.count}),
        **({"tf32": _in_tf32()} if device.startswith("cuda") else {}),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
    }


def _in_tf32() -> str:
    """What torch computes in TF32, with ten bits of precision, when tensors are float32."""
    import torch

    allowed = {
        "convolutions": torch.backends.cudnn.allow_tf32,
        "products of matrices": torch.backends.cuda.matmul.allow_tf32,
    }
    return ", ".join(name for name, value in allowed.items() if value) or "nothing"
