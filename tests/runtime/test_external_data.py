"""ONNX models with tensors in files beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mirabelle.artifact.reading import onnx_of
from mirabelle.errors import UserError
from mirabelle.runtime.external_data import read_model
from mirabelle.sources.models.onnx_graph import module_from_onnx

WEIGHT = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model with its weight in model.onnx.data, as torch and onnx write it."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 64), ("y", 32)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(WEIGHT, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert path.stat().st_size < 1000 < (path.parent / "model.onnx.data").stat().st_size
    return path


def changed(path: Path, **entries: str) -> Path:
    """The model with other entries for the place of its weight."""
    model = ModelProto.FromString(path.read_bytes())
    kept = {entry.key: entry.value for entry in model.graph.initializer[0].external_data} | entries
    del model.graph.initializer[0].external_data[:]
    for key, value in kept.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_tensors_beside_the_model_are_read_into_it(path: Path) -> None:
    model = ModelProto.FromString(onnx_of(path))
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), WEIGHT)
    inputs = torch.randn(3, 64)
    assert torch.allclose(module_from_onnx(path)(inputs), inputs @ torch.from_numpy(WEIGHT), atol=1e-5)


def test_a_missing_file_is_told_in_one_line(path: Path) -> None:
    (path.parent / "model.onnx.data").unlink()
    for read in (onnx_of, module_from_onnx, read_model):
        with pytest.raises(UserError, match=r'E130.*tensor "w" are in .*model.onnx.data, which is missing\n'):
            read(path)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "link", "C:\\secret", "\\\\host\\secret", ""]
)
def test_nothing_outside_of_the_folder_is_read(path: Path, location: str) -> None:
    secret = path.parent.parent / "secret"
    secret.write_bytes(bytes(WEIGHT.nbytes))
    (path.parent / "link").symlink_to(secret)
    for read in (onnx_of, module_from_onnx):
        with pytest.raises(UserError, match=r"E143.*stored in another file, .*, not in the folder of the model"):
            read(changed(path, location=location))


@pytest.mark.parametrize(
    "entries", [{"offset": "-1"}, {"offset": "8"}, {"length": "16"}, {"offset": "x"}, {"length": "1" * 30}]
)
def test_values_that_are_not_in_their_file_are_a_damaged_model(path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r'E141.*tensor "w" has'):
        onnx_of(changed(path, **entries))


def test_a_tensor_that_no_file_holds_is_refused_before_it_is_read(path: Path) -> None:
    model = ModelProto.FromString(path.read_bytes())
    model.graph.initializer[0].dims[0] = 1 << 40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"E121.*2 GiB"):
        onnx_of(path)
