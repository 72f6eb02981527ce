"""The metadata at the top of a model card, as hubs read it: what a run has measured or its source says, and nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mirabelle.report.verdict import metrics
from mirabelle.task.profile import MeasuredMetric

if TYPE_CHECKING:
    from mirabelle.report.document import Report

# Our name of a metric -> (name on hubs, factor of its value): errors are negative here, so that higher is better.
_ON_HUBS = {
    "negative_squared_error": ("mse", -1.0),
    "negative_absolute_error": ("mae", -1.0),
    "negative_perplexity": ("perplexity", -1.0),
    "negative_calibration_error": ("calibration_error", -1.0),
    "negative_relative_error": ("relative_error", -1.0),
}
_TAGS = {"prune": "pruning", "quantize": "quantization", "distill": "distillation"}
_FROM_SOURCE = ("license", "license_name", "license_link", "base_model")


def header(report: Report) -> str:
    """The metadata in YAML, between lines of three dashes.

    Licence and base model are those that the source of the model states; the task is written if it is known, and a metric if it
    is a finite number.
    """
    families = [str(step.get("use", "")).partition(".")[0] for step in report.recipe.get("step", ())]
    tags = ["mirabelle", "onnx", "model-compression", *dict.fromkeys(_TAGS[one] for one in families if one in _TAGS)]
    _, metric = metrics(report.start, report.end)
    name, value = _on_hubs(metric)
    entries: dict[str, Any] = {key: report.about[key] for key in _FROM_SOURCE if key in report.about}
    if "base_model" in entries and "quantize" in families:
        entries["base_model_relation"] = "quantized"
    entries["library_name"] = "onnx"
    if "pipeline_tag" in report.about:
        entries["pipeline_tag"] = report.about["pipeline_tag"]
    entries |= {"tags": tags, "metrics": [name]}
    if math.isfinite(value):
        entries["model-index"] = [{"name": report.name, "results": [_result(report, name, value, metric.n)]}]
    return "\n".join(["---", *_yaml(entries), "---"])


def _result(report: Report, name: str, value: float, samples: int) -> dict[str, Any]:
    task = report.about.get("pipeline_tag", "other")
    data = report.name or "data"
    return {
        "task": {"type": task},
        "dataset": {"name": data, "type": re.sub(r"[^\w.-]+", "-", data).strip("-") or "data", "split": "test"},
        "metrics": [{"type": name, "value": value, "name": f"{name}, {samples} test samples"}],
    }


def _on_hubs(metric: MeasuredMetric) -> tuple[str, float]:
    name, factor = _ON_HUBS.get(metric.name, (metric.name, 1.0))
    return name, factor * metric.value


def _yaml(value: Any) -> Iterator[str]:
    """The lines of a table or list in YAML."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, (Mapping, list)):
                yield f"{key}:"
                yield from (f"  {line}" for line in _yaml(inner))
            else:
                yield f"{key}: {_scalar(inner)}"
        return
    for inner in value:
        lines = list(_yaml(inner)) if isinstance(inner, Mapping) else [_scalar(inner)]
        yield from (f"{'- ' if first == 0 else '  '}{line}" for first, line in enumerate(lines))


def _scalar(value: Any) -> str:
    """A text or number as JSON, which is YAML, too; a text as one line of printable characters, without tags of HTML."""
    if isinstance(value, str):
        value = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(value.split()))
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
