"""report.json: read back as it was written, refused when it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mirabelle.errors import UserError
from mirabelle.report import Report, read_report


def test_a_report_reads_back_what_it_wrote(report: Report) -> None:
    data = json.loads(json.dumps(report.to_data()))
    assert Report.from_data(data) == report
    assert Report.from_data(data).to_data() == report.to_data()
    assert data["comparison"]["different"] is False
    assert data["goal"]["met"] is True


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda data: data.pop("end"), "end"),
        (lambda data: data["end"].pop("macs"), "end.macs"),
        (lambda data: data["end"]["metric"].update(value="high"), "end.metric.value"),
        (lambda data: data.update(trail={}), "trail"),
        (lambda data: data["comparison"]["latency_ratio"].update(low=None), "comparison.latency_ratio.low"),
    ],
)
def test_a_damaged_report_is_refused_by_the_place_of_the_damage(ended: Path, data: Any, change: Any, place: str) -> None:
    change(data)
    (ended / "report.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=rf"is damaged at {place}") as caught:
        read_report(ended)
    assert caught.value.code == "E141"


@pytest.mark.parametrize("content", ["{", "[]", "null", "\udcff"])
def test_what_is_no_report_is_refused(ended: Path, content: str) -> None:
    (ended / "report.json").write_bytes(content.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        read_report(ended)
    assert caught.value.code == "E141"


def test_a_newer_report_is_told_from_a_damaged_one(ended: Path) -> None:
    (ended / "report.json").write_text('{"schema": 2}')
    with pytest.raises(UserError, match="schema 2, which is newer than 1") as caught:
        read_report(ended)
    assert caught.value.code == "E142"
