"""The page: self-contained, escaped, and the same each time it is made."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from mirabelle.report import Report
from mirabelle.report.charts import loss_chart, metric_chart, trail_chart
from mirabelle.report.page import card, page

HOSTILE = "</svg></title></style><script>alert('1')</script>\"&[x](javascript:1)|`"


class Tags(HTMLParser):
    """The elements and the attributes that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}


def hostile(data: dict[str, Any]) -> Report:
    data["name"] = HOSTILE
    data["environment"] |= {"processor": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}}
    data["recipe"] |= {HOSTILE: HOSTILE}
    data["goal"] = {"asked": {HOSTILE: HOSTILE}, "met": True, "shortfalls": [{"name": HOSTILE, "limit": 1.0, "value": 2.0}]}
    data["gates"] = {HOSTILE: {"passed": False, "worst": 1.0, "detail": HOSTILE}}
    for end in ("start", "end"):
        data[end]["metric"]["name"] = data[end]["latency_ms"]["runtime"] = HOSTILE
    for entry in data["trail"]:
        entry["step"] = HOSTILE
    data["trail"][0]["step"] = "<script>"
    for entry in data["layers"]:
        entry["name"] = entry["kind"] = HOSTILE
    for entry in data["curves"]:
        entry["step"] = entry["where"] = HOSTILE
    data["curves"][0]["step"] = "<b>bold"
    return Report.from_data(data)


def test_no_name_breaks_out_of_its_place(report: Report, data: dict[str, Any]) -> None:
    harmless, evil = Tags(page(report)), Tags(page(hostile(data)))
    assert set(evil.names) == {*harmless.names, "ul", "li"}  # of the remarks that a missed goal brings
    assert evil.attributes == harmless.attributes
    assert not {"script", "b", "link", "img", "iframe"} & set(evil.names)
    assert not {name for name in evil.attributes if name.startswith("on")} | {"href", "src"} & evil.attributes
    assert "&lt;script&gt;" in page(hostile(data))


def test_a_drawing_is_well_formed_and_keeps_names_as_text(data: dict[str, Any]) -> None:
    report = hostile(data)
    for chart in (loss_chart, metric_chart, trail_chart):
        root = ET.fromstring(chart(report))
        assert {element.tag for element in root.iter()} <= {"svg", "title", "g", "path", "line", "text", "circle"}
    texts = [element.text for element in ET.fromstring(trail_chart(report)).iter("text")]
    assert "<script>" in texts
    assert f"{HOSTILE[:23]}…" in texts


def test_the_card_has_no_tag_no_link_and_no_column_from_a_name(data: dict[str, Any]) -> None:
    _, head, text = card(hostile(data)).split("---\n", 2)
    assert "<" not in head
    assert not re.search(r"(?<!\\)<|(?<!\\)\[", text)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_nothing_is_requested_and_the_policy_says_so(report: Report) -> None:
    text = page(report)
    assert not re.search(r"(src|href)=|https?://|@import|url\(", text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text


def test_everything_is_on_the_page(report: Report) -> None:
    text = page(report)
    for part in ("10.0×", "Abacus 9", "ONNX Runtime, batch 1, 2 threads", "400 test samples", "Goal met", "not finite",
                 "mirabelle run recipe.toml", "digits_cnn", "conv1", "75.00%", "torch 2.13.0", "distill.Student"):  # fmt: skip
        assert part in text
    assert text.count("<svg") == text.count("<figure") == 3


def test_the_same_report_gives_the_same_bytes(report: Report) -> None:
    assert page(report) == page(Report.from_data(report.to_data()))


@pytest.mark.parametrize("change", ["no curves", "no trail", "constant", "no numbers", "a single epoch", "negative"])
def test_a_chart_is_left_out_rather_than_empty(data: dict[str, Any], change: str) -> None:
    expected = 3
    epochs = data["curves"][0]["epochs"]
    if change == "no curves":
        data["curves"], expected = [], 1
    elif change == "no trail":
        data["trail"], expected = data["trail"][:1], 2
    elif change == "no numbers":
        data["curves"], expected = [{"where": "a", "step": "a", "epochs": [{"epoch": 1, "loss": None, "metric": None}]}], 1
    elif change == "a single epoch":
        data["curves"] = [{"where": "a", "step": "a", "epochs": [{"epoch": 1, "loss": 0.0, "metric": 0.0}]}]
    else:
        for number, entry in enumerate(epochs):
            entry.update({"loss": 0.0, "metric": 1.0} if change == "constant" else {"loss": -1e-9, "metric": -1e9 * number})
        data["curves"] = data["curves"][:1]
    text = page(Report.from_data(data))
    assert text.count("<svg") == expected
    assert "NaN" not in text
