"""A large language model as ONNX with external data: the graph is made without weights, which are written one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle import quantize
from mirabelle.errors import UserError
from mirabelle.job.block_steps import applies, is_linear, unpacked_codes
from mirabelle.numerics.arrays import Array
from mirabelle.quantize.group_layer import GroupLayer
from mirabelle.run import files
from mirabelle.runtime.export import program_of, quiet
from mirabelle.runtime.group_operators import (
    CONTRIBUTED,
    DOMAIN,
    PRODUCT,
    product_codes,
    product_points,
    product_settings,
)
from mirabelle.sources.models.blocks import Blocks, Shards
from mirabelle.step import Step

MODEL, DATA = "model.onnx", "model.onnx.data"
_MODEL = "model"  # the name of the model in the module that is exported
_BITS = 4  # of codes that are multiplied by as they are; see quantize.Weights.has_kernel
_OWN = 256  # bytes of a tensor up to which it is stored in the graph itself
_EXAMPLE = (2, 7)  # samples and tokens, both unequal to 0 and 1, which torch takes as fixed


class OnnxGraph:
    """The graph of a causal language model without its weights, made from its config; code of its folder is not run.

    Inputs are input_ids and attention_mask, int64, (batch, tokens); the output is logits, (batch, tokens, vocabulary), float32.

    Args:
        folder: of the model, whose files have the names and shapes of the weights.
        steps: those that will change the model. Linear layers of 4 bits in groups of 16, 32, 64, 128 or 256 become
            MatMulNBits nodes.

    Raises:
        UserError: E121 if the model cannot be exported with any number of samples and tokens; E140 if weights are missing in
            its files, or have another shape.
    """

    def __init__(self, folder: Path, steps: Sequence[Step]) -> None:
        blocks = Blocks(folder, torch.float32)
        blocks.model.tie_weights()
        try:
            self._coded = _coded(blocks, steps)
            self._sources = _sources(blocks)
            self._model, self._weights = _exported(blocks.model, self._coded)
        finally:
            blocks.shards.close()
        for name in self._weights:
            owner, _, own = name.rpartition(".")
            if name not in self._sources and not (owner in self._coded and own in _CODES):
                raise UserError("E121", f'the exporter makes a tensor "{name}" without values', "leave onnx out")

    def write(self, folder: Path) -> None:
        """Write model.onnx and model.onnx.data with the weights in a folder that `compress_large` has written.

        Weights are read one at a time and written in float32, or as codes of 4 bits. A killed call leaves no model.onnx.

        Raises:
            UserError: E140 if codes of a layer are missing; E202 if the files cannot be written.
        """
        import onnx_ir

        weights, codes = Shards(folder), _Codes(folder / "codes")
        for name, value in self._weights.items():
            owner, _, own = name.rpartition(".")
            if owner in self._coded and own in _CODES:
                read = _CODES[own](codes, owner, self._coded[owner])
            else:
                read = _floats(weights, self._sources[name])
            value.const_value = onnx_ir.LazyTensor(_tensor(read), dtype=value.dtype, shape=value.shape, name=value.name)
        writing = folder / f"{MODEL}.writing"
        try:
            (folder / MODEL).unlink(missing_ok=True)
            onnx_ir.save(self._model, writing, format="protobuf", external_data=DATA, size_threshold_bytes=_OWN)
            writing.replace(folder / MODEL)
        except OSError as error:
            raise files.cannot_write(folder / MODEL, error) from error


class _Logits(nn.Module):
    """A causal language model with two inputs and one output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.add_module(_MODEL, model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        model = self.get_submodule(_MODEL)
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits


def _coded(blocks: Blocks, steps: Sequence[Step]) -> dict[str, quantize.Weights]:
    """The step that quantizes a layer, by the name of each layer whose codes a runtime multiplies by."""
    last = steps[-1]
    if not isinstance(last, quantize.Weights) or last.weight_bits != _BITS or not last.has_kernel:
        return {}
    layers = {
        f"{name}.{own}"
        for position, name in enumerate(blocks.names)
        for own, layer in blocks.block(position).named_modules()
        if is_linear(layer)
    }
    return {name: last for name in layers if applies(last, name)}


def _sources(blocks: Blocks) -> dict[str, str]:
    """The name in the files of each parameter and stored buffer; a tied one may have another of its names there."""
    model, stored = blocks.model, blocks.shards.files
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named = parameters | dict(model.named_buffers(remove_duplicate=False))
    of_tensor = {id(tensor): name for name, tensor in named.items() if name in stored}
    found: dict[str, str] = {}
    for name, tensor in named.items():
        source = name if name in stored else of_tensor.get(id(tensor), "")
        if not source and name in parameters:
            source = _saved_name(model, name, tensor)
        if source in stored and blocks.shards.shape(source) == tuple(tensor.shape):
            found[name] = source
        elif source in stored or name in parameters:
            how = f"with the shape of config.json, {tuple(tensor.shape)}" if source in stored else "under this name"
            message = f'"{name}" is not in the files of the model {how}'
            raise UserError("E140", message, "load and save the model with this version of transformers first")
    return found


def _saved_name(model: Any, name: str, tensor: Tensor) -> str:
    """The name under which transformers saves a parameter; that of the output layer of GPT-NeoX is not its own."""
    from transformers import core_model_loading

    saved = core_model_loading.revert_weight_conversion(model, {name: tensor})
    return next(iter(saved)) if len(saved) == 1 else name


def _exported(model: nn.Module, coded: Mapping[str, quantize.Weights]) -> tuple[Any, dict[str, Any]]:
    """The graph, and the values in it that have no tensor yet, by the name of the parameter or buffer."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        _without_values(model)
        for name, step in coded.items():
            dense = model.get_submodule(name)
            layer = GroupLayer(dense, _BITS, step.size_of_groups, zero_points=step.zero_points, kernel="MatMulNBits")
            model.set_submodule(name, layer)
        given = tuple(torch.ones(_EXAMPLE, dtype=torch.int64) for _ in range(2))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    names = ("input_ids", "attention_mask")
    program = program_of(_Logits(model).eval(), given, {}, (axes, axes), names, optimize=False)
    graph = program.model.graph
    weights = {}
    for name, value in graph.initializers.items():
        if isinstance(value.const_value.raw, FakeTensor):
            weights[name.removeprefix(f"{_MODEL}.")] = value
            value.const_value = None  # so that no pass can compute with it
    with quiet():
        program.optimize()
    graph.outputs[0].name = "logits"
    for node in graph:
        node.metadata_props.clear()  # places in source files
        if node.domain == DOMAIN:
            _multiply_by_codes(node)
    program.model.opset_imports.pop(DOMAIN, None)
    if coded:
        program.model.opset_imports[CONTRIBUTED] = 1
    used = {value for node in graph.all_nodes() for value in node.inputs}
    return program.model, {name: value for name, value in weights.items() if value in used}


def _without_values(model: nn.Module) -> None:
    """Make all parameters tensors of float32 without memory; those that are one stay one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                empty = nn.Parameter(torch.empty(parameter.shape, dtype=torch.float32), requires_grad=False)
                module._parameters[key] = made.setdefault(id(parameter), empty)


def _multiply_by_codes(node: Any) -> None:
    """Replace a product with codes of Mirabelle's domain by MatMulNBits, with tensors in its shapes."""
    import onnx_ir

    _, codes, scale, *zero = (value for value in node.inputs if value is not None)
    (rows, columns), group_size = codes.shape.numpy(), node.attributes["group_size"].as_int()
    groups = -(-columns // group_size)
    _reshape(codes, onnx_ir.DataType.UINT8, rows, groups, group_size * _BITS // 8)
    _reshape(scale, onnx_ir.DataType.FLOAT, rows * groups)
    for points in zero:
        _reshape(points, onnx_ir.DataType.UINT8, rows * -(-groups * _BITS // 8))
    node.domain, node.op_type = CONTRIBUTED, PRODUCT
    node.attributes.clear()
    for key, number in product_settings(rows, columns, _BITS, group_size).items():
        node.attributes.add(onnx_ir.AttrInt64(key, number))


def _reshape(value: Any, dtype: Any, *shape: int) -> None:
    import onnx_ir

    value.dtype, value.shape = dtype, onnx_ir.Shape(shape)


class _Codes:
    """The tensors of the files with packed codes.

    Args:
        folder: with one file for each block.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, layer: str, key: str) -> Tensor:
        from safetensors import safe_open

        for path in sorted(self._folder.glob("*.safetensors")):
            if layer.startswith(f"{path.stem}."):
                with safe_open(path, "pt") as file:
                    if f"{layer}.{key}" in file.keys():  # noqa: SIM118 (not a mapping)
                        tensor: Tensor = file.get_tensor(f"{layer}.{key}")
                        return tensor
        message = f'{self._folder} lacks the codes of "{layer}"'
        raise UserError("E140", message, "choose another folder for the result, so that they are computed again")


def _numbers(codes: _Codes, layer: str, step: quantize.Weights) -> Callable[[], Array]:
    def read() -> Array:
        columns = int(codes(layer, "weight_shape")[1])
        numbers = unpacked_codes(codes(layer, "weight_packed"), columns, _BITS)
        return product_codes(numbers.numpy(), _BITS, step.size_of_groups)

    return read


def _scales(codes: _Codes, layer: str, step: quantize.Weights) -> Callable[[], Array]:
    del step
    return lambda: codes(layer, "weight_scale").float().reshape(-1).numpy()


def _points(codes: _Codes, layer: str, step: quantize.Weights) -> Callable[[], Array]:
    del step
    return lambda: product_points(codes(layer, "weight_zero_point").numpy(), _BITS)


_CODES = {"codes": _numbers, "scale": _scales, "zero_point": _points}


def _floats(shards: Shards, name: str) -> Callable[[], Array]:
    def read() -> Array:
        values: Array = shards[name].float().numpy()
        shards.close()  # its pages do not stay in memory
        return values

    return read


def _tensor(read: Callable[[], Array]) -> Callable[[], Any]:
    import onnx_ir

    return lambda: onnx_ir.Tensor(np.ascontiguousarray(read()))
