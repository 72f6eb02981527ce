"""ONNX Runtime: what the exported model really gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.run.machine import int8_saturates
from mirabelle.runtime.latency import Ratio, interleaved
from mirabelle.task.batch import Batch, Inputs, Outputs, Samples, Stream, as_outputs, joined, map_tensors, tensors_of
from mirabelle.task.profile import Latency

Array = npt.NDArray[Any]
NAME = "onnxruntime"
EXACT_INTEGERS = ("session.x64quantprecision", "1")  # else sums of uint8 · int8 saturate where the processor has no VNNI
NO_IDLE_SPINNING = ("session.force_spinning_stop", "1")  # else threads of a session spin on while another is timed
SHARING = "ConstantSharing"  # with it, exact integers fail where two layers have equal zero points
_BATCH = 500


def library() -> Any:
    """The package, told before its import to send nobody anything: of itself it keeps a thread that reports what is run.

    Who wants the reports sets ORT_DISABLE_TELEMETRY=0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def options_for(threads: int) -> Any:
    """Session options: so many threads of one operator, which rest between calls, and a log of errors only."""
    options = library().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(*NO_IDLE_SPINNING)
    return options


class Session:
    """A model loaded into ONNX Runtime on the CPU.

    Args:
        model: bytes of an ONNX file.
        threads: of one operator.

    Raises:
        UserError: E141 when ONNX Runtime refuses the file.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        options = options_for(threads)
        if int8_saturates():
            options.add_session_config_entry(*EXACT_INTEGERS)
        try:
            self._session = library().InferenceSession(
                model, options, providers=["CPUExecutionProvider"], disabled_optimizers=[SHARING]
            )
        except Exception as error:
            raise UserError("E141", f"ONNX Runtime refuses the model: {error}", "export it again") from error
        self.threads = threads
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def feed(self, inputs: Inputs) -> dict[str, Array]:
        """Arrays by input name: dicts by their keys, other inputs in order."""
        if isinstance(inputs, Mapping) and set(inputs) == set(self.input_names):
            return {name: tensor.numpy() for name, tensor in inputs.items()}
        return {name: tensor.numpy() for name, tensor in zip(self.input_names, tensors_of(inputs), strict=True)}

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """All outputs, in the order of `output_names`."""
        outputs: Sequence[Array] = self._session.run(None, feed)
        return outputs

    def outputs_of(self, data: Samples | Stream | Sequence[Batch]) -> tuple[Outputs, Tensor]:
        """(outputs, targets) of all samples, in the data's order; several outputs as a tuple."""
        batches = data.batches(_BATCH) if isinstance(data, (Samples, Stream)) else data
        pairs = [(self(batch.inputs), batch.targets) for batch in batches]
        return joined([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])

    def __call__(self, inputs: Inputs) -> Outputs:
        """The outputs, several as a tuple."""
        arrays = self.run(self.feed(inputs))
        strange = [name for name, array in zip(self.output_names, arrays, strict=True) if not isinstance(array, np.ndarray)]
        if strange:
            raise UserError("E121", f'output "{strange[0]}" of the model is no tensor', "export it without what makes it")
        return as_outputs([torch.from_numpy(array) for array in arrays])


def time_side_by_side(
    start: Session, end: Session, inputs: Inputs, *, batch: int = 1, seconds: float = 2.0
) -> tuple[Latency, Latency, Ratio]:
    """Milliseconds of the first `batch` samples in each, measured in turn for `seconds`, and the ratio end / start."""
    one = map_tensors(inputs, lambda tensor: tensor[:batch])
    sessions = {"start": start, "end": end}
    calls = {name: partial(session.run, session.feed(one)) for name, session in sessions.items()}
    latencies, ratios = interleaved(calls, runtime=NAME, threads=start.threads, batch=batch, seconds=seconds)
    return latencies["start"], latencies["end"], ratios["end"]
