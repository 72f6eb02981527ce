"""A comparison at equal budgets as a self-contained HTML page without scripts: verdict, charts and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mirabelle.report.drawing import Axis, Drawing, in_thousands, number, percentage
from mirabelle.run import files

_COLORS = 8  # in the template
_MARGIN = 1.6  # times the smallest and the largest cost
_PADDING = 0.05  # of the range of the metric
_AXES = {
    "size": ("size_bytes", "bytes of the packed file"),
    "macs": ("macs", "multiply-accumulates for one sample"),
    "latency": ("milliseconds", "milliseconds of a call"),
}


@dataclass(frozen=True)
class Chart:
    """The metric against one kind of cost, and the colors of the candidates."""

    title: str
    svg: Markup
    key: tuple[Mapping[str, str], ...]


def comparison_page(data: Mapping[str, Any], name: str) -> str:
    """The page.

    Args:
        data: the content of `comparison.json`.
        name: of the comparison.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    limits = data["limits"]
    kinds = dict.fromkeys(limit["kind"] for limit in limits)
    names = list(dict.fromkeys(row["name"] for limit in limits for row in limit["candidates"]))
    colors = {name: f"var(--c{place % _COLORS})" for place, name in enumerate(names)}
    return environment.get_template("comparison.html.jinja").render(
        name=name,
        digest=files.TEXT_DIGEST,
        verdict=data["verdict"],
        metric=limits[0]["metric"],
        judge=limits[0]["judge"],
        seeds="one seed" if data["seeds"] == 1 else f"{data['seeds']} seeds",
        charts=[chart for kind in kinds if (chart := _chart(kind, [one for one in limits if one["kind"] == kind], colors))],
        tables=[_table(limit) for limit in limits],
        conditions=data["conditions"],
    )


def _chart(kind: str, limits: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> Chart | None:
    """None if there is nothing that can be drawn."""
    field, title = _AXES[kind]
    points: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for row in (row for limit in limits for row in limit["candidates"]):
        if row[field] and all(map(math.isfinite, row["metric"])):
            points.setdefault(row["name"], []).append((row[field], row["metric"]))
    if not points:
        return None
    costs = [cost for line in points.values() for cost, _ in line]
    ends = [end for line in points.values() for _, metric in line for end in metric]
    share = all(limit["in_points"] for limit in limits)
    label = percentage if share else number
    drawing = Drawing(
        f"{limits[0]['metric']} against {title}",
        Axis.log(min(costs) / _MARGIN, max(costs) * _MARGIN, in_thousands),
        Axis.linear(min(ends), max(ends), label, padding=0.0 if share else _PADDING),
        title,
    )
    for name, line in points.items():
        drawing.line([(cost, metric[0]) for cost, metric in sorted(line)], colors[name], opacity=0.6)
        for cost, (mean, below, above) in line:
            drawing.interval(cost, below, above, colors[name])
            drawing.dot(cost, mean, colors[name], words=f"{name}: {label(mean)} at {in_thousands(cost)}")
    key = tuple({"name": name, "color": colors[name]} for name in points)
    return Chart(f"Against {title}", Markup(drawing.svg()), key)  # noqa: S704 (escaped by the drawing)


def _table(limit: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for row in limit["candidates"]:
        mean, low, high = row["metric"]
        cells = (
            row["title"],
            f"{mean:.4f}",
            f"{low:.4f} to {high:.4f}",
            row["ahead"],
            "" if row["p_of_next"] is None else f"{row['p_of_next']:.2g}",
            f"{row['size_bytes']:,.0f}",
            f"{row['macs']:,.0f}",
            "" if row["milliseconds"] is None else f"{row['milliseconds']:.3g}",
            f"{row['seconds']:,.0f}",
        )
        rows.append({"cells": cells, "leads": row["name"] in limit["leaders"]})
    remarks = [f"{name} is left out: {why}." for name, why in limit["cannot"].items()]
    return {"title": f"At most {limit['words']}", "rows": rows, "remarks": remarks}
