"""Charts: where values are drawn, and that every word stays inside."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from mirabelle.report.drawing import Axis, Drawing, number


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.71, 0.98), (-3.0, -3.0), (0.0, 0.0), (1e-9, 2e-9), (-1e9, 7e8), (0.1, 0.3), (5.0, 5.0 + 1e-12)],
)
def test_a_linear_axis_holds_its_values_between_few_round_ticks(low: float, high: float) -> None:
    axis = Axis.linear(low, high, number)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert list(axis.ticks) == sorted(axis.ticks)
    assert axis.share(axis.low) == 0.0
    assert axis.share(axis.high) == 1.0


@pytest.mark.parametrize("epochs", [1, 2, 7, 21, 100, 12_345])
def test_epochs_have_whole_ticks_inside_the_axis(epochs: int) -> None:
    axis = Axis.linear(0, epochs, number, whole=True)
    assert (axis.low, axis.high) == (0, epochs)
    assert all(tick == int(tick) and 0 <= tick <= epochs for tick in axis.ticks)
    assert len(axis.ticks) >= 2


def test_equal_ratios_take_equal_lengths_on_a_logarithmic_axis() -> None:
    axis = Axis.log(1.0, 1000.0, number)
    assert axis.ticks == (1.0, 10.0, 100.0, 1000.0)
    assert [axis.share(tick) for tick in axis.ticks] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_every_mark_and_every_word_lies_inside_the_drawing() -> None:
    drawing = Drawing("a chart", Axis.log(10, 1000, number), Axis.linear(-1e6, 1e6, number), "bytes")
    drawing.line([(10, -1e6), (1000, 1e6)], "red")
    drawing.dot(1000, 1e6, "red", words="<the end>")
    drawing.text(1000, 1e6, "a long name of a step")
    drawing.text(10, -1e6, "another long name", below=True)
    root = ET.fromstring(drawing.svg())
    left, top, width, height = (float(part) for part in root.attrib["viewBox"].split())
    for text in root.iter("text"):
        pixels = 8 * len(text.text or "")
        start = float(text.attrib["x"]) - pixels * {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
        assert left - 1 <= start
        assert start + pixels <= left + width + 1
        assert top <= float(text.attrib["y"]) <= top + height
    (path,) = root.iter("path")
    assert [float(part) for part in re.findall(r"[-0-9.]+", path.attrib["d"])] == [0.0, 190.0, 330.0, 0.0]
    (circle,) = root.iter("circle")
    assert circle[0].text == "<the end>"
    assert not math.isnan(float(circle.attrib["cx"]))
