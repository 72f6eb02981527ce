"""Count the operators of ONNX that are covered, from the standard's own list and its own examples.

python docs/onnx_operators.py              prints every operator and writes the table to docs/frameworks.md, "ONNX operators"
python docs/onnx_operators.py Resize Loop  prints the rows of these operators only
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.model import collect_testcases as examples_of_models
from onnx.backend.test.case.node import collect_testcases as examples_of_operators

from mirabelle.errors import UserError
from mirabelle.sources.models.onnx_graph import OnnxModule

PAGE = Path(__file__).with_name("frameworks.md")
HEADING, NEXT = "### ONNX operators", "\n## Several outputs, and data without labels"
OPSET = 21
UNCOMMON = {TensorProto.STRING, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64, *range(TensorProto.BFLOAT16, 64)}
RELATIVE, ABSOLUTE, ABSOLUTE_IN_HALF = 1e-3, 1e-5, 1e-2  # half precision is computed in float32


@dataclass
class Result:
    """How the examples of one operator went.

    Args:
        right: number of examples whose outputs are the due ones.
        other_types: number of examples over types that NumPy or PyTorch does not compute with, and over text.
        wrong: examples with other outputs, or that ended in an error.
        refused: forms that are refused, as the error says it.
    """

    right: int = 0
    other_types: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def covered(self) -> bool:
        return self.right > 0 and not self.wrong


def operators() -> list[str]:
    """The operators of the standard's domain that are not deprecated, in operator set 21."""
    latest: dict[str, onnx.defs.OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        known = latest.get(schema.name)
        if not schema.domain and schema.since_version <= OPSET and (not known or known.since_version < schema.since_version):
            latest[schema.name] = schema
    return sorted(name for name, schema in latest.items() if not schema.deprecated)


def examples() -> Iterator[tuple[str, onnx.ModelProto, Sequence[Any], Sequence[Any]]]:
    """(name, model, inputs, outputs): the standard's examples; for operators without one, outputs of ONNX Runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [*examples_of_operators(None), *(case for case in examples_of_models() if "sequence" in case.name)]
    for case in cases:
        if case.model is not None:
            for inputs, outputs in case.data_sets:
                yield case.name, case.model, inputs, outputs
    for name, model, inputs in _own_examples():
        session = onnxruntime.InferenceSession(model.SerializeToString())
        feed = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
        yield name, model, inputs, session.run(None, feed)


def results() -> dict[str, Result]:
    """For every operator, how the examples went in which it occurs."""
    found = {name: Result() for name in operators()}
    for name, model, inputs, outputs in examples():
        kinds = {node.op_type for node in model.graph.node} & found.keys()
        if not _is_common(model, (*inputs, *outputs)):
            for kind in kinds:
                found[kind].other_types += 1
            continue
        try:
            told = difference(OnnxModule(model), inputs, outputs, ABSOLUTE_IN_HALF if "16" in name else ABSOLUTE)
        except UserError as error:
            for kind in kinds:
                found[kind].refused.append(error.message)
            continue
        except Exception as error:  # noqa: BLE001 (any error is one of the importer)
            told = f"{type(error).__name__}: {error}"
        for kind in kinds:
            found[kind].right += not told
            found[kind].wrong += [f"{name}: {told}"] if told else []
    return found


def difference(module: OnnxModule, inputs: Sequence[Any], outputs: Sequence[Any], tolerance: float) -> str:
    """In which a module differs from the due outputs; nothing where it does not."""
    with torch.no_grad():
        found = module(*map(_in_torch, inputs))
    flat, due = _flat(found), _flat(list(outputs))
    if len(flat) < len(due):
        return f"{len(flat)} outputs, not {len(due)}"
    for one, other in zip(flat, map(np.asarray, due), strict=False):
        own = one.detach().numpy()
        if own.shape != other.shape:
            return f"shape {own.shape}, not {other.shape}"
        if other.dtype not in (own.dtype, np.float16):
            return f"type {own.dtype}, not {other.dtype}"
        if not np.allclose(own, other, rtol=RELATIVE, atol=tolerance, equal_nan=True):
            return f"values differ by {np.abs(own.astype(np.float64) - other.astype(np.float64)).max():.3g}"
    return ""


def _own_examples() -> Iterator[tuple[str, onnx.ModelProto, list[Any]]]:
    generator = np.random.default_rng(0)
    maps = generator.standard_normal((2, 3, 8, 9)).astype(np.float32)
    regions = np.array([[0, 1, 1, 9, 7], [1, 3, 2, 15, 15], [0, 5, 5, 4, 4]], np.float32)
    pooled = helper.make_node("MaxRoiPool", ["x", "regions"], ["y"], pooled_shape=[2, 3], spatial_scale=0.5)
    yield "regions", _model([pooled], ["x", "regions"]), [maps, regions]
    yield "global Lp pool", _model([helper.make_node("GlobalLpPool", ["x"], ["y"], p=3)], ["x"]), [maps]
    optional = [helper.make_node("Optional", ["x"], ["o"]), helper.make_node("OptionalGetElement", ["o"], ["y"])]
    yield "optional", _model(optional, ["x"]), [maps]
    sequence = [
        helper.make_node("SequenceConstruct", ["x", "x", "x"], ["s"]),
        helper.make_node("SequenceErase", ["s", "one"], ["t"]),
        helper.make_node("SequenceLength", ["t"], ["n"]),
        helper.make_node("ConcatFromSequence", ["t"], ["c"], axis=-1, new_axis=1),
        helper.make_node("Cast", ["n"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "m"], ["y"]),
    ]
    yield "sequence", _model(sequence, ["x"], one=np.array(-2)), [maps]


def _model(nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], **constants: Any) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    given = [value(name, TensorProto.FLOAT, None) for name in inputs]
    graph = helper.make_graph(list(nodes), "g", given, [value("y", TensorProto.FLOAT, None)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _is_common(model: onnx.ModelProto, parts: Sequence[Any]) -> bool:
    kinds = set().union(*(_kinds(value.type) for value in (*model.graph.input, *model.graph.output)))
    arrays = [np.asarray(part) for part in _flat(list(parts)) if part is not None]
    return not kinds & UNCOMMON and all(array.dtype.kind in "fiub" for array in arrays)


def _kinds(kind: onnx.TypeProto) -> set[int]:
    if kind.HasField("sequence_type"):
        return _kinds(kind.sequence_type.elem_type)
    return _kinds(kind.optional_type.elem_type) if kind.HasField("optional_type") else {kind.tensor_type.elem_type}


def _in_torch(part: Any) -> Any:
    if part is None:
        return None
    return tuple(map(_in_torch, part)) if isinstance(part, (list, tuple)) else torch.from_numpy(np.array(part))


def _flat(part: Any) -> list[Any]:
    return [leaf for one in part for leaf in _flat(one)] if isinstance(part, (list, tuple)) else [part]


def section(found: dict[str, Result]) -> str:
    covered = [name for name, result in found.items() if result.covered]
    how = "the standard's own examples (for operators without any, the outputs of ONNX Runtime)"
    command = f"The command is `python docs/{Path(__file__).name}`, with onnx {onnx.__version__}."
    lines = [
        HEADING,
        "",
        f"{len(covered)} of the {len(found)} operators of operator set {OPSET} are covered: they give what",
        f"{how} say, unless",
        f"a form is refused. {command}",
        "",
        "| operator | covered | refused |",
        "|---|---|---|",
    ]
    for name, result in found.items():
        forms = sorted({_form(message, name) for message in result.refused} - {""})
        if not result.covered or forms:
            lines.append(f"| `{name}` | {'yes' if result.covered else 'no'} | {'; '.join(forms) or _reason(name)} |")
    return "\n".join(lines)


def _form(message: str, name: str) -> str:
    """The form of this operator that a message refuses; nothing if it refuses another operator."""
    match = re.match(rf'{name} ".*" is not supported with (.*)', message)
    named = re.search(rf"\b{name} \(([a-z ]+)\)", message)
    return match[1] if match else named[1] if named else ""


def _reason(name: str) -> str:
    """Why an operator without usable examples is refused."""
    node = helper.make_node(name, ["x"], ["y"])
    try:
        OnnxModule(_model([node], ["x"]))
    except UserError as error:
        return _form(error.message, name)
    return ""


def main() -> None:
    asked = sys.argv[1:]
    found = results()
    lines = []
    for name, result in found.items():
        if not asked or name in asked:
            told = "covered" if result.covered else "not covered"
            lines.append(
                f"{name}: {told}; {result.right} right, {len(result.refused)} refused, {result.other_types} over other types"
            )
            lines += [f"    {line}" for line in result.wrong]
    lines.append(f"{sum(result.covered for result in found.values())} of {len(found)}")
    sys.stdout.write("\n".join(lines) + "\n")
    if not asked:
        text = PAGE.read_text("utf-8")
        text = re.sub(rf"(?ms)^{HEADING}$.*?(?=^#|\Z)", "", text)
        before, heading, after = text.partition(NEXT)
        PAGE.write_text(f"{before.rstrip()}\n\n{section(found)}\n{heading}{after}", "utf-8")


if __name__ == "__main__":
    main()
