"""Everything a run has to say, as data: `report.json`, schema 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.goal import Shortfall
from mirabelle.inspection import Layer, layers_of_onnx
from mirabelle.measure import Files
from mirabelle.profile import Profile
from mirabelle.runtime.gates import Gate
from mirabelle.runtime.latency import Ratio
from mirabelle.trail import TrailEntry

SCHEMA = 1
ARTIFACTS = {
    "onnx": "model.onnx",
    "packed": "model.mira",
    "torch": "model.safetensors",
    "architecture": "architecture.json",
    "recipe": "recipe.toml",
    "html": "report.html",
    "card": "README.md",
}
_SIGNIFICANT = 0.05
_NOTICEABLE = 0.02  # a ratio of latencies nearer to 1 than this is not worth a word


@dataclass(frozen=True)
class Comparison:
    """End against start on the same samples: the paired test's p-value, and the ratio of their latencies."""

    p_value: float
    latency_ratio: Ratio

    @property
    def different(self) -> bool:
        return self.p_value < _SIGNIFICANT


@dataclass(frozen=True)
class Report:
    """All that a run found out."""

    name: str
    recipe: Mapping[str, Any]
    decisions: Mapping[str, Any]
    environment: Mapping[str, Any]
    start: Profile
    end: Profile
    trail: Sequence[TrailEntry]
    gates: Mapping[str, Gate]
    shortfalls: Sequence[Shortfall]
    comparison: Comparison
    files: Files

    @property
    def goal(self) -> Mapping[str, Any]:
        asked: Mapping[str, Any] = self.recipe.get("goal", {})
        return asked

    def layers(self) -> list[Layer]:
        """The layers of the file that ships."""
        return layers_of_onnx(self.files.onnx)

    def verdict(self) -> str:
        """One sentence: what became of the model."""
        before, after = self.start, self.end
        assert before.metric is not None, "a report measures the metric at the start"
        assert after.metric is not None, "and at the end"
        assert after.size_bytes.packed is not None, "a report measures the packed file"
        points = (after.metric.value - before.metric.value) * 100
        shown = (
            f"changed by {points:+.2f} points (paired test p = {self.comparison.p_value:.2g})"
            if self.comparison.different
            else f"shows no difference ({points:+.2f} points, paired test p = {self.comparison.p_value:.2g})"
        )
        return (
            f"{before.size_bytes.torch / after.size_bytes.packed:.1f}× smaller to ship and "
            f"{self.speed()} in ONNX Runtime; {after.metric.name} {shown}."
        )

    def speed(self) -> str:
        ratio = self.comparison.latency_ratio
        if ratio.low <= 1 <= ratio.high or abs(ratio.median - 1) < _NOTICEABLE:
            return f"no difference in latency shown (ratio {ratio.median:.2f}, {ratio.low:.2f} to {ratio.high:.2f})"
        return f"{1 / ratio.median:.2f}× faster" if ratio.median < 1 else f"{ratio.median:.2f}× slower"

    def remarks(self) -> list[str]:
        """What did not pay here, in words."""
        found = []
        before, after = self.start, self.end
        if after.nonzero_parameters < 0.9 * after.parameters:
            found.append(
                "Zeros inside dense tensors make the packed file smaller, not the computation: ONNX Runtime multiplies them "
                "like any other number."
            )
        if self.comparison.latency_ratio.low > 1 + _NOTICEABLE:
            found.append(
                "The compressed model is slower than the start in ONNX Runtime on this machine; ship it for its size only."
            )
        if (
            after.size_bytes.onnx is not None
            and before.size_bytes.onnx is not None
            and after.size_bytes.onnx > before.size_bytes.onnx
        ):
            found.append("The ONNX file grew: what quantization adds to the graph outweighs what it saves in the weights.")
        found += [f"The goal on {shortfall.name} is missed: {shortfall}." for shortfall in self.shortfalls]
        found += [
            f"Gate {name} FAILED: {gate.detail}. Do not ship these files."
            for name, gate in self.gates.items()
            if not gate.passed
        ]
        return found

    def to_data(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "verdict": self.verdict(),
            "remarks": self.remarks(),
            "recipe": {**self.recipe, "decisions": dict(self.decisions)},
            "environment": dict(self.environment),
            "goal": {
                "asked": dict(self.goal),
                "met": not self.shortfalls,
                "shortfalls": [shortfall.to_data() for shortfall in self.shortfalls],
            },
            "start": self.start.to_data(),
            "end": self.end.to_data(),
            "comparison": {
                "p_value": self.comparison.p_value,
                "different": self.comparison.different,
                "latency_ratio": self.comparison.latency_ratio.to_data(),
            },
            "trail": [entry.to_data() for entry in self.trail],
            "layers": [layer.to_data() for layer in self.layers()],
            "gates": {name: gate.to_data() for name, gate in self.gates.items()},
            "artifacts": dict(ARTIFACTS),
        }
