"""The page in a real browser: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirabelle.report import Report
from mirabelle.report.page import page as rendered

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LONG = "a_metric_with_a_name_that_no_table_was_made_for_" * 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def make_page(data: dict[str, Any], tmp_path: Path) -> Callable[[str], Path]:
    """Writes the page of a report with plain or with long names."""

    def make(names: str) -> Path:
        if names == "long":
            data["name"] = data["environment"]["processor"] = data["layers"][0]["name"] = LONG
            data["start"]["metric"]["name"] = data["end"]["metric"]["name"] = data["trail"][1]["step"] = LONG
            data["goal"]["asked"] = {LONG: LONG}
            data["gates"]["torch_onnx"] |= {"detail": LONG, "passed": False}
            data["curves"][0]["step"] = LONG
        path = tmp_path / "report.html"
        path.write_text(rendered(Report.from_data(data)), "utf-8")
        return path

    return make


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("light", 1200), ("dark", 390), ("dark", 1200)])
@pytest.mark.parametrize("names", ["plain", "long"])
def test_the_page_is_whole_in_chromium(browser: Any, make_page: Any, scheme: Any, width: int, names: str) -> None:
    path = make_page(names)
    told: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    try:
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert told == []
        assert asked == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".verdict").is_visible()
        drawings = page.locator("figure svg")
        assert drawings.count() == 3
        for drawing in drawings.all():
            box = drawing.bounding_box()
            assert box["width"] > 250
            assert box["height"] > 120
        # Colours of drawings are variables of the page: a line must stand out from the paper in either scheme.
        paper, line = page.evaluate(
            """() => { const line = document.querySelector('figure svg .mark-line path');
            return [getComputedStyle(document.body).backgroundColor, getComputedStyle(line).stroke]; }"""
        )
        assert abs(_luminance(paper) - _luminance(line)) > 0.25
        assert (_luminance(paper) < 0.5) == (scheme == "dark")
        assert page.evaluate("getComputedStyle(document.querySelector('.share .bar')).width") not in ("0px", "auto")
    finally:
        page.close()


def test_the_policy_holds_back_a_script_that_got_in(browser: Any, report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(rendered(report).replace("</main>", "<script>document.title = 'owned'</script></main>"), "utf-8")
    page = browser.new_page()
    try:
        page.goto(path.as_uri())
        assert page.title() == "digits: compressed by Mirabelle"
    finally:
        page.close()


def _luminance(color: str) -> float:
    red, green, blue = (int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(","))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
