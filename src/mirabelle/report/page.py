"""The report as a page for a browser, self-contained and without scripts, and as a model card."""

from __future__ import annotations

from pathlib import Path

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mirabelle.profile import Profile
from mirabelle.report.document import Report


def page(report: Report) -> str:
    """One HTML file: no request, no script, every name escaped."""
    return _rendered("page.html.jinja", report)


def card(report: Report) -> str:
    """The model card in Markdown."""
    return _rendered("card.md.jinja", report)


def rows(start: Profile, end: Profile) -> list[tuple[str, str, str, str]]:
    """The before/after table: what, before, after, how many times less."""
    before, after = start.size_bytes, end.size_bytes
    pairs = [
        ("parameters", start.parameters, end.parameters),
        ("non-zero parameters", start.nonzero_parameters, end.nonzero_parameters),
        ("multiply-accumulates", start.macs, end.macs),
        ("torch file, bytes", before.torch, after.torch),
        ("ONNX file, bytes", before.onnx, after.onnx),
        ("ONNX file after gzip, bytes", before.onnx_gzip, after.onnx_gzip),
        ("packed file, bytes", before.packed, after.packed),
    ]
    table = [(name, f"{old or 0:,}", f"{new or 0:,}", _factor(old or 0, new or 0)) for name, old, new in pairs]
    if start.metric is not None and end.metric is not None:
        table.insert(0, (f"{end.metric.name} (95 % interval)", _metric(start), _metric(end), ""))
    if start.latency_ms is not None and end.latency_ms is not None:
        old_ms, new_ms = start.latency_ms.median, end.latency_ms.median
        name = f"latency, ms ({end.latency_ms.runtime}, batch {end.latency_ms.batch}, {end.latency_ms.threads} threads)"
        table.append((name, f"{old_ms:.4f}", f"{new_ms:.4f}", _factor(old_ms, new_ms)))
    return table


def _metric(profile: Profile) -> str:
    metric = profile.metric
    assert metric is not None, "asked for only where it was measured"
    if metric.low >= 0 and metric.high <= 1:
        return f"{metric.value:.2%} ({metric.low:.2%} – {metric.high:.2%})"
    return f"{metric.value:.4g} ({metric.low:.4g} – {metric.high:.4g})"


def _factor(old: float, new: float) -> str:
    return f"{old / new:.2f}×" if old and new else ""


def _rendered(template: str, report: Report) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    recipe = tomli_w.dumps({**report.recipe, "decisions": dict(report.decisions)})
    return environment.get_template(template).render(report=report, rows=rows(report.start, report.end), recipe=recipe)
