"""torch reads the translations of two thousand operators for every export; tests, which export hundreds, read them once."""

from __future__ import annotations

from typing import Any


def read_once() -> None:
    """From now on every export of this process starts from one table of translations."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = _registration.ONNXRegistry
    read, known = registry.from_torchlib.__func__, {}

    def from_torchlib(cls: Any, opset_version: int) -> Any:
        if opset_version not in known:
            known[opset_version] = read(cls, opset_version)
        table = cls()
        table._opset_version = opset_version
        table.functions = {name: list(found) for name, found in known[opset_version].functions.items()}
        return table

    registry.from_torchlib = classmethod(from_torchlib)
