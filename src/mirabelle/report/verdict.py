"""What the numbers of a report say, in words: the sentence for the one who decides, and what did not pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mirabelle.task.goal import Shortfall
from mirabelle.task.profile import MeasuredMetric, Profile

if TYPE_CHECKING:
    from mirabelle.report.findings import Outcome, Significance
    from mirabelle.runtime.latency import Ratio

_NOTICEABLE_SIZE = 0.05  # sizes are told to one decimal: what would read as "1.0×" is said in words
_SPARSE = 0.9  # from a tenth of zeros on, it is worth saying where these pay


def verdict(start: Profile, end: Profile, comparison: Significance) -> str:
    """One sentence: what became of the model."""
    return f"{size(start, end)} and {speed(comparison.latency_ratio)}; {quality(start, end, comparison)}."


def size(start: Profile, end: Profile) -> str:
    """The packed file against the start's torch file."""
    assert end.size_bytes.packed, "a report measures the packed file"
    ratio = start.size_bytes.torch / end.size_bytes.packed
    if abs(ratio - 1) < _NOTICEABLE_SIZE:
        return "as large to ship as before"
    return f"{ratio:.1f}× smaller to ship" if ratio > 1 else f"{1 / ratio:.1f}× larger to ship"


def speed(ratio: Ratio) -> str:
    """How latency changed, with its 95 % interval; `ratio` is end / start."""
    if ratio.unchanged:
        return f"no difference in latency shown in ONNX Runtime ({ratio.median:.2f}×, {ratio.low:.2f} to {ratio.high:.2f})"
    if ratio.median < 1:
        inverse = f"{1 / ratio.high:.2f} to {1 / ratio.low:.2f}"
        return f"{1 / ratio.median:.2f}× faster in ONNX Runtime ({inverse})"
    return f"{ratio.median:.2f}× slower in ONNX Runtime ({ratio.low:.2f} to {ratio.high:.2f})"


def quality(start: Profile, end: Profile, comparison: Significance) -> str:
    """How the metric changed on the same samples, and whether that is shown."""
    before, after = metrics(start, end)
    difference, unit = change(start, end, comparison), " points" if in_points(before, after) else ""
    test = f"paired test p = {comparison.p_value:.2g}"
    interval = comparison.difference
    if interval is not None:
        scale = 100 if unit else 1
        test = f"95 % interval {signed(interval.low * scale, unit)} to {signed(interval.high * scale, unit)}, {test}"
    if not comparison.different:
        return f"{after.name} shows no difference ({signed(difference, unit)}{unit}, {test})"
    direction = "rose" if difference > 0 else "fell"
    return f"{after.name} {direction} by {signed(abs(difference), unit).lstrip('+')}{unit} ({test})"


def change(start: Profile, end: Profile, comparison: Significance) -> float:
    """End - start of the metric, in points where it is a fraction."""
    before, after = metrics(start, end)
    difference = comparison.difference.value if comparison.difference else after.value - before.value
    return difference * 100 if in_points(before, after) else difference


def metrics(start: Profile, end: Profile) -> tuple[MeasuredMetric, MeasuredMetric]:
    assert start.metric is not None, "a report measures the metric at the start"
    assert end.metric is not None, "and at the end"
    return start.metric, end.metric


def in_points(*metrics: MeasuredMetric) -> bool:
    """Whether a metric is a fraction, as far as its values tell, so that hundredths of it are points."""
    return all(metric.low >= 0 and metric.high <= 1 for metric in metrics)


def signed(value: float, unit: str = "") -> str:
    """With its sign: two decimals for points, four digits otherwise."""
    return f"{value + 0.0:+.2f}" if unit else f"{value + 0.0:+.4g}"  # + 0.0 turns -0.0 into 0.0


def remarks(
    start: Profile,
    end: Profile,
    comparison: Significance,
    shortfalls: Sequence[Shortfall],
    gates: Mapping[str, Outcome],
) -> list[str]:
    """What did not pay here, in words."""
    found = []
    if end.nonzero_parameters < _SPARSE * end.parameters:
        found.append(
            "Zeros inside dense tensors make the packed file smaller, not the computation: ONNX Runtime multiplies them "
            "like any other number."
        )
    if comparison.latency_ratio.low > 1 and not comparison.latency_ratio.unchanged:
        found.append(
            "The compressed model is slower than the start in ONNX Runtime on this machine; ship it for its size only."
        )
    if start.size_bytes.onnx is not None and end.size_bytes.onnx is not None and end.size_bytes.onnx > start.size_bytes.onnx:
        found.append("The ONNX file grew: what quantization adds to the graph outweighs what it saves in the weights.")
    found += [f"The goal on {shortfall.name} is missed: {shortfall}." for shortfall in shortfalls]
    found += [f"Gate {name} FAILED: {gate.detail}. Do not ship these files." for name, gate in gates.items() if not gate.passed]
    return found
