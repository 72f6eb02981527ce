"""A report's numbers as SVG, drawn by Altair and vl-convert: text escaped, no script, no outside reference.

Colours are CSS variables of the page, so that one drawing serves light and dark.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.report.document import Report
from mirabelle.report.findings import Milestone
from mirabelle.report.learning_curves import Curve
from mirabelle.report.verdict import in_points

_WIDTH, _HEIGHT, _FONT = 330, 190, 12
_LETTER = 6.8  # pixels that a letter of this size takes, about
_LOG_FROM = 20  # the largest over the smallest value from which a logarithmic axis shows more
_INK, _SOFT, _LINE, _FIRST, _SECOND = (f"var(--{name})" for name in ("ink", "soft", "line", "plum", "gold"))
_MARGIN = 2.2  # times the smallest and the largest size: room for the names of steps
_FEW_DECADES = 200
_CONFIG = {
    "background": "transparent",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": _SOFT, "titleColor": _SOFT, "titleFontWeight": "normal", "labelFontSize": _FONT, "titleFontSize": _FONT,
        "gridColor": _LINE, "domain": False, "ticks": False, "labelPadding": 6, "titlePadding": 8,
    },
    "axisX": {"grid": False, "labelFlush": False},
    "axisY": {"tickCount": 5, "minExtent": 40},
}  # fmt: skip


def loss_chart(report: Report) -> str:
    """Training loss over the epochs of all trainings, one after the other; "" where none is known."""
    return _curve(report.curves, "loss", "Training loss by epoch", _FIRST)


def metric_chart(report: Report) -> str:
    """The metric on validation over the epochs of all trainings; "" where none is known."""
    title = f"{_metric_name(report)} on validation by epoch"
    return _curve(report.curves, "metric", title, _SECOND, percent=_percent(report))


def trail_chart(report: Report) -> str:
    """The metric on validation against the bytes of the packed file, step by step; "" with fewer than two steps."""
    points = [point for position, entry in enumerate(report.trail) if (point := _point(position, entry)) is not None]
    if len(points) < 2:  # noqa: PLR2004 (a way has two ends)
        return ""
    import altair as alt

    base = alt.Chart({"values": points})
    sizes = [point["bytes"] for point in points]
    domain = [min(sizes) / _MARGIN, max(sizes) * _MARGIN]
    axis = alt.Axis(format="~s", values=_ticks(*domain))
    bytes_ = alt.X("bytes:Q", title="bytes of the packed file", axis=axis).scale(type="log", domain=domain, nice=False)
    metric = alt.Y("metric:Q", title=None, axis=_axis(percent=_percent(report))).scale(zero=False, padding=18)
    way = base.mark_line(color=_SOFT, strokeWidth=1.5, opacity=0.5).encode(x=bytes_, y=metric, order="position:O")
    reach = base.mark_rule(color=_SECOND, strokeWidth=1.5, opacity=0.55).encode(x=bytes_, y="low:Q", y2="high:Q")
    dots = base.mark_circle(color=_SECOND, size=70, opacity=1).encode(x=bytes_, y=metric)
    words = [
        base.transform_filter(f"datum.position % 2 == {parity}")
        .mark_text(color=_INK, dy=dy, fontSize=_FONT)
        .encode(x=bytes_, y=alt.Y(f"{end}:Q"), text="step:N")
        for parity, end, dy in ((0, "high", -9), (1, "low", 11))
    ]
    return _svg(alt.layer(way, reach, dots, *words), f"{_metric_name(report)} on validation against bytes, step by step")


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


def _curve(curves: Sequence[Curve], quantity: str, title: str, color: str, *, percent: bool = False) -> str:
    parts, points = spans(curves), []
    for part, curve in zip(parts, curves, strict=True):
        known = [(epoch.epoch, value) for epoch in curve.epochs if (value := getattr(epoch, quantity)) is not None]
        points += [{"epoch": part.first - 1 + number, "value": value, "where": curve.where} for number, value in known]
    if not points:
        return ""
    import altair as alt

    total = parts[-1].last
    starts = [{"epoch": part.first - 1, "label": _fitted(part.step, _WIDTH * part.share(total) - 8)} for part in parts]
    epochs = alt.X("epoch:Q", title="epochs", axis=alt.Axis(tickMinStep=1, tickCount=6, format="d")).scale(
        domain=[0, total], nice=False
    )
    drawn = [point["value"] for point in points]
    logarithmic = min(drawn) > 0 and max(drawn) / min(drawn) > _LOG_FROM
    axis = _axis(percent=percent, values=_ticks(min(drawn), max(drawn)) if logarithmic else None)
    values_axis = alt.Y("value:Q", title=None, axis=axis).scale(
        type="log" if logarithmic else "linear", zero=False, nice=not logarithmic
    )
    base = alt.Chart({"values": points})
    line = base.mark_line(color=color, strokeWidth=2, strokeJoin="round").encode(x=epochs, y=values_axis, detail="where:N")
    single = {point["where"] for point in points if sum(other["where"] == point["where"] for other in points) == 1}
    dots = alt.Chart({"values": [point for point in points if point["where"] in single]})
    marks = alt.Chart({"values": starts})
    rules = marks.mark_rule(color=_SOFT, strokeDash=[2, 3], opacity=0.8).encode(x=epochs)
    names = marks.mark_text(align="left", baseline="bottom", dx=4, dy=-4, color=_INK, fontSize=_FONT)
    layers = [rules, line, names.encode(x=epochs, y=alt.value(0), text="label:N")]
    if single:
        layers.append(dots.mark_circle(color=color, size=40, opacity=1).encode(x=epochs, y=values_axis))
    return _svg(alt.layer(*layers), title)


def _point(position: int, entry: Milestone) -> dict[str, Any] | None:
    metric, size = entry.profile.metric, entry.profile.size_bytes.packed
    if metric is None or not size:
        return None
    step = _fitted(entry.step, _WIDTH / 2)
    reach = {"metric": metric.value, "low": metric.low, "high": metric.high}
    return {"position": position, "step": step, "bytes": size, **reach}


def _percent(report: Report) -> bool:
    """Whether the metric on validation is told in percent, as it is on the test samples."""
    return all(profile.metric is not None and in_points(profile.metric) for profile in (report.start, report.end))


def _metric_name(report: Report) -> str:
    return report.end.metric.name if report.end.metric is not None else "metric"


def _axis(*, percent: bool, values: list[float] | None = None) -> Any:
    import altair as alt

    ticks: dict[str, Any] = {} if values is None else {"values": values}
    return alt.Axis(format="~%" if percent else "~g", **ticks)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` on a logarithmic axis: powers of ten, with 2 and 5 between where these are few."""
    between = (1, 2, 5) if high / low < _FEW_DECADES else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for decade in decades for step in between if low <= (tick := step * 10.0**decade) <= high]


def _fitted(text: str, pixels: float) -> str:
    letters = max(int(pixels / _LETTER), 0)
    return text if len(text) <= letters else f"{text[: letters - 1]}…" if letters > 2 else ""  # noqa: PLR2004


def _svg(chart: Any, title: str) -> str:
    """The drawing alone, without the namespaces that only a file of its own needs, in the width of its place."""
    import vl_convert

    chart = chart.properties(width=_WIDTH, height=_HEIGHT).configure(**_CONFIG)
    drawn: str = vl_convert.vegalite_to_svg(chart.to_dict())
    opening = re.match(r"<svg[^>]*>", drawn)
    box = re.search(r'viewBox="[-0-9. ]+"', opening[0]) if opening else None
    assert opening is not None, "vl-convert gives an SVG"
    assert box is not None, "with its extent"
    return f'<svg role="img" {box[0]}><title>{html.escape(title)}</title>{drawn[opening.end() :]}'
