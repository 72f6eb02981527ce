"""The versions of operators that a file names, and whether that of ONNX may be raised after the export."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, helper

# Operators whose meaning changed between the opset of the exporter and the latest one that is written.
_CHANGED = {"GridSample", "DFT", "GroupNormalization"}


def opsets_of(model: ModelProto) -> dict[str, int]:
    """The version of each domain; that of ONNX itself is ""."""
    return {entry.domain: entry.version for entry in model.opset_import}


def set_opsets(model: ModelProto, versions: Mapping[str, int]) -> None:
    """Name the version of each domain, in place."""
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())


def can_be_raised(model: ModelProto) -> bool:
    """Whether all operators of a graph mean the same in later opsets."""
    return not {node.op_type for node in model.graph.node} & _CHANGED
