"""The digest in an exported file notices every byte."""

from __future__ import annotations

import torch
from onnx import ModelProto
from torch import nn

from mirabelle.artifact.foreign import pack_any
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.export import export
from mirabelle.runtime.seal import SEAL, is_as_written
from mirabelle.task.batch import Batch


def test_a_bit_of_any_byte_is_noticed() -> None:
    torch.manual_seed(0)
    data = export(nn.Linear(3, 2), Batch(torch.randn(2, 3), torch.zeros(2)))
    assert is_as_written(data) is True
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        assert is_as_written(bytes(flipped)) is not True


def test_a_canonical_file_stays_as_it_is() -> None:
    data = export(nn.Linear(3, 2), Batch(torch.randn(2, 3), torch.zeros(2)))
    assert canonical(ModelProto.FromString(data), {}) == data
    assert [entry.key for entry in ModelProto.FromString(data).metadata_props].count(SEAL) == 1


def test_packing_gives_a_changed_file_no_new_digest() -> None:
    model = ModelProto.FromString(export(nn.Linear(3, 2), Batch(torch.randn(2, 3), torch.zeros(2))))
    model.graph.doc_string = "changed"
    assert is_as_written(model.SerializeToString(deterministic=True)) is False
    assert is_as_written(pack_any(model.SerializeToString(deterministic=True)).onnx) is False
