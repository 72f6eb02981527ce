"""A chart with two axes as SVG: text escaped, no script, no outside reference.

Colors are CSS variables of the page, so that one drawing serves light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

WIDTH, HEIGHT, FONT = 330, 190, 12  # pixels of the area between the axes, and of letters
LETTER = 6.8  # pixels of a letter of this size, about
INK, SOFT, LINE, FIRST, SECOND = (f"var(--{name})" for name in ("ink", "soft", "line", "plum", "gold"))
_WIDEST = 8.0  # pixels of a wide letter, so that no word is cut off at the edge
_FEW_DECADES = 200
_GAP = 8  # pixels between an axis and its labels
_TOP, _BOTTOM, _RIGHT = 22, 46, 14  # pixels around the area between the axes


@dataclass(frozen=True)
class Axis:
    """Where values are drawn along one side of a chart.

    Args:
        low, high: the values at its ends, low < high.
        ticks: the values that are labelled.
        label: a value as text.
        logarithmic: whether equal ratios take equal lengths, instead of equal differences.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    label: Callable[[float], str]
    logarithmic: bool = False

    @staticmethod
    def linear(
        low: float, high: float, label: Callable[[float], str], *, count: int = 5, whole: bool = False, padding: float = 0.0
    ) -> Axis:
        """About `count` ticks at multiples of 1, 2 or 5 · 10ⁿ.

        Without `whole`, the ends are moved outwards to multiples of the step between ticks; with it they stay, and ticks are
        whole numbers.

        Args:
            padding: the part of the range by which both ends are moved outwards first.

        Example:
            >>> Axis.linear(0.71, 0.98, str).ticks
            (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
        """
        if low == high:
            low, high = low - (abs(low) / 10 or 1.0), high + (abs(high) / 10 or 1.0)
        low, high = low - padding * (high - low), high + padding * (high - low)
        power = 10.0 ** math.floor(math.log10((high - low) / count))
        step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= count + 1)
        step = max(step, 1.0) if whole else step
        first, last = math.ceil(low / step), math.floor(high / step)
        if not whole:
            first, last = math.floor(low / step), math.ceil(high / step)
            low, high = first * step, last * step
        return Axis(low, high, tuple(float(f"{number * step:.12g}") for number in range(first, last + 1)), label)

    @staticmethod
    def log(low: float, high: float, label: Callable[[float], str]) -> Axis:
        """Ticks at powers of ten, and at 2 and 5 times these where they are few; 0 < low < high.

        Example:
            >>> Axis.log(3, 60, str).ticks
            (5.0, 10.0, 20.0, 50.0)
        """
        between = (1, 2, 5) if high / low < _FEW_DECADES else (1,)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [tick for decade in decades for step in between if low <= (tick := step * 10.0**decade) <= high]
        return Axis(low, high, tuple(ticks), label, logarithmic=True)

    def share(self, value: float) -> float:
        """The place of a value: 0 at the low end, 1 at the high end."""
        low, high, value = (math.log(part) if self.logarithmic else part for part in (self.low, self.high, value))
        return (value - low) / (high - low)


class Drawing:
    """Lines, dots and words over two axes; x grows to the right, y upwards.

    Args:
        title: what the chart shows, for those who do not see it.
        x, y: the axes.
        x_title: what x counts.
    """

    def __init__(self, title: str, x: Axis, y: Axis, x_title: str) -> None:
        self._title = title
        self._x, self._y = x, y
        self._marks: list[str] = []
        self._left, self._right = -44.0, WIDTH + float(_RIGHT)
        for tick in y.ticks:
            height = self._height(tick)
            self._segment(0, height, WIDTH, height, LINE)
            self._words(-_GAP, height + FONT / 3, y.label(tick), SOFT, "end")
        for tick in x.ticks:
            self._words(self._across(tick), HEIGHT + FONT + _GAP, x.label(tick), SOFT)
        self._words(WIDTH / 2, HEIGHT + 2 * (FONT + _GAP), x_title, SOFT)

    def line(self, points: Iterable[tuple[float, float]], color: str, *, width: float = 2.0, opacity: float = 1.0) -> None:
        """Straight lines from point to point."""
        way = "L".join(f"{self._across(x):.1f},{self._height(y):.1f}" for x, y in points)
        style = f'fill="none" stroke="{color}" stroke-width="{width:g}" stroke-linejoin="round" opacity="{opacity:g}"'
        self._marks.append(f'<g class="mark-line"><path d="M{way}" {style}/></g>')

    def dot(self, x: float, y: float, color: str, *, radius: float = 4.5, words: str = "") -> None:
        """A filled circle; `words` are shown when the pointer rests on it."""
        hint = f"<title>{html.escape(words)}</title>" if words else ""
        where = f'cx="{self._across(x):.1f}" cy="{self._height(y):.1f}" r="{radius:g}"'
        self._marks.append(f'<circle {where} fill="{color}">{hint}</circle>')

    def interval(self, x: float, low: float, high: float, color: str) -> None:
        """A vertical line from `low` to `high`."""
        self._segment(self._across(x), self._height(low), self._across(x), self._height(high), color, opacity=0.55, width=1.5)

    def begin(self, x: float, words: str) -> None:
        """A dashed line over the whole height, with words at its upper end."""
        self._segment(self._across(x), 0, self._across(x), HEIGHT, SOFT, opacity=0.8, dashes="2 3")
        self._words(self._across(x) + 4, -4, words, INK, "start")

    def text(self, x: float, y: float, words: str, *, below: bool = False) -> None:
        """Words in the middle above a point, or below it."""
        self._words(self._across(x), self._height(y) + (FONT + 4 if below else -6), words, INK)

    def svg(self) -> str:
        """The drawing, in the width of its place."""
        box = f"{self._left:.0f} {-_TOP} {self._right - self._left:.0f} {HEIGHT + _TOP + _BOTTOM}"
        title = f"<title>{html.escape(self._title)}</title>"
        return f'<svg role="img" viewBox="{box}">{title}<g font-size="{FONT}">{"".join(self._marks)}</g></svg>'

    def _across(self, value: float) -> float:
        return WIDTH * self._x.share(value)

    def _height(self, value: float) -> float:
        return HEIGHT * (1 - self._y.share(value))

    def _segment(
        self, x1: float, y1: float, x2: float, y2: float, color: str, *, opacity: float = 1.0, width: float = 1.0,
        dashes: str = "none",
    ) -> None:  # fmt: skip
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        style = f'stroke="{color}" stroke-width="{width:g}" stroke-dasharray="{dashes}" opacity="{opacity:g}"'
        self._marks.append(f"<line {ends} {style}/>")

    def _words(self, x: float, y: float, words: str, color: str, anchor: str = "middle") -> None:
        """Words with their left end, middle or right end at x; the drawing becomes as wide as they need."""
        pixels = len(words) * _WIDEST
        start = x - pixels * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        self._left, self._right = min(self._left, start), max(self._right, start + pixels)
        where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"'
        self._marks.append(f"<text {where}>{html.escape(words)}</text>")


def number(value: float) -> str:
    """A number in few digits, with a minus sign.

    Example:
        >>> number(0.25), number(-3.0)
        ('0.25', '−3')
    """
    return f"{value:.8g}".replace("-", "−")


def percentage(value: float) -> str:
    """A fraction in percent.

    Example:
        >>> percentage(0.975)
        '97.5%'
    """
    return f"{number(100 * value)}%"


def in_thousands(value: float) -> str:
    """A number with k, M or G for thousands, millions and billions.

    Example:
        >>> in_thousands(18_000), in_thousands(200)
        ('18k', '200')
    """
    factor, letter = next((pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= pair[0]), (1.0, ""))
    return f"{number(value / factor)}{letter}"


def fitted(text: str, pixels: float) -> str:
    """As much of a text as that many pixels hold, cut off with an ellipsis; nothing where that is two letters or fewer.

    Example:
        >>> fitted("prune.Weights", 60), fitted("prune.Weights", 15)
        ('prune.W…', '')
    """
    letters = max(int(pixels / LETTER), 0)
    return text if len(text) <= letters else f"{text[: letters - 1]}…" if letters > 2 else ""  # noqa: PLR2004
