"""Load an ONNX file as a PyTorch module, and check that it computes the same values as ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from mirabelle.errors import UserError, first_line
from mirabelle.numerics.arrays import Array
from mirabelle.runtime.drawn_inputs import all_accepted, batch_of, described, drawn_like
from mirabelle.runtime.runtime import default_runtime
from mirabelle.runtime.signature import Value, signature_of
from mirabelle.sources.models.onnx_graph.file import check_tensors, ending_in, read
from mirabelle.sources.models.onnx_graph.module import OnnxModule
from mirabelle.sources.models.onnx_graph.nodes import REMEDY
from mirabelle.sources.models.onnx_graph.precision import in_single_precision

_SAMPLES = 2
_SAMPLES_ROUNDED = 8  # of a graph that rounds
_MOST = 12  # sizes that ONNX Runtime accepts, and PyTorch may refuse
_TOLERANCE, _SMALL = 1e-3, 1e-5


def module_from_onnx(path: Path, outputs: Sequence[str] = ()) -> OnnxModule:
    """A PyTorch module from an ONNX file, checked against ONNX Runtime with random inputs.

    Args:
        path: of the file; tensors in other files are read from its folder, and from nowhere else.
        outputs: names of values anywhere in the graph that the module returns, in this order; by default the graph's outputs.

    Raises:
        UserError: E130 if the file does not exist, E141 if it is damaged, E143 if it stores tensors outside of its folder, E121
            if it has unsupported operators, or if the outputs of the module and of ONNX Runtime differ, E112 if the graph has
            no value of a name in `outputs`.
    """
    proto = read(path)
    proto = ending_in(proto, outputs) if outputs else proto
    check_tensors(proto)
    _check_batch(signature_of(proto)[0])
    module = OnnxModule(proto)
    _check_equal(module, proto)
    return module


def _check_batch(inputs: Sequence[Value]) -> None:
    """Raise an error unless the first axis of every input can be the batch: a state may have it elsewhere, or not at all."""
    due = batch_of(inputs)
    for value in inputs:
        if value.sizes == () or (value.sizes and isinstance(value.sizes[0], int) and value.sizes[0] != due):
            message = (
                f'the first axis of every input must be the batch, which "{value.name}" does not have: {described(inputs)}'
            )
            remedy = (
                "`mirabelle inspect`, `pack`, `bench` and `verify` accept the file; to train or prune it, export it with the "
                "batch first, or with a constant in place of this input"
            )
            raise UserError("E121", message, remedy)


def _check_equal(module: OnnxModule, proto: onnx.ModelProto) -> None:
    """Raise an error unless the module computes the same values as ONNX Runtime, at sizes that ONNX Runtime accepts.

    The module gets the samples of two runs together, so that it must take other batches than the one that a file fixes.
    """
    proto, _ = in_single_precision(proto)
    session = default_runtime().load(proto.SerializeToString(), torch.get_num_threads())
    inputs, _ = signature_of(proto)
    failed: Exception | None = None
    samples = _SAMPLES_ROUNDED if module.rounds else _SAMPLES
    for accepted in itertools.islice(all_accepted(session, inputs, batch=samples), _MOST):
        feeds = [accepted.feed]
        if len(next(iter(accepted.feed.values()))) != samples or module.fixed_batch:
            feeds.append(drawn_like(inputs, accepted.feed, seed=1))
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in accepted.feed}
        try:
            with torch.no_grad():
                found = module(**{name: torch.from_numpy(array) for name, array in together.items()})
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 (PyTorch refuses sizes for which ONNX Runtime computes something)
            failed = failed or error
            if accepted.found:
                continue
            break
        module.compared_at = accepted.found
        runs = [accepted.outputs, *(session.run(feed) for feed in feeds[1:])]
        due = [np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in zip(*runs, strict=True)]
        _compare(module, found, due, len(next(iter(together.values()))))
        return
    assert failed is not None, "sizes were accepted, or an error raised"
    raise UserError("E121", f"the ONNX graph cannot be computed in PyTorch: {first_line(failed)}", REMEDY) from failed


def _gap(one: Tensor, other: Tensor, *, rounds: bool) -> float:
    """The largest difference; in a graph that rounds, that of most samples.

    Sums of floating-point numbers in another order can be rounded to the next code, from which the whole sample differs.
    """
    gaps = (one - other).abs()
    return float(gaps.flatten(1).amax(1).median() if rounds and gaps.ndim > 1 else gaps.max())


def _compare(module: OnnxModule, found: Any, due: Sequence[Array], count: int) -> None:
    """Raise an error unless the outputs for this many samples are the due ones."""
    outputs = found if isinstance(found, tuple) else (found,)
    for name, one, other in zip(module.output_names, outputs, due, strict=True):
        expected = torch.from_numpy(np.array(other))
        if one.numel() == expected.numel() and one.shape != expected.shape and one.ndim == expected.ndim:
            message = (
                f'output "{name}" of the ONNX graph has its batch not in its first axis: {tuple(one.shape)} for {count} samples'
            )
            raise UserError("E121", message, REMEDY)
        apart = f"shapes {tuple(one.shape)} and {tuple(expected.shape)}" if one.shape != expected.shape else None
        if apart is None and one.numel():
            gap = _gap(one.double(), expected.double(), rounds=module.rounds)
            apart = f"values by {gap:.3g}" if not gap <= _TOLERANCE * float(expected.double().abs().max()) + _SMALL else None
        if apart is not None:
            message = f'output "{name}" of the ONNX graph differs between PyTorch and ONNX Runtime: {apart}'
            raise UserError("E121", message, REMEDY)
