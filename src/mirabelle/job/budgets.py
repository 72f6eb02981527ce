"""Compare recipes at one or several equal budgets of bytes, operations or milliseconds, and say in words what is ahead."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mirabelle.errors import UserError
from mirabelle.job.comparison import compare
from mirabelle.job.comparison_results import Budget, Comparison, ComparisonRow
from mirabelle.job.fitting import UNITS, Fitted, Limit, fitted
from mirabelle.job.techniques import OpenRecipe
from mirabelle.recipe.comparison import LimitKind
from mirabelle.report.comparison_page import comparison_page
from mirabelle.report.verdict import in_points
from mirabelle.run import files
from mirabelle.run.journal import Callback
from mirabelle.task.profile import MeasuredMetric
from mirabelle.task.task import Task

_SIGNIFICANT = 0.05
_FITS = 3  # at most, of a candidate whose training adds bytes
_NO_RECIPE = ("E111", "E112")  # of a technique that does not change what is limited, or finds no layers


@dataclass(frozen=True)
class AtLimit:
    """What was found at one limit.

    Args:
        limit: of all candidates.
        comparison: of those that reach it.
        cannot: name of each other candidate -> why not.
    """

    limit: Limit
    comparison: Comparison
    cannot: Mapping[str, str]

    def neighbours(self) -> list[tuple[ComparisonRow, tuple[float, float, float] | None, float | None]]:
        """The candidates, best first, each with how much it is ahead of the next one, and p of the paired test of both."""
        rows = self.comparison.rows()
        ahead: list[Any] = [self.comparison.difference(below.name, row.name) for row, below in pairwise(rows)]
        return [(row, *found) for row, found in zip(rows, [*ahead, (None, None)], strict=True)]

    @property
    def leaders(self) -> tuple[str, ...]:
        """The best candidate within the limit, and those of which no difference to it is shown; none if none is within."""
        within = self.within()
        if not within:
            return ()
        best, *rest = within
        return (best.name, *(row.name for row in rest if not self._ahead(best.name, row.name)))

    def _ahead(self, first: str, second: str) -> bool:
        """Whether a difference is shown: over the seeds, if there are several, and over the samples."""
        (_, low, _), p_value = self.comparison.difference(second, first)
        return low > 0 and p_value < _SIGNIFICANT

    def within(self) -> list[ComparisonRow]:
        """The candidates that are within the limit after their trainings, best first."""
        return [row for row in self.comparison.rows() if not row.over]


@dataclass(frozen=True)
class Budgets:
    """What was found at each limit, the largest first.

    Args:
        found: at each limit.
        seeds: of each candidate.
        conditions: of the runs, in words.
    """

    found: tuple[AtLimit, ...]
    seeds: int
    conditions: str = ""

    def table(self) -> str:
        """A Markdown table for each limit, and the verdict."""
        parts = [self.verdict()]
        for at in self.found:
            judge, metric = at.comparison.judge, at.comparison.metric.name
            parts.append(
                f"## At most {at.limit.in_words}\n\n{_table(at)}\n\n{metric} on the {judge} data, {_seeds(self.seeds)}."
            )
            parts += [f"{name}: {why}." for name, why in at.cannot.items()]
            if (start := at.comparison.start) is not None and not start.learned:
                parts.append("The model from which all start has learned nothing, so differences to it are no gain or loss.")
        return "\n\n".join(parts) + "\n"

    def verdict(self) -> str:
        """Which candidate is ahead at which limits, in sentences."""
        sentences = []
        for leaders, group in _grouped(self.found):
            where = f"At {group[0].limit.in_words}"
            if len(group) > 1:
                where = f"From {group[0].limit.asked} to {group[-1].limit.in_words}"
            sentences.append(f"{where} {_sentence(leaders, group)}.")
        if self.seeds == 1:
            sentences.append("With one seed, differences between trainings of the same recipe are not in these intervals.")
        return " ".join(sentences)

    def write(self, out: Path) -> None:
        """Write the results as JSON, Markdown and HTML into a folder; the files are named after the split that judges."""
        data, judge = self.to_data(), self.found[0].comparison.judge
        files.write_json(out / f"{judge}.json", data)
        files.write(out / f"{judge}.md", self.table().encode())
        files.write_text(out / f"{judge}.html", comparison_page(data, out.name))

    def to_data(self) -> dict[str, Any]:
        """The results as data for JSON."""
        limits = [_as_data(at) for at in self.found]
        return {"schema": 1, "verdict": self.verdict(), "seeds": self.seeds, "conditions": self.conditions, "limits": limits}


def compare_at(
    model: nn.Module,
    task: Task,
    candidates: Mapping[str, Callable[[LimitKind], OpenRecipe]],
    limits: Sequence[Limit],
    *,
    out: Path,
    seeds: Sequence[int],
    budget: Budget,
    judge: Literal["validation", "test"] = "validation",
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Budgets:
    """Fit every candidate to every limit, and compare those that reach it, as `compare` does.

    Finished runs and fitted amounts are kept in `out`: a killed comparison goes on with what is missing.

    Args:
        model: from which all candidates start.
        task: with its teacher, if it is another model than this one.
        candidates: by name; each gives its recipe with an open amount for a kind of limit, or raises E111 or E112 where it has
            none.
        limits: of bytes, operations or milliseconds.
        out: a folder, with one for each limit.
        seeds: each candidate is run with all of them.
        budget: the training of each candidate; its limits on the result are those of `limits`.
        judge: the split for the evaluation.
        callbacks: as in `compare`.
        tell: is given a line about each fitted amount.

    Raises:
        UserError: E114 if no candidate reaches a limit; the errors of `fitted` and `compare`.
    """
    ordered = sorted(limits, key=lambda one: (one.kind, -one.value))
    under = task.with_teacher(task.teacher or model)
    fits = [
        _fitted(model, under, candidates, limit, out / _folder(limit), tell=tell) for limit in ordered
    ]  # before any training
    found: list[AtLimit] = []
    so_far = Budgets((), len(seeds))
    for limit, (recipes, cannot) in zip(ordered, fits, strict=True):
        place = out / _folder(limit)
        for turn in range(_FITS):
            comparison = compare(
                model, task, {name: fit.steps for name, fit in recipes.items()}, out=place, seeds=seeds,
                budget=_within(budget, limit), reference=next(iter(recipes)), judge=judge, callbacks=callbacks,
            )  # fmt: skip
            grown = _grown(limit, comparison, recipes) if turn + 1 < _FITS else {}
            again = {
                name: fit
                for name, factor in grown.items()
                if (fit := _fitted_again(candidates[name](limit.kind), limit, (model, under), place / name, factor))
            }
            for name in again:
                tell(f"{limit.in_words}: {name} takes {grown[name] - 1:.1%} more after its training, and is fitted again")
            if not again:
                break
            recipes.update(again)
        found.append(AtLimit(limit, comparison, cannot))
        so_far = Budgets(tuple(found), len(seeds), _conditions(model, task, budget, comparison))
        so_far.write(out)
    return so_far


def _grown(limit: Limit, comparison: Comparison, recipes: Mapping[str, Fitted]) -> dict[str, float]:
    """By which factor the bytes of candidates that are above a limit of bytes have grown in their trainings."""
    if limit.kind != "size":
        return {}
    largest = {name: max(one.size_bytes for one in outcomes) for name, outcomes in comparison.outcomes.items()}
    return {name: size / recipes[name].cost for name, size in largest.items() if size > limit.value}


def _fitted_again(recipe: OpenRecipe, limit: Limit, start: tuple[nn.Module, Task], runs: Path, grown: float) -> Fitted | None:
    """The recipe with room for what its training adds; None if it has no amount, or none that leaves so much room.

    Its runs so far, in the folder `runs`, are set aside: they do not count.
    """
    if recipe.fixed:
        return None
    kept = _amounts(runs.parent, runs.name)
    following = kept.with_name(f"{runs.name} (next).json")
    try:
        fit = fitted(recipe, limit, *start, following, grown=grown)
    except UserError as error:
        following.unlink()
        if error.code != "E114":
            raise
        return None
    number = 1
    while (aside := runs.with_name(f"{runs.name} (above the budget, {number})")).exists():
        number += 1
    runs.rename(aside)  # killed here, they are run again
    following.replace(kept)
    return fit


def _amounts(place: Path, name: str) -> Path:
    return place / "amounts" / f"{name}.json"


def _fitted(
    model: nn.Module,
    task: Task,
    candidates: Mapping[str, Callable[[LimitKind], OpenRecipe]],
    limit: Limit,
    place: Path,
    *,
    tell: Callable[[str], None],
) -> tuple[dict[str, Fitted], dict[str, str]]:
    """The candidates that reach a limit, and why the others do not.

    Raises:
        UserError: E114 if none does.
    """
    recipes: dict[str, Fitted] = {}
    cannot: dict[str, str] = {}
    for name, candidate in candidates.items():
        try:
            recipe = candidate(limit.kind)
            recipe.steps(0.0)
        except UserError as error:
            if error.code not in _NO_RECIPE:
                raise
            cannot[name] = error.message
            continue
        try:
            fit = fitted(recipe, limit, model, task, _amounts(place, name))
        except UserError as error:
            if error.code != "E114":
                raise
            cannot[name] = error.message
            tell(f"{limit.in_words}: {name} is left out: {error.message}")
            continue
        recipes[name] = fit
        tell(f"{limit.in_words}: {name} at amount {fit.amount:.3f} has {fit.cost:,.6g} {UNITS[limit.kind]}")
    if not recipes:
        raise UserError("E114", f"no candidate reaches {limit.in_words}: {'; '.join(cannot.values())}", "allow more")
    return recipes, cannot


def _within(budget: Budget, limit: Limit) -> Budget:
    if limit.kind == "latency":
        return dataclasses.replace(budget, milliseconds=limit.value)
    return dataclasses.replace(budget, **{"size_bytes" if limit.kind == "size" else "macs": int(limit.value)})


def _folder(limit: Limit) -> str:
    return f"{limit.kind}-{_folder_name(limit.asked)}"


def _folder_name(text: str) -> str:
    return re.sub(r"[^\w.+%-]+", "-", text).strip("-.") or "limit"


def _grouped(found: Sequence[AtLimit]) -> list[tuple[tuple[str, ...], list[AtLimit]]]:
    """Neighbouring limits of one kind with the same leaders, together."""
    groups: list[tuple[tuple[str, ...], list[AtLimit]]] = []
    for at in found:
        leaders = tuple(sorted(at.leaders)) if len(at.leaders) > 1 else at.leaders
        if groups and groups[-1][0] == leaders and groups[-1][1][-1].limit.kind == at.limit.kind:
            groups[-1][1].append(at)
        else:
            groups.append((leaders, [at]))
    return groups


def _sentence(leaders: Sequence[str], group: Sequence[AtLimit]) -> str:
    """What leads at some limits, and by how much."""
    if not leaders:
        return "no candidate is within the budget after its training"
    idle = [row.name for at in group for row in at.within() if row.idle and row.name in leaders]
    worth = " (not better than the same answer for every input)" if idle else ""
    if len(leaders) > 1:
        return f"no difference is shown between {_listed(leaders)}{worth}"
    leads: dict[str, list[str]] = {}  # how much it is ahead -> at which limits
    for at in group:
        rows = at.within()
        if len(rows) > 1:
            difference, _ = at.comparison.difference(rows[1].name, leaders[0])
            leads.setdefault(f"{_points(at.comparison, difference)} ahead of {rows[1].name}", []).append(str(at.limit.asked))
    if not leads:
        return f"only {leaders[0]} is within the budget{worth}"
    several = len(leads) > 1
    told = [f"{lead} at {' and '.join(where)}" if several else lead for lead, where in leads.items()]
    return f"{leaders[0]}{worth} is {'; '.join(told)}"


def _points(comparison: Comparison, difference: tuple[float, float, float]) -> str:
    """A difference with its interval, in points where the metric is a share."""
    mean, low, high = difference
    if _counts_points(comparison):
        return f"{100 * mean:.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
    return f"{mean:.4g} ({low:+.4g} to {high:+.4g})"


def _counts_points(comparison: Comparison) -> bool:
    name, means = comparison.metric.name, [row.metric[0] for row in comparison.rows()]  # intervals over few seeds reach beyond
    return in_points(*(MeasuredMetric(name, mean, mean, mean, n=0) for mean in means))


def _shown(comparison: Comparison, row: ComparisonRow) -> tuple[float, float, float]:
    """Mean and interval; that of a share ends at 0 and 1."""
    mean, low, high = row.metric
    return (mean, max(low, 0.0), min(high, 1.0)) if _counts_points(comparison) else row.metric


def _table(at: AtLimit) -> str:
    comparison = at.comparison
    lines = [
        f"| | {comparison.metric.name} (95 %) | ahead of the next | p | bytes | operations | ms | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row, ahead, p_value in at.neighbours():
        mean, low, high = _shown(comparison, row)
        lead = "" if ahead is None else _points(comparison, ahead)
        p = "" if p_value is None else f"{p_value:.2g}"
        times = "" if row.milliseconds is None else f"{row.milliseconds:.3g}"
        cells = (
            row.title,
            f"{mean:.4f} ({low:.4f} to {high:.4f})",
            lead,
            p,
            f"{row.size_bytes:,.0f}",
            f"{row.macs:,.0f}",
            times,
        )
        lines.append(f"| {' | '.join(cells)} | {row.seconds:,.0f} |")
    return "\n".join(lines)


def _as_data(at: AtLimit) -> dict[str, Any]:
    rows = [
        {
            **dataclasses.asdict(row),
            "title": row.title,
            "metric": list(_shown(at.comparison, row)),
            "ahead_of_next": ahead,
            "ahead": "" if ahead is None else _points(at.comparison, ahead),
            "p_of_next": p_value,
        }
        for row, ahead, p_value in at.neighbours()
    ]
    return {
        "kind": at.limit.kind, "asked": at.limit.asked, "value": at.limit.value, "words": at.limit.in_words,
        "judge": at.comparison.judge, "metric": at.comparison.metric.name, "in_points": _counts_points(at.comparison),
        "leaders": list(at.leaders), "candidates": rows, "cannot": dict(at.cannot),
    }  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _conditions(model: nn.Module, task: Task, budget: Budget, comparison: Comparison) -> str:
    length = "" if budget.steps is None else f", {budget.steps:,} optimizer steps for each candidate and seed"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    teacher = "the model itself"
    if task.teacher is not None:
        teacher = type(task.teacher).__name__
    elif comparison.start is not None and not comparison.start.learned:
        teacher = "none, since the model has learned nothing"
    return (
        f"All candidates start from the same model, {type(model).__name__} with {parameters:,} parameters{length}. "
        f"Data: {task.name}, {len(task.train):,} training samples. Teacher: {teacher}."
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
