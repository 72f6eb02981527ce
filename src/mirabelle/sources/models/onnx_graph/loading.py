"""Load an ONNX file as a PyTorch module, and check that it computes the same values as ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError

from mirabelle.errors import UserError, did_you_mean, first_line
from mirabelle.numerics.arrays import Array
from mirabelle.runtime.runtime import Session, default_runtime
from mirabelle.runtime.signature import drawn_inputs
from mirabelle.sources.models.onnx_graph.module import OnnxModule
from mirabelle.sources.models.onnx_graph.nodes import REMEDY
from mirabelle.sources.models.onnx_graph.precision import in_single_precision

_LENGTHS = (16, 32, 64, 224, 8)  # sizes tried for dynamic axes other than the batch, until ONNX Runtime accepts one
_SAMPLES = 2
_TOLERANCE, _SMALL = 1e-3, 1e-5


def module_from_onnx(path: Path, outputs: Sequence[str] = ()) -> OnnxModule:
    """A PyTorch module from an ONNX file, checked against ONNX Runtime with random inputs.

    Args:
        path: of the file; external weights are read from its folder.
        outputs: names of values anywhere in the graph that the module returns, in this order; by default the graph's outputs.

    Raises:
        UserError: E130 if the file does not exist, E141 if it is damaged, E121 if it has unsupported operators, or if the
            outputs of the module and of ONNX Runtime differ, E112 if the graph has no value of a name in `outputs`.
    """
    if not path.is_file():
        raise UserError("E130", f"no model at {path}", "check the path")
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise UserError("E141", f"{path} is not a valid ONNX file: {error}", "export it again") from error
    proto = _ending_in(proto, outputs) if outputs else proto
    module = OnnxModule(proto)
    _check_equal(module, proto)
    return module


def _ending_in(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these values as its outputs, and only the nodes that they need."""
    made = {name: onnx.ValueInfoProto(name=name) for node in proto.graph.node for name in node.output if name}
    made |= {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
    for name in names:
        if name not in made:
            raise UserError("E112", f'the ONNX graph has no value "{name}"', did_you_mean(name, made))
    needed, nodes = set(names), []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    del found.graph.node[:], found.graph.output[:]
    found.graph.node.extend(nodes[::-1])
    found.graph.output.extend(made[name] for name in names)
    return found


def _check_equal(module: OnnxModule, proto: onnx.ModelProto) -> None:
    """Raise an error unless the module computes the same values as ONNX Runtime."""
    session = default_runtime().load(in_single_precision(proto)[0].SerializeToString(), torch.get_num_threads())
    refused: Exception = ValueError("no lengths")
    for inputs in _drawn(module):
        try:
            due = _run(session, inputs, module.fixed_batch or _SAMPLES)
        except Exception as error:  # noqa: BLE001 (the runtime may raise anything for sizes that do not fit)
            refused = error
            continue
        _compare(module, inputs, due)
        return
    reason = first_line(refused)
    message = f"ONNX Runtime cannot run the file with random inputs: {reason}"
    raise UserError("E121", message, "export it with fixed sizes for all axes except the batch")


def _drawn(module: OnnxModule) -> Iterator[dict[str, Array]]:
    """Random inputs, with one size after the other for dynamic axes; if the batch is fixed, twice as many samples."""
    count = 2 * module.fixed_batch if module.fixed_batch else _SAMPLES
    for length in _LENGTHS:
        sized = [
            replace(one, sizes=("", *(size if isinstance(size, int) else length for size in one.sizes[1:])))
            if one.sizes
            else one
            for one in module.inputs
        ]
        yield drawn_inputs(sized, count)


def _run(session: Session, inputs: Mapping[str, Array], batch: int) -> list[Array]:
    """The outputs of ONNX Runtime, computed in batches of this size."""
    count = len(next(iter(inputs.values())))
    parts = [
        session.run({name: array[start : start + batch] for name, array in inputs.items()}) for start in range(0, count, batch)
    ]
    return [np.concatenate(outputs) if len(outputs) > 1 else outputs[0] for outputs in zip(*parts, strict=True)]


def _compare(module: OnnxModule, inputs: Mapping[str, Array], due: list[Array]) -> None:
    try:
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    except UserError:
        raise
    except Exception as error:
        message = f"the ONNX graph cannot be computed in PyTorch: {first_line(error)}"
        raise UserError("E121", message, REMEDY) from error
    outputs = found if isinstance(found, tuple) else (found,)
    for name, one, other in zip(module.output_names, outputs, due, strict=True):
        expected = torch.from_numpy(np.array(other))
        apart = "shapes" if one.shape != expected.shape else None
        if apart is None and one.numel():
            gap = float((one.double() - expected.double()).abs().max())
            apart = f"values by {gap:.3g}" if not gap <= _TOLERANCE * float(expected.double().abs().max()) + _SMALL else None
        if apart is not None:
            message = f'output "{name}" of the ONNX graph differs between PyTorch and ONNX Runtime: {apart}'
            raise UserError("E121", message, REMEDY)
