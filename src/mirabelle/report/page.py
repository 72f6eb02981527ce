"""Renders a report as a self-contained HTML page without scripts, and as a model card in Markdown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mirabelle.model.left_alone import few
from mirabelle.report.card_header import header
from mirabelle.report.charts import loss_chart, metric_chart, spans, trail_chart
from mirabelle.report.document import Report
from mirabelle.report.table import conditions, rows, value
from mirabelle.report.verdict import change, in_points, metrics, plain, signed, title_of
from mirabelle.run import files

PAGES = ("README.md", "report.html")


def write_pages(report: Report, folder: Path, page_at: Path | None = None) -> Path:
    """Write README.md and report.html into `folder`, or only the page to `page_at`; returns the path of the page."""
    if page_at is None:
        files.write_text(folder / PAGES[0], card(report))
    place = page_at or folder / PAGES[1]
    files.write_text(place, page(report))
    return place


def page(report: Report) -> str:
    """The report as one HTML file: no external resources, no scripts, all names escaped."""
    drawings = {"loss": loss_chart(report), "metric": metric_chart(report), "trail": trail_chart(report)}
    return _rendered(
        "page.html.jinja",
        report,
        # The text inside a chart was escaped when the chart was made.
        charts={name: Markup(svg) for name, svg in drawings.items()},  # noqa: S704
        spans=spans(report.curves),
        tiles=tiles(report),
        layer_bytes=max(sum(layer.size_bytes for layer in report.layers), 1),
        recipe=tomli_w.dumps(dict(report.recipe)),
    )


def card(report: Report) -> str:
    """The report as a model card in Markdown, with the metadata that model hubs read."""
    return _rendered("card.md.jinja", report, header=header(report))


@dataclass(frozen=True)
class Bar:
    """A line of a tile; `share` is the length of its bar in percent, None for a line without a bar."""

    name: str
    text: str
    share: float | None = None


@dataclass(frozen=True)
class Tile:
    """A box with one headline number, its unit, and the values from which it was computed."""

    title: str
    figure: str
    unit: str
    rows: tuple[Bar, ...]


def tiles(report: Report) -> list[Tile]:
    """The tiles for size, latency (if measured) and metric."""
    start, end, ratio = report.start, report.end, report.comparison.latency_ratio
    torch, packed = start.size_bytes.torch, end.size_bytes.packed or 0
    smaller = packed <= torch
    size = torch / max(packed, 1) if smaller else packed / torch
    bars = _bars(f"{torch:,} bytes", f"{packed:,} bytes", packed / torch)
    boxes = [Tile("Size", f"{size:.1f}×", "smaller on disk" if smaller else "larger on disk", bars)]
    if start.latency_ms is not None and end.latency_ms is not None:
        old, new = f"{start.latency_ms.median:.4g} ms", f"{end.latency_ms.median:.4g} ms"
        figure = max(ratio.median, 1 / ratio.median)
        unit = "no significant difference" if ratio.unchanged else "faster" if ratio.median < 1 else "slower"
        boxes.append(Tile("Latency", f"{figure:.2f}×", unit, _bars(old, new, ratio.median)))
    return [*boxes, _metric_tile(report)]


def _bars(before: str, after: str, ratio: float) -> tuple[Bar, ...]:
    """Two lines with bars of lengths 1 : `ratio`, the longer one at 100 %; `ratio` is after / before."""
    longest = max(ratio, 1.0)
    return (Bar("before", before, 100 / longest), Bar("after", after, 100 * ratio / longest))


def _metric_tile(report: Report) -> Tile:
    before, after = metrics(report.start, report.end)
    points = " points" if in_points(before, after) else ""
    lines = [Bar("before", value(before)), Bar("after", value(after))]
    interval = report.comparison.difference
    if interval is not None:
        scale = 100 if points else 1
        lines.append(Bar("95 %", f"{signed(interval.low * scale, points)} to {signed(interval.high * scale, points)}{points}"))
    lines.append(Bar("test", "significant difference" if report.comparison.different else "no significant difference"))
    constant = report.constant
    if constant is not None:
        lines.append(Bar("constant", plain(after, constant.value)))
        if not constant.start_learned:
            told = "after; the start had learned nothing" if constant.end_learned else "not better than a constant answer"
            return Tile(after.name, value(after), told, tuple(lines[:2] + lines[-1:]))
    return Tile(after.name, signed(change(report.start, report.end, report.comparison), points), points.strip(), tuple(lines))


def _rendered(template: str, report: Report, **more: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "value": value,
        "count": _count,
        "few": few,
        "markdown": _markdown,
        "parentheses": _with_parentheses_marked,
    }
    latency = report.end.latency_ms
    processor = report.environment.get("processor", "an unknown processor")
    return environment.get_template(template).render(
        report=report,
        rows=rows(report),
        conditions=conditions(report.end, processor),
        processor=processor,
        digest=files.TEXT_DIGEST,
        runtime=title_of(latency.runtime) if latency else None,
        **more,
    )


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,}"


def _markdown(text: object) -> str:
    """Text escaped for Markdown and joined into one line: no tags, links, table cells or emphasis."""
    return re.sub(r"([\\`*\[\]<>|#!])", r"\\\1", " ".join(str(text).split()))


def _with_parentheses_marked(text: str) -> Markup:
    """Text escaped for HTML, with parenthesized parts inside <span> elements so that they can be styled."""
    return Markup(re.sub(r"(\([^()]*\))", r"<span>\1</span>", str(escape(text))))  # noqa: S704 (escaped above)
