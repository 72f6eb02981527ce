"""What each column of a table becomes: its kind from all rows, and everything that is learned from the training rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.task.preprocessing.cells import Order, days_of, number_of, orders_of
from mirabelle.task.preprocessing.columns import Column, Source
from mirabelle.task.preprocessing.delimited import Habits
from mirabelle.task.preprocessing.table import Table, mean_and_deviation, words_of

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import TableFile

Indices = npt.NDArray[np.integer]
MOST_CLASSES = 20  # more different numbers than this are quantities, and a text among them is a mistake
_SIGNS = "$€£¥% "  # beside numbers; they are not guessed away, since 12 % may be 12 or 0.12
_MOSTLY = 0.8  # fraction of cells that are numbers or dates from which on the others are mistakes
_ONE_HOT, _MOST_WORDS = 64, 10_000  # words with a feature each; words with a code
_RARE, _OFTEN_ENOUGH = 1e-3, 20  # a word below this fraction of the training rows counts as other, unless it has so many rows


@dataclass(frozen=True)
class Kind:
    """What the cells of a column are.

    Args:
        is_a: numbers, dates or words; "nothing" if every cell is missing.
        comma: whether numbers have a decimal comma; None if the cells can be read both ways.
        order: of day, month and year.
    """

    is_a: Literal["number", "date", "words", "nothing"]
    comma: bool | None = False
    order: Order = "ymd"


def kinds_of(source: Source, names: Sequence[str], settings: TableFile) -> dict[str, Kind]:
    """The kind of each column, from all its cells.

    Raises:
        UserError: E131 for a text among numbers or dates, and where numbers or dates can be read in two ways.
    """
    kinds = {name: _kind_of(source.column(name), settings) for name in names}
    commas = any(kind.comma for kind in kinds.values())
    for name, kind in kinds.items():
        if kind.comma is None:
            kinds[name] = Kind("number", _comma_of(source, source.column(name), commas=commas))
    return kinds


def _kind_of(column: Column, settings: TableFile) -> Kind:
    if column.name in settings.categories:
        return Kind("words")
    if column.values is not None:
        return Kind("date" if column.days else "number") if not np.isnan(column.values).all() else Kind("nothing")
    counts = np.bincount(column.codes, minlength=len(column.words)) * ~column.gaps
    present = [word for word, count in zip(column.words, counts, strict=True) if count]
    if not present:
        return Kind("nothing")
    fits = {comma: [number_of(word, comma=comma) is not None for word in present] for comma in (False, True)}
    allowed = fits if settings.decimal is None else {settings.decimal == ",": fits[settings.decimal == ","]}
    whole = [comma for comma, of_one in allowed.items() if all(of_one)]
    if whole:
        both = len(whole) > 1 and any(mark in word for word in present for mark in ",.")
        return Kind("number", None if both else whole[0])
    numbers = [any(number_of(word.strip(_SIGNS), comma=comma) is not None for comma in fits) for word in present]
    if sum(numbers) > MOST_CLASSES and _share(counts, numbers) >= _MOSTLY:
        column.numbers(comma=max(allowed, key=lambda comma: sum(allowed[comma])))  # raises the error for the first other text
    orders = orders_of(present)
    dates = [days_of(word, orders[0]) is not None for word in present] if orders else []
    if orders and (all(dates) or (sum(dates) > MOST_CLASSES and _share(counts, dates) >= _MOSTLY)):
        order = _order_of(column, orders, settings)
        column.dates(order)
        return Kind("date", order=order)
    return Kind("words")


def _share(counts: npt.NDArray[np.int64], fits: Sequence[bool]) -> float:
    """The fraction of the cells with a value whose word fits."""
    present = counts[counts > 0]
    return float(present[np.array(fits, bool)].sum() / present.sum())


def _comma_of(source: Source, column: Column, *, commas: bool) -> bool:
    """Whether numbers that can be read both ways have a decimal comma: as the other columns, or else as the separator shows."""
    example = next(word for word in column.words if "," in word or "." in word)
    if "," in example and (commas or source.separator in ("", ",")):
        return commas
    if "," not in example and not commas:
        return False
    place = f'{source.path}, column "{column.name}"'
    message = f'{place}: numbers such as "{example}" can be read with a decimal comma or a decimal point'
    raise UserError("E131", message, 'write decimal = "," or decimal = "."')


def _order_of(column: Column, orders: Sequence[Order], settings: TableFile) -> Order:
    if len(orders) == 1:
        return orders[0]
    if settings.day_first is None:
        example = next(word for word, gap in zip(column.words, column.gaps, strict=True) if not gap)
        message = f'{column.place(0)}, column "{column.name}": in dates such as "{example}" the day or the month may be first'
        raise UserError("E131", message, "write day_first = true or day_first = false")
    return "dmy" if settings.day_first else "mdy"


@dataclass
class _Parts:
    """The parts of a `Table` while its columns are learned."""

    columns: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    codes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fill: dict[str, float] = field(default_factory=dict)
    flagged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, mean: float = 0.0, deviation: float = 1.0) -> None:
        self.columns.append(name)
        self.mean.append(mean)
        self.deviation.append(deviation)


def learned_table(
    source: Source, kinds: Mapping[str, Kind], train: Indices, settings: TableFile, habits: Habits
) -> tuple[Table, list[str]]:
    """The preprocessing of the columns, learned from the training rows, and sentences on columns that are left out.

    Args:
        source: the table.
        kinds: of the columns that may be used, in their order.
        train: the positions of the training rows.
        settings: name columns whose codes stay as they are.
        habits: how the file is written.

    Raises:
        UserError: E131 for a cell that is not a finite number, or if no column is left.
    """
    parts = _Parts()
    for name, kind in kinds.items():
        column = source.column(name)
        if kind.is_a == "nothing":
            parts.notes.append(f"Column {name} has no value in any row; it is left out.")
        elif kind.is_a == "words":
            _learn_words(parts, column, train, embedded=name in settings.embed)
        else:
            _learn_numbers(parts, column, kind, train)
        del column  # before the next one is read
    if not parts.columns:
        remedy = 'give other columns; texts are read with a tokenizer: arguments = { tokenizer = "./bert" }'
        raise UserError("E131", f"{source.path} has no column from which anything can be learned", remedy)
    used = set(parts.columns)
    table = Table(
        columns=tuple(parts.columns),
        mean=tuple(parts.mean),
        deviation=tuple(parts.deviation),
        words=parts.words,
        codes=parts.codes,
        embedded=tuple(name for name in settings.embed if name in parts.codes),
        dates={name: kind.order for name, kind in kinds.items() if kind.is_a == "date" and name in used},
        fill=parts.fill,
        flagged=tuple(parts.flagged),
        commas=tuple(name for name, kind in kinds.items() if kind.comma and name in used),
        habits=habits,
    )
    return table, parts.notes


def _learn_numbers(parts: _Parts, column: Column, kind: Kind, train: Indices) -> None:
    name = column.name
    values = column.dates(kind.order) if kind.is_a == "date" else column.numbers(comma=bool(kind.comma))
    learned = values[train]
    missing = np.isnan(learned)
    if missing.all():
        parts.notes.append(f"Column {name} has no value in the training rows; it is left out.")
        return
    if missing.any() or np.isnan(values).any():
        parts.fill[name] = float(np.median(learned[~missing]))
        learned[missing] = parts.fill[name]
    if missing.any():
        parts.flagged.append(name)
    mean, deviation = mean_and_deviation(learned[:, np.newaxis])
    parts.add(name, mean[0], deviation[0])
    if kind.is_a == "number" and _counts_rows(values):
        parts.notes.append(
            f"Column {name} numbers the rows. If it is only an identifier, leave it out: ignore = [{name!r}].".replace("'", '"')
        )


def _counts_rows(values: npt.NDArray[np.float64]) -> bool:
    """Whether each value is that of the row before and 1."""
    return len(values) > MOST_CLASSES and bool((values[1:] == values[:-1] + 1).all())


def _learn_words(parts: _Parts, column: Column, train: Indices, *, embedded: bool) -> None:
    name = column.name
    words, codes = words_of(column)
    counts: dict[str, int] = {}
    for word, count in zip(words, np.bincount(codes[train], minlength=len(words)).tolist(), strict=True):
        counts[word] = counts.get(word, 0) + count
    least = min(max(2, int(_RARE * len(train))), _OFTEN_ENOUGH)
    kept = sorted((word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word))
    if not kept:
        reason = "almost every row has a text of its own"
        parts.notes.append(f"Column {name} is left out: {reason}, as in names and identifiers.")
    elif counts[kept[0]] == len(train):
        parts.notes.append(f'Column {name} is left out: it has one value in all training rows, "{kept[0]}".')
    elif embedded or len(kept) > _ONE_HOT:
        parts.codes[name] = tuple(kept[:_MOST_WORDS])
        parts.add(name)
    else:
        parts.words[name] = tuple(sorted(kept))
        parts.add(name)
