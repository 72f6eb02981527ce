"""The three charts of a report: loss and metric by epoch, and metric against bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirabelle.report.document import Report
from mirabelle.report.drawing import FIRST, SECOND, SOFT, WIDTH, Axis, Drawing, fitted, in_thousands, number, percentage
from mirabelle.report.learning_curves import Curve
from mirabelle.report.verdict import in_points

_LOG_FROM = 20  # the largest over the smallest value from which a logarithmic axis shows more
_MARGIN = 2.2  # times the smallest and the largest size: room for the names of steps
_PADDING = 0.08  # of the range of the metric: room for the names above and below


def loss_chart(report: Report) -> str:
    """Training loss over the epochs of all trainings, one after the other; "" where none is known."""
    return _curve(report.curves, "loss", "Training loss by epoch", FIRST, number)


def metric_chart(report: Report) -> str:
    """The metric on validation over the epochs of all trainings; "" where none is known."""
    return _curve(report.curves, "metric", f"{_metric_name(report)} on validation by epoch", SECOND, _label(report))


def trail_chart(report: Report) -> str:
    """The metric on validation against the bytes of the packed file, step by step; "" with fewer than two steps."""
    profiles = [(entry.step, entry.profile.metric, entry.profile.size_bytes.packed) for entry in report.trail]
    points = [(step, metric, size) for step, metric, size in profiles if metric is not None and size]
    if len(points) < 2:  # noqa: PLR2004 (a way has two ends)
        return ""
    sizes, label = [size for _, _, size in points], _label(report)
    ends = [end for _, metric, _ in points for end in (metric.low, metric.high, metric.value)]
    drawing = Drawing(
        f"{_metric_name(report)} on validation against bytes, step by step",
        Axis.log(min(sizes) / _MARGIN, max(sizes) * _MARGIN, in_thousands),
        Axis.linear(min(ends), max(ends), label, padding=_PADDING),
        "bytes of the packed file",
    )
    drawing.line([(size, metric.value) for _, metric, size in points], SOFT, width=1.5, opacity=0.5)
    for position, (step, metric, size) in enumerate(points):
        below = position % 2 == 1
        drawing.interval(size, metric.low, metric.high, SECOND)
        drawing.dot(size, metric.value, SECOND, words=f"{step}: {label(metric.value)}, {size:,} bytes")
        drawing.text(size, metric.low if below else metric.high, fitted(step, WIDTH / 2), below=below)
    return drawing.svg()


@dataclass(frozen=True)
class Span:
    """Which epochs a training has when all trainings are counted one after the other: `first` to `last`, both included."""

    step: str
    first: int
    last: int

    def share(self, total: int) -> float:
        """The part of `total` epochs that it has."""
        return (self.last - self.first + 1) / total


def spans(curves: Sequence[Curve]) -> list[Span]:
    """The trainings one after the other."""
    found, before = [], 0
    for curve in curves:
        last = before + max(max((epoch.epoch for epoch in curve.epochs), default=1), 1)
        found.append(Span(curve.step, before + 1, last))
        before = last
    return found


def _curve(curves: Sequence[Curve], quantity: str, title: str, color: str, label: Callable[[float], str]) -> str:
    parts = spans(curves)
    lines = [
        [(part.first - 1 + epoch.epoch, value) for epoch in curve.epochs if (value := getattr(epoch, quantity)) is not None]
        for part, curve in zip(parts, curves, strict=True)
    ]
    drawn = [value for line in lines for _, value in line]
    if not drawn:
        return ""
    total = parts[-1].last
    logarithmic = min(drawn) > 0 and max(drawn) / min(drawn) > _LOG_FROM
    values = (Axis.log if logarithmic else Axis.linear)(min(drawn), max(drawn), label)
    drawing = Drawing(title, Axis.linear(0, total, number, whole=True), values, "epochs")
    for part, line in zip(parts, lines, strict=True):
        drawing.begin(part.first - 1, fitted(part.step, WIDTH * part.share(total) - 8))
        if len(line) == 1:
            drawing.dot(*line[0], color, radius=3.5)
        elif line:
            drawing.line(line, color)
    return drawing.svg()


def _label(report: Report) -> Callable[[float], str]:
    """How the metric on validation is written: in percent, if it is on the test samples."""
    points = all(profile.metric is not None and in_points(profile.metric) for profile in (report.start, report.end))
    return percentage if points else number


def _metric_name(report: Report) -> str:
    return report.end.metric.name if report.end.metric is not None else "metric"
