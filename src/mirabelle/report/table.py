"""The before/after table as text, for the HTML page, the model card and the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.report.document import Report
from mirabelle.report.verdict import in_points, metrics, title_of
from mirabelle.task.profile import MeasuredMetric, Profile

if TYPE_CHECKING:
    from mirabelle.runtime.latency import Ratio


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The rows of the table: name, before, after, reduction factor.

    The factor of the latency is the ratio of the two latencies beside it, as in the verdict.
    """
    old, new = metrics(report.start, report.end)
    pairs = [(old, new), *zip(report.start.others, report.end.others, strict=True)]
    metric_rows = [(f"{after.name} (95 %)", interval(before), interval(after), "") for before, after in pairs]
    return [*metric_rows, *costs(report.start, report.end, report.comparison.latency_ratio)]


def costs(start: Profile, end: Profile, ratio: Ratio) -> list[tuple[str, str, str, str]]:
    """The rows below the metrics: milliseconds, bytes, parameters, multiply-accumulates."""
    before, after = start.size_bytes, end.size_bytes
    pairs = [
        ("torch → packed, bytes", before.torch, after.packed),
        ("packed file, bytes", before.packed, after.packed),
        ("ONNX file, bytes", before.onnx, after.onnx),
        ("ONNX file after gzip, bytes", before.onnx_gzip, after.onnx_gzip),
        ("torch file, bytes", before.torch, after.torch),
        ("parameters", start.parameters, end.parameters),
        ("non-zero parameters", start.nonzero_parameters, end.nonzero_parameters),
        ("multiply-accumulates", start.macs, end.macs),
    ]
    table = [(name, f"{old or 0:,}", f"{new or 0:,}", _factor(old or 0, new or 0)) for name, old, new in pairs]
    if start.latency_ms is not None and end.latency_ms is not None:
        old_ms, new_ms = start.latency_ms.median, end.latency_ms.median
        table.insert(0, ("latency, ms", f"{old_ms:.4g}", f"{new_ms:.4g}", _factor(1, ratio.median)))
    return table


def conditions(end: Profile, processor: str) -> str:
    """The conditions of the measurements in words: number of samples, runtime, batch size, threads, processor."""
    _, metric = metrics(end, end)
    text = f"Metric on {metric.n:,} test samples."
    if end.latency_ms is None:
        return text
    latency = end.latency_ms
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    runtime = title_of(latency.runtime)
    return (
        f"{text} Latency in {runtime}, batch {latency.batch}, {threads}, on {processor}: wall time, in blocks for which both "
        "models are loaded anew and called in alternation; the interval of the ratio holds 95 % of repeated measurements."
    )


def interval(metric: MeasuredMetric) -> str:
    """A metric with its 95 % confidence interval, such as "97.50% (95.0 – 99.0)"."""
    if in_points(metric):
        return f"{metric.value:.2%} ({100 * metric.low:.1f} – {100 * metric.high:.1f})"
    return f"{metric.value:.4g} ({metric.low:.4g} – {metric.high:.4g})"


def value(metric: MeasuredMetric | None) -> str:
    """The value of a metric without its interval; "–" for None."""
    if metric is None:
        return "–"
    return f"{metric.value:.2%}" if in_points(metric) else f"{metric.value:.4g}"


def _factor(old: float, new: float) -> str:
    return f"{old / new:.2f}×" if old and new else ""
