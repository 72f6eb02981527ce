"""What the cells of a table mean: numbers with decimal points or commas, dates, and cells without a value."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable
from typing import Literal

MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "nat", "?"))  # in lower case
Order = Literal["ymd", "dmy", "mdy"]  # of day, month and year in a date

_SPACES = "[ '\N{RIGHT SINGLE QUOTATION MARK}\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}]"
_WITH_POINT = re.compile(rf"[+-]?\d{{1,3}}(?:(?:,\d{{3}})+|(?:{_SPACES}\d{{3}})+)(?:\.\d*)?")
_WITH_COMMA = re.compile(
    rf"[+-]?(?:\d+|\d{{1,3}}(?:(?:\.\d{{3}})+|(?:{_SPACES}\d{{3}})+))(?:,\d*)?(?:[eE][+-]?\d+)?|[+-]?,\d+(?:[eE][+-]?\d+)?"
)
_GROUPS = re.compile(rf"{_SPACES}")
_TIME = r"(?:[ T]+(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?\s*(?:Z|UTC|([+-])(\d{2}):?(\d{2}))?)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})([-/.])(\d{{1,2}})\2(\d{{1,2}}){_TIME}")
_YEAR_LAST = re.compile(rf"(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}}){_TIME}")
_EPOCH = dt.date(1970, 1, 1).toordinal()
_MONTHS = 12


def is_missing(text: str) -> bool:
    """Whether a cell says that there is no value: empty, NA, N/A, NaN, null, None, NaT or ?."""
    return text.casefold() in MISSING


def number_of(text: str, *, comma: bool = False) -> float | None:
    """The finite number in a cell; None if it is none.

    Args:
        text: the cell without spaces at its ends. Groups of three digits may be separated.
        comma: whether the decimal mark is a comma; then a point separates groups of three digits.

    Example:
        >>> number_of("1,234.5"), number_of("1.234,5", comma=True), number_of("1 234")
        (1234.5, 1234.5, 1234.0)
        >>> number_of("1,5"), number_of("1.5", comma=True)
        (None, None)
    """
    if comma:
        if not _WITH_COMMA.fullmatch(text):
            return None
        text = _GROUPS.sub("", text).replace(".", "").replace(",", ".")
    elif _WITH_POINT.fullmatch(text):
        text = _GROUPS.sub("", text).replace(",", "")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def days_of(text: str, order: Order) -> float | None:
    """The days from 1 January 1970 to the date in a cell, with the time as a fraction; None if it is no date.

    Example:
        >>> days_of("1970-01-02 12:00", "ymd"), days_of("03.02.1970", "dmy"), days_of("30.02.1970", "dmy")
        (1.5, 33.0, None)
    """
    found = (_YEAR_FIRST if order == "ymd" else _YEAR_LAST).fullmatch(text)
    if found is None:
        return None
    first, _, second, third, hour, minute, seconds, sign, hours, minutes = found.groups()
    year, month, day = {"ymd": (first, second, third), "dmy": (third, second, first), "mdy": (third, first, second)}[order]
    try:
        days = float(dt.date(int(year), int(month), int(day)).toordinal() - _EPOCH)
    except ValueError:
        return None
    if hour is not None:
        days += int(hour) / 24 + int(minute) / 1440 + float(seconds or 0) / 86400
    if sign is not None:
        days -= (1 if sign == "+" else -1) * (int(hours) / 24 + int(minutes) / 1440)
    return days


def orders_of(texts: Iterable[str]) -> tuple[Order, ...]:
    """The orders of day, month and year in which most of the texts are dates; several if the texts do not tell.

    Dates with points have the day first.

    Example:
        >>> orders_of(["2020-01-31"]), orders_of(["1/2/2020"]), orders_of(["1/31/2020", "1/2/2020"]), orders_of(["red"])
        (('ymd',), ('dmy', 'mdy'), ('mdy',), ())
    """
    texts = list(texts)
    counts: dict[Order, int] = {"ymd": sum(days_of(text, "ymd") is not None for text in texts)}
    years_last = [found for text in texts if (found := _YEAR_LAST.fullmatch(text))]
    counts["dmy"] = sum(int(found[3]) <= _MONTHS for found in years_last)
    counts["mdy"] = sum(int(found[1]) <= _MONTHS and found[2] != "." for found in years_last)
    most = max(counts.values())
    return tuple(order for order, count in counts.items() if count == most and 2 * count > len(texts))
