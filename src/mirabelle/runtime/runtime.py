"""The interface of runtimes: load an exported model, run it, measure its latency, and describe the runtime."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirabelle import runtime as door
from mirabelle.errors import UserError, did_you_mean
from mirabelle.numerics.arrays import Array, to_numpy
from mirabelle.runtime.latency import Ratio, interleaved
from mirabelle.task.batch import Batch, Inputs, Outputs, as_outputs, joined, map_tensors, tensors_of
from mirabelle.task.profile import Latency
from mirabelle.task.samples import Samples, Stream

_BATCH = 500


@dataclass(frozen=True)
class Description:
    """Name, version and device of a runtime.

    Args:
        name: in reports, such as "onnxruntime"; a key of `mirabelle.runtime.RUNTIMES`.
        title: in sentences, such as "ONNX Runtime".
        version: version of the package.
        device: device on which it computes, such as "cpu".
        uses: the runtime's own names of its backends, such as "CPUExecutionProvider".
    """

    name: str
    title: str
    version: str
    device: str
    uses: tuple[str, ...]


@dataclass(frozen=True)
class OperatorShapes:
    """The shapes of one call of an operator.

    Args:
        name: of the node.
        inputs: shapes of its inputs; those of stored tensors may be missing.
        outputs: shapes of its outputs.
    """

    name: str
    inputs: Sequence[tuple[int, ...]]
    outputs: Sequence[tuple[int, ...]]


class Session(ABC):
    """A model that a runtime has loaded. A subclass implements `run`; the other methods call it.

    Args:
        runtime: name of the runtime.
        threads: number of threads of an operator.
        input_names: names of the graph's inputs, in order.
        output_names: names of the graph's outputs, in order.
    """

    def __init__(self, runtime: str, threads: int, input_names: Sequence[str], output_names: Sequence[str]) -> None:
        self.runtime = runtime
        self.threads = threads
        self.input_names = list(input_names)
        self.output_names = list(output_names)

    @abstractmethod
    def run(self, feed: Mapping[str, Array]) -> Sequence[Any]:
        """Run the model and return all outputs in the order of `output_names`: arrays, or lists for outputs that are sequences.

        Args:
            feed: an array for every name of `input_names`; it is not changed.
        """

    def anew(self) -> Session:
        """The same model loaded again, for measurements that should not depend on one layout of memory; by default itself."""
        return self

    def release(self) -> None:  # noqa: B027 (a runtime need not do it)
        """Free what the session holds in memory until it runs again; by default nothing."""

    def feed(self, inputs: Inputs) -> dict[str, Array]:
        """Inputs as arrays by input name; a dict is assigned by its keys, other inputs in order."""
        if isinstance(inputs, Mapping) and set(inputs) == set(self.input_names):
            return {name: to_numpy(tensor) for name, tensor in inputs.items()}
        return {name: to_numpy(tensor) for name, tensor in zip(self.input_names, tensors_of(inputs), strict=True)}

    def outputs_of(self, data: Samples | Stream | Sequence[Batch]) -> tuple[Outputs, Tensor]:
        """(outputs, targets) of all samples, in the order of the data; several outputs are a tuple."""
        batches = data.batches(_BATCH) if isinstance(data, (Samples, Stream)) else data
        pairs = [(self(batch.inputs), batch.targets) for batch in batches]
        return joined([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])

    def __call__(self, inputs: Inputs) -> Outputs:
        """The outputs as tensors; several outputs are a tuple.

        Raises:
            UserError: E121 if an output is a sequence or a map.
        """
        arrays = self.run(self.feed(inputs))
        strange = [name for name, array in zip(self.output_names, arrays, strict=True) if not isinstance(array, np.ndarray)]
        if strange:
            raise UserError("E121", f'output "{strange[0]}" of the model is no tensor', "export the model without this output")
        return as_outputs([torch.from_numpy(array) for array in arrays])


class Runtime(ABC):
    """Interface to a package that runs exported models, such as ONNX Runtime.

    A new runtime is one subclass in a module of its own, and one entry in `mirabelle.runtime.RUNTIMES`.
    `mirabelle.testing.check_runtime` tests it. The functions `time_alone` and `time_side_by_side` measure the latency of the
    sessions of every runtime in the same way.

    Example:
        >>> runtime_named("onnxruntime").describe().title
        'ONNX Runtime'
    """

    @abstractmethod
    def describe(self) -> Description:
        """The name and version of the runtime, and the device on which it computes."""

    def usable(self) -> bool:
        """Whether this processor has what the runtime needs."""
        return True

    @abstractmethod
    def load(self, model: bytes, threads: int) -> Session:
        """Load a model.

        Args:
            model: bytes of an ONNX file.
            threads: number of threads of an operator.

        Raises:
            UserError: E141 if the runtime cannot load the file.
        """

    def operator_milliseconds(
        self, model: bytes, feed: Mapping[str, Array], *, threads: int, runs: int
    ) -> Mapping[str, Sequence[float]]:
        """Milliseconds of each operator in each of several runs, by the name of its first output.

        Operators that the runtime adds, such as changes of the memory layout, are left out.

        Args:
            model: bytes of an ONNX file.
            feed: an array for every input.
            threads: number of threads of an operator.
            runs: number of runs of the whole model.

        Raises:
            UserError: E111 from a runtime that cannot profile operators.
        """
        del model, feed, threads, runs
        raise UserError(
            "E111",
            f"{self.describe().title} cannot measure the time of single operators",
            "set a limit for macs instead of latency",
        )

    def operator_shapes(self, model: bytes, feed: Mapping[str, Array]) -> Sequence[OperatorShapes]:
        """The shapes that every operator sees when the model runs once, without optimizations, also in branches and loops.

        Args:
            model: bytes of an ONNX file in which every node has a name of its own, also in subgraphs.
            feed: an array for every input.

        Raises:
            UserError: E111 from a runtime that cannot tell shapes.
        """
        del model, feed
        raise UserError("E111", f"{self.describe().title} cannot tell the shapes of single operators", "use onnxruntime")


def runtime_named(name: str) -> Runtime:
    """The runtime with a given name, a key of `mirabelle.runtime.RUNTIMES`.

    Raises:
        UserError: E103 if no runtime has this name.
    """
    if name not in door.RUNTIMES:
        raise UserError("E103", f'there is no runtime "{name}"', did_you_mean(name, door.RUNTIMES))
    found: Runtime = getattr(door, door.RUNTIMES[name].class_name)()
    return found


def runtimes_present() -> list[str]:
    """The names of the runtimes that are installed and that this processor can use, the default one first."""
    found = {name for name, listed in door.RUNTIMES.items() if importlib.util.find_spec(listed.module) is not None}
    return [name for name in door.RUNTIMES if name in found and runtime_named(name).usable()]


def default_runtime() -> Runtime:
    """ONNX Runtime, in which models are measured and checked by default."""
    return runtime_named("onnxruntime")


def time_alone(session: Session, inputs: Inputs, *, batch: int = 1, seconds: float = 2.0) -> Latency:
    """Latency of one call with the first `batch` samples of the inputs, measured for `seconds`."""
    return time_all({"alone": session}, inputs, batch=batch, seconds=seconds)[0]["alone"]


def time_side_by_side(
    start: Session, end: Session, inputs: Inputs, *, batch: int = 1, seconds: float = 2.0
) -> tuple[Latency, Latency, Ratio]:
    """(latency of start, latency of end, ratio end / start) of one call, measured in alternation for `seconds`.

    Args:
        start: the reference model.
        end: the other model, in the same runtime and with the same number of threads.
        inputs: inputs of both models.
        batch: number of samples in a call; the first ones of the inputs are used.
        seconds: duration of the measurement.
    """
    latencies, ratios = time_all({"start": start, "end": end}, inputs, batch=batch, seconds=seconds)
    return latencies["start"], latencies["end"], ratios["end"]


def time_all(
    sessions: Mapping[str, Session],
    inputs: Inputs,
    *,
    batch: int = 1,
    seconds: float = 2.0,
    enough: Callable[[Mapping[str, Ratio]], bool] | None = None,
) -> tuple[dict[str, Latency], dict[str, Ratio]]:
    """The latency of each session by name, and its ratio to the first one, measured in alternation (see `runtime.latency`)."""
    first = next(iter(sessions.values()))
    same = all((one.runtime, one.threads) == (first.runtime, first.threads) for one in sessions.values())
    assert same, "a ratio compares two models, not two runtimes"
    feeds = {name: one.feed(map_tensors(inputs, lambda tensor: tensor[:batch])) for name, one in sessions.items()}
    for one in sessions.values():
        one.release()  # each block loads its own

    def load() -> dict[str, Callable[[], object]]:
        return {name: partial(one.anew().run, feeds[name]) for name, one in sessions.items()}

    return interleaved(load, runtime=first.runtime, threads=first.threads, batch=batch, seconds=seconds, enough=enough)
