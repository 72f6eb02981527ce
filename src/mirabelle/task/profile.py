"""Profile of a model as plain data: parameters, operations, sizes, latency and metrics, each in its unit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MeasuredMetric:
    """The value of a metric on `n` samples, with its 95 % confidence interval [low, high].

    The outputs of `not_finite` of these samples were NaN or infinite; they count as wrong.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    not_finite: int = 0


@dataclass(frozen=True)
class Latency:
    """Latency of one call of a runtime in milliseconds (wall time): median and 95th percentile of repeated calls.

    Args:
        median: the geometric mean over several blocks of the median, in milliseconds. The model is loaded anew for each block.
            It has no interval: with the clock of the processor and other work on the machine it drifts by 10 % within minutes,
            which a measurement of seconds cannot tell. Ratios of models measured together do not.
        p95: the same of the 95th percentile.
        runtime: name of the runtime.
        threads: number of threads.
        batch: number of samples in one call.
    """

    median: float
    p95: float
    runtime: str
    threads: int
    batch: int


@dataclass(frozen=True)
class SizeBytes:
    """Sizes of the files that store the model, in bytes; None if a file was not written.

    Args:
        torch: the model's tensors without compression, as safetensors.
        onnx: the ONNX file.
        onnx_gzip: the ONNX file compressed by gzip -9, for comparison only; of files above 16 MiB estimated from 64 parts.
        packed: the packed file.
    """

    torch: int
    onnx: int | None = None
    onnx_gzip: int | None = None
    packed: int | None = None


@dataclass(frozen=True)
class Profile:
    """The measured properties of one model; a property that was not measured is None.

    Args:
        parameters: number of parameters.
        nonzero_parameters: number of parameters that are not zero.
        macs: multiply-accumulate operations for one sample.
        size_bytes: sizes of the model's files.
        metric: the metric of the task.
        latency_ms: latency of one call.
        others: further metrics, for information only.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    size_bytes: SizeBytes
    metric: MeasuredMetric | None = None
    latency_ms: Latency | None = None
    others: tuple[MeasuredMetric, ...] = ()

    def to_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_data(data: dict[str, Any]) -> Profile:
        return Profile(
            parameters=data["parameters"],
            nonzero_parameters=data["nonzero_parameters"],
            macs=data["macs"],
            size_bytes=SizeBytes(**data["size_bytes"]),
            metric=MeasuredMetric(**data["metric"]) if data["metric"] else None,
            latency_ms=Latency(**data["latency_ms"]) if data["latency_ms"] else None,
            others=tuple(MeasuredMetric(**metric) for metric in data.get("others", ())),
        )


@dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Args:
        step: name of the step.
        profile: the model after the step; its metric is that on the validation data.
        seconds: duration of the step.
    """

    step: str
    profile: Profile
    seconds: float

    def to_data(self) -> dict[str, Any]:
        return {"step": self.step, "profile": self.profile.to_data(), "seconds": round(self.seconds, 3)}
