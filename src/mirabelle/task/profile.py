"""What one model costs and gives: plain data, each number with its unit. Measuring is `measure`'s work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MeasuredMetric:
    """A metric on `n` samples with its 95 % interval [low, high]."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of the runtime: median and 95th percentile of repeated calls."""

    median: float
    p95: float
    runtime: str
    threads: int
    batch: int


@dataclass(frozen=True)
class SizeBytes:
    """Lengths of the files that hold the model, in bytes; `onnx_gzip` is there for comparison only."""

    torch: int
    onnx: int | None = None
    onnx_gzip: int | None = None
    packed: int | None = None


@dataclass(frozen=True)
class Profile:
    """One model, measured. `macs`: multiply-accumulates of one sample. What was not measured is None.

    `others` are metrics that are told beside the one that judges.
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
    """One step of the trail: its name, the model's profile after it (metric on validation), and the seconds it took."""

    step: str
    profile: Profile
    seconds: float

    def to_data(self) -> dict[str, Any]:
        return {"step": self.step, "profile": self.profile.to_data(), "seconds": round(self.seconds, 3)}
