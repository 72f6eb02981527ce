"""The results of a report in words: a one-sentence verdict, and remarks on what brought no benefit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mirabelle.runtime import RUNTIMES
from mirabelle.task.goal import ROUNDING, Goal, Shortfall
from mirabelle.task.profile import MeasuredMetric, Profile

if TYPE_CHECKING:
    from mirabelle.report.findings import ConstantAnswer, Outcome, Significance
    from mirabelle.runtime.latency import Ratio

_SIGNED = ("r2", "cosine_similarity")  # metrics that can be negative, and often are not
_NOTICEABLE_SIZE = 0.05  # a ratio this close to 1 would be printed as "1.0×"; words replace it
_SPARSE = 0.9  # with more than 10 % zeros, a remark says what zeros are good for


def verdict(start: Profile, end: Profile, comparison: Significance, constant: ConstantAnswer | None = None) -> str:
    """One sentence on the change of size, latency and metric.

    The change of the metric is only told if the start is better than the best constant answer (`constant`).
    """
    ratio = comparison.latency_ratio
    parts = [size(start, end), speed(ratio, runtime_of(end))]
    costs = " and ".join(reversed(parts) if ratio.slower else parts)  # bad news first
    if constant is not None and not constant.start_learned:
        return (
            f"{costs}; no gain or loss in {metrics(start, end)[1].name} can be told: {beside_constant(start, end, constant)}."
        )
    if constant is not None and not constant.end_learned:
        lost = f"the compressed model is not better than {always(constant, end)}"
        return f"{costs}; {quality(start, end, comparison)}; {lost}."
    return f"{costs}; {quality(start, end, comparison)}."


def beside_constant(start: Profile, end: Profile, constant: ConstantAnswer) -> str:
    """The metrics of start and end beside that of a constant answer, where the start is not better than it."""
    before, after = metrics(start, end)
    last = (
        f"the compressed model has {plain(after, after.value)}"
        if constant.end_learned
        else f"neither is the compressed model ({plain(after, after.value)})"
    )
    return f"the start ({plain(before, before.value)}) is not better than {always(constant, start)}; {last}"


def always(constant: ConstantAnswer, profile: Profile) -> str:
    """A constant answer in words with its metric."""
    assert profile.metric is not None, "a report measures the metric"
    return f"the same answer for every input, {constant.answer} ({plain(profile.metric, constant.value)})"


def plain(metric: MeasuredMetric, value: float) -> str:
    """A value of a metric, in percent if the metric is a fraction."""
    return f"{value:.2%}" if in_points(metric) else f"{value:.4g}"


def size(start: Profile, end: Profile) -> str:
    """The size of the packed file relative to the torch file of the dense model, in words."""
    assert end.size_bytes.packed, "a report measures the packed file"
    ratio = start.size_bytes.torch / end.size_bytes.packed
    if abs(ratio - 1) < _NOTICEABLE_SIZE:
        return "same size on disk"
    return f"{ratio:.1f}× smaller on disk" if ratio > 1 else f"{1 / ratio:.1f}× larger on disk"


def title_of(runtime: str) -> str:
    """What sentences call a runtime; one that is not known here by its name."""
    return RUNTIMES[runtime].title if runtime in RUNTIMES else runtime


def runtime_of(profile: Profile) -> str:
    """What sentences call the runtime in which a model was timed."""
    return title_of("onnxruntime" if profile.latency_ms is None else profile.latency_ms.runtime)


def speed(ratio: Ratio, runtime: str) -> str:
    """The change of the latency with its 95 % confidence interval, in words; `ratio` is end / start."""
    if ratio.unchanged:
        return f"no significant difference in latency in {runtime} ({ratio.median:.2f}×, {ratio.low:.2f} to {ratio.high:.2f})"
    if ratio.median < 1:
        inverse = f"{1 / ratio.high:.2f} to {1 / ratio.low:.2f}"
        return f"{1 / ratio.median:.2f}× faster in {runtime} ({inverse})"
    return f"{ratio.median:.2f}× slower in {runtime} ({ratio.low:.2f} to {ratio.high:.2f})"


def quality(start: Profile, end: Profile, comparison: Significance) -> str:
    """The change of the metric on the same samples, and whether it is significant, in words."""
    before, after = metrics(start, end)
    difference, unit = change(start, end, comparison), " points" if in_points(before, after) else ""
    test = f"paired test p = {comparison.p_value:.2g}"
    interval = comparison.difference
    if interval is not None:
        scale = 100 if unit else 1
        test = f"95 % interval {signed(interval.low * scale, unit)} to {signed(interval.high * scale, unit)}, {test}"
    if not comparison.different:
        return f"no significant difference in {after.name} ({signed(difference, unit)}{unit}, {test})"
    direction = "rose" if difference > 0 else "fell"
    return f"{after.name} {direction} by {signed(abs(difference), unit).lstrip('+')}{unit} ({test})"


def change(start: Profile, end: Profile, comparison: Significance) -> float:
    """The change of the metric, end − start, in percentage points if the metric is a fraction."""
    before, after = metrics(start, end)
    difference = comparison.difference.value if comparison.difference else after.value - before.value
    return difference * 100 if in_points(before, after) else difference


def metrics(start: Profile, end: Profile) -> tuple[MeasuredMetric, MeasuredMetric]:
    assert start.metric is not None, "a report measures the metric at the start"
    assert end.metric is not None, "and at the end"
    return start.metric, end.metric


def in_points(*metrics: MeasuredMetric) -> bool:
    """Whether all metrics are fractions, whose differences are given in percentage points: they lie in [0, 1].

    r² and cosine similarity, which can be negative, are not fractions.
    """
    return all(metric.low >= 0 and metric.high <= 1 and metric.name not in _SIGNED for metric in metrics)


def signed(value: float, unit: str = "") -> str:
    """A number with its sign: two decimals for percentage points, four significant digits otherwise."""
    return f"{value + 0.0:+.2f}" if unit else f"{value + 0.0:+.4g}"  # + 0.0 turns -0.0 into 0.0


def not_finite(start: Profile, end: Profile) -> list[str]:
    """Sentences on test samples whose outputs are NaN or infinite."""
    return [
        f"The outputs of the {which} model for {metric.not_finite} of {metric.n} test samples are NaN or infinite; they count "
        "as wrong."
        for which, metric in zip(("dense", "compressed"), metrics(start, end), strict=True)
        if metric.not_finite
    ]


def certainty(start: Profile, end: Profile, comparison: Significance, goal: Goal) -> list[str]:
    """Sentences on what the measurements cannot tell about the goal: parts that could as well be met or missed.

    A goal is judged by what was measured. Where the 95 % interval of the change also holds values on the other side of the
    limit, that is said.
    """
    sentences = []
    limit, interval = goal.limit_of_metric(start), comparison.difference
    if limit is not None and interval is not None:
        before, after = metrics(start, end)
        unit = " points" if in_points(before, after) else ""
        allowed = limit - before.value
        measured, least, low, high = (
            signed(value * (100 if unit else 1), unit) + unit
            for value in (interval.value, allowed, interval.low, interval.high)
        )
        if interval.low < allowed <= interval.high:
            met = "met" if after.value >= limit - ROUNDING else "missed"
            sentences.append(
                f"The goal for {after.name} is {met} as measured: a change of {measured}, where {least} is allowed. "
                f"{after.n:,} test samples cannot tell whether it is {met} in truth: the 95 % interval of the change, "
                f"{low} to {high}, holds both."
            )
    most, ratio = goal.limit_of_latency(start), comparison.latency_ratio
    if most is not None and start.latency_ms is not None and ratio.low <= most / start.latency_ms.median < ratio.high:
        allowed = most / start.latency_ms.median
        met = "met" if ratio.median <= allowed else "missed"
        sentences.append(
            f"The goal for latency is {met} as measured, by a ratio of {ratio.median:.3f} where {allowed:.3f} is allowed; "
            f"repeated measurements lie between {ratio.low:.3f} and {ratio.high:.3f}, and may decide otherwise."
        )
    return sentences


def remarks(
    start: Profile,
    end: Profile,
    comparison: Significance,
    shortfalls: Sequence[Shortfall],
    gates: Mapping[str, Outcome],
    *,
    constant: ConstantAnswer | None = None,
) -> list[str]:
    """Sentences on what brought no benefit, on missed goals and on failed gates."""
    sentences = [] if constant is None else of_constant(end, constant)
    sentences += not_finite(start, end)
    if end.nonzero_parameters < _SPARSE * end.parameters:
        sentences.append(
            "Zero weights make the packed file smaller but not the model faster: ONNX Runtime multiplies by zero as by any "
            "other number."
        )
    if comparison.latency_ratio.slower:
        sentences.append(
            f"The compressed model is slower than the dense model in {runtime_of(end)} on this machine; use it only for its "
            "size."
        )
    if start.size_bytes.onnx is not None and end.size_bytes.onnx is not None and end.size_bytes.onnx > start.size_bytes.onnx:
        sentences.append("The ONNX file grew: the nodes added by quantization take more bytes than the smaller weights save.")
    sentences += [f"The goal for {shortfall.name} is not met: {shortfall}." for shortfall in shortfalls]
    sentences += [
        f"Gate {name} FAILED: {gate.detail}. Do not use these files." for name, gate in gates.items() if not gate.passed
    ]
    return sentences


def of_constant(end: Profile, constant: ConstantAnswer) -> list[str]:
    """Sentences on models that are not better than a constant answer."""
    if constant.start_learned and constant.end_learned:
        return []
    same = always(constant, end)
    if constant.start_learned:
        return [f"The compressed model is not better than {same}. Do not use it for its answers."]
    start = f"The model before compression is not better than {same}, so nothing is kept or lost by the compression"
    sentences = [
        f"{start}, and a goal relative to it says nothing. Train it first (`baseline`), or start from trained weights."
    ]
    return sentences if constant.end_learned else [*sentences, "The compressed model is not better than that either."]
