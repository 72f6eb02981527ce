"""Pack an ONNX file from any source, with checks: unchanged if every byte can be restored, else in canonical form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from mirabelle.artifact.mira import PackedModel, packed_parts
from mirabelle.artifact.reading import checked, model_of
from mirabelle.codecs import Codec
from mirabelle.errors import UserError
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.drawn_inputs import GivenInput, accepted_inputs
from mirabelle.runtime.gates import Gate, same_bytes
from mirabelle.runtime.runtime import default_runtime
from mirabelle.runtime.signature import signature_of
from mirabelle.runtime.skeleton import is_plain, split, without_data

_KEPT_METADATA = ("labels", "preprocessing", "decision")


@dataclass(frozen=True)
class Packed:
    """The result of packing an ONNX file.

    Args:
        parts: the content of the .mira file, in parts.
        onnx: the ONNX model that unpacking gives.
        as_it_was: whether `onnx` equals the given file, byte for byte.
        gates: the checks: packed_unpacked (unpack(packed) equals `onnx`) and, if `onnx` differs from the file, same_outputs.
    """

    parts: Sequence[bytes | memoryview]
    onnx: bytes
    as_it_was: bool
    gates: Mapping[str, Gate]

    @property
    def packed(self) -> bytes:
        """The content of the .mira file."""
        return b"".join(self.parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the .mira file."""
        return sum(map(len, self.parts))


def pack_any(onnx: bytes, given: Sequence[GivenInput] = (), codecs: Sequence[Codec] = ()) -> Packed:
    """Pack an ONNX model from any source.

    Args:
        onnx: content of an .onnx file.
        given: sizes of inputs with dynamic axes; those that are left out are found by trial.
        codecs: the user's own codecs, which are tried in addition to those of Mirabelle.

    Raises:
        UserError: E141 if this is not an ONNX model, E143 if it stores tensors in other files, E121 if it cannot be brought
            into canonical form, E110, E111 or E121 if the model accepts no random inputs of
            the given sizes, or of any size that is tried.
    """
    form = onnx if _restorable(onnx) else _canonical(model_of(onnx))
    parts = packed_parts(form, codecs)
    gates = {"packed_unpacked": same_bytes(form, PackedModel(parts, len(form)).parts())}
    if form != onnx:
        gates["same_outputs"] = _same_outputs(onnx, form, given)
    return Packed(parts, form, form == onnx, gates)


def _restorable(onnx: bytes) -> bool:
    """Whether unpacking can restore every byte: all tensors are raw data, and the message is serialized deterministically."""
    model = without_data(onnx)
    if model is None:
        return False
    checked(model)
    _, raws = split(onnx)
    tensors = model.graph.initializer
    return all(len(raw) > 0 or 0 in tensor.dims for raw, tensor in zip(raws, tensors, strict=True)) and is_plain(onnx)


def _canonical(model: ModelProto) -> bytes:
    """The model in canonical form, brought into it in place; values keep their names, since callers request outputs by name."""
    for node in model.graph.node:
        # torch's exporter writes names of modules there; with them, the canonical form would rename values.
        node.ClearField("metadata_props")
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key in _KEPT_METADATA}
    try:
        return canonical(model, metadata)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:  # the last: element types that onnx cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError("E121", f"the model has no canonical form: {reason}", "ship the .onnx file itself") from error


def _same_outputs(onnx: bytes, form: bytes, given: Sequence[GivenInput]) -> Gate:
    """Whether the outputs of both models in ONNX Runtime are bitwise equal for random inputs."""
    inputs, _ = signature_of(ModelProto.FromString(onnx))
    before, after = (default_runtime().load(of_one, threads=1) for of_one in (onnx, form))
    accepted = accepted_inputs(before, inputs, given)
    pairs = list(zip(before.output_names, accepted.outputs, after.run(accepted.feed), strict=True))
    different = [name for name, one, other in pairs if not _equal(one, other)]
    if different:
        return Gate(passed=False, worst=float("inf"), detail=f'output "{different[0]}" differs')
    return Gate(passed=True, worst=0.0, detail=f"{len(pairs)} outputs are equal to the bit{accepted.note}")


def _equal(one: object, other: object) -> bool:
    """Whether two outputs are equal: arrays by their bytes, so that NaN equals NaN; sequences element by element."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    first, second = _array(one), _array(other)
    same_kind = first.dtype == second.dtype and first.shape == second.shape
    return same_kind and (bool(np.all(first == second)) if first.dtype == object else first.tobytes() == second.tobytes())


def _array(value: object) -> npt.NDArray[np.generic]:
    return np.asarray(value)
