"""Choose how many units, which ranks and which steps of weights a model keeps: exactly, under all limits at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mirabelle.allocation.knapsack import Constraint, Table, allocate, tables_of
from mirabelle.errors import UserError
from mirabelle.planning.measured import FORMS, Form, Measured, Part

Structure = Literal["whole", "units", "ranks"]
Key = tuple[Structure, Form]
STRUCTURES: tuple[Structure, ...] = ("whole", "units", "ranks")
KEYS: tuple[Key, ...] = tuple((structure, form) for structure in STRUCTURES for form in FORMS)
COSTS = ("size", "onnx_size", "latency", "macs", "parameters")
_GAP = 5e-3  # accepted distance to the optimum; measured changes are less certain
_LEAST = 1e-9
_SHOWN = 0.05  # of the milliseconds of all operators: what a cut saves must be more than what timing repeats within
_VARIANTS = (
    (0.0, 1.0),
    (0.5, 1.0),
    (0.0, 4.0),
    (0.0, 20.0),
)  # (least share of each group that stays, how much more codes count)
_MOST_POWER = 1.5
_NEVER = 1e3  # the damage of an option that must not be chosen; changes of outputs are at most about 1
# Steps of few bits already use that the inputs of a layer are alike. The factors of a layer have no such inputs: on LeNet-5,
# rounding them changed the outputs seven times as much as rounding the layer to as many bits for each weight.
_TWICE = ("ranks", "coded")


@dataclass(frozen=True)
class Draft:
    """A choice for every part of a model, and what is expected of it.

    Args:
        structure: "whole", or which parts may be smaller: "units" (channels, neurons, heads) or "ranks" of layers.
        form: of the numbers.
        units: name of each group that is cut -> units that stay.
        ranks: name of each layer that becomes factors -> rank.
        tables: names of embeddings among the layers of the model.
        coded_bytes: of all coded weights; 0 unless the form is "coded".
        change: expected change of the outputs, after fitting and before any training.
        of_numbers: the part of it that the form of the numbers makes.
        costs: expected, for each limit.
        embeds: whether tables of embeddings get 8 bits where layers become integers.
    """

    structure: Structure
    form: Form
    units: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    coded_bytes: float = 0.0
    change: float = 0.0
    of_numbers: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)
    embeds: bool = False

    def same_as(self, other: Draft) -> bool:
        """Whether both have the same form, units and ranks."""
        return (self.form, self.units, self.ranks) == (other.form, other.units, other.ranks)


def drafts_of(
    found: Measured,
    key: Key,
    limits: Mapping[str, float],
    corrections: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
) -> list[Draft]:
    """The drafts that change the outputs least within the limits, best first; none if the model has no such form or none fits.

    Where units are cut and the weights that stay are coded, there are several: with more units and fewer bits, or with fewer
    units and more bits. What coding does after a cut is known least.

    Args:
        found: measurements of the model.
        key: which parts may be smaller, and the form of the numbers.
        limits: of the costs named in `COSTS`.
        corrections: by which expected costs are multiplied, as measured of an earlier draft of the same structure and form.
        weights: name of a part -> how much more its changes count than they do by default, for a search around the plan.
    """
    structure, form = key
    if found.forms[form].why_not or key == _TWICE:
        return []
    parts = _parts(found, structure)
    codes = list(found.codes) if form == "coded" else []
    if structure != "whole" and not parts:
        return []
    problem = _Problem(found, structure, form, parts, codes)
    weights = weights or {}
    damages = [_damages(found, structure, part) * weights.get(f"{structure} {part.name}", 1.0) for part in parts]
    coded = _slope(found.coded_together)
    damages += [np.array(part.changes) * coded * weights.get(f"coded {part.name}", 1.0) for part in codes]
    if not damages:
        draft = problem.draft((), limits, corrections)
        return [draft] if all(draft.costs[name] <= limit for name, limit in limits.items()) else []
    constraints = [Constraint(name, limit / corrections.get(name, 1.0), problem.tables(name)) for name, limit in limits.items()]
    drafts: list[Draft] = []
    for least, pressure in _VARIANTS if parts and codes else _VARIANTS[:1]:
        kept = [np.where(np.array(part.sizes) < least, _NEVER, own) for part, own in zip(parts, damages, strict=False)]
        try:
            choice = allocate([*kept, *(pressure * own for own in damages[len(parts) :])], constraints, gap=_GAP).choice
        except UserError:
            continue
        draft = problem.draft(choice, limits, corrections)
        if all(own[option] < _NEVER for own, option in zip(kept, choice, strict=False)) and draft not in drafts:
            drafts.append(draft)
    return sorted(drafts, key=lambda draft: draft.change)


def least_possible(found: Measured, name: str) -> float:
    """The least cost that any structure and form can have."""
    from mirabelle.allocation.knapsack import least

    costs = []
    for form, one in found.forms.items():
        for structure in STRUCTURES:
            parts, codes = _parts(found, structure), list(found.codes) if form == "coded" else []
            if one.why_not or (structure != "whole" and not parts) or (structure, form) == _TWICE:
                continue
            tables = _Problem(found, structure, form, parts, codes).tables(name)
            options = [len(part.options) for part in (*parts, *codes)]
            costs.append(
                least(Constraint(name, 0.0, tables), options) if options else float(sum(t.sum() for t in tables.values()))
            )
    return min(costs)


def fewer_power(found: Measured, choice: Sequence[int], share: float, change: float) -> float:
    """`Measured.fewer_power` by the change that coded weights make in a cut model, from 0 to 1.5.

    Args:
        found: measurements of the whole model.
        choice: the option of each group of units in the cut.
        share: of the bytes of the cut model's weights in float32: what its coded weights take.
        change: measured.
    """
    problem = _Problem(found, "units", "coded", found.units, found.codes)
    kept = [Constraint("", 0.0, tables).cost(choice) for tables in problem.shares()]
    tables: dict[tuple[int, ...], Table] = {
        (k,): np.array(part.sizes) * own for k, (part, own) in enumerate(zip(found.codes, kept, strict=True))
    }
    names = [f"{part.name}.weight" for part in found.codes if f"{part.name}.weight" in found.parameters_of]
    weights = Constraint("", 0.0, _sum([found.tables_of_parameters(name) for name in names])).cost(choice)
    try:
        chosen = allocate([part.changes for part in found.codes], [Constraint("size", 4 * share * weights, tables)], gap=_GAP)
    except UserError:
        return found.fewer_power
    alone = sum(part.changes[option] for part, option in zip(found.codes, chosen.choice, strict=True))
    expected, fewer = found.when_coded(alone), problem.fewer(choice)
    if min(expected, change) <= 0 or fewer <= 1:
        return found.fewer_power
    return float(np.clip(np.log(change / expected) / np.log(fewer), 0.0, _MOST_POWER))


def _parts(found: Measured, structure: Structure) -> list[Part]:
    return list({"whole": (), "units": found.units, "ranks": found.ranks}[structure])


def _damages(found: Measured, structure: Structure, part: Part) -> Table:
    """The changes of a part's options; of units as they are expected after fitting."""
    return np.array(part.changes) * (_slope(found.recovered) if structure == "units" else 1.0)


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    """The second number for each unit of the first, in the middle of the pairs."""
    known, found = pairs[len(pairs) // 2]
    return found / known if known > 0 else 1.0


@dataclass(frozen=True)
class _Problem:
    """The costs of all choices as tables over the options of the parts, the units or ranks first, then the coded layers."""

    found: Measured
    structure: Structure
    form: Form
    parts: Sequence[Part]
    codes: Sequence[Part]

    def draft(self, choice: Sequence[int], limits: Mapping[str, float], corrections: Mapping[str, float]) -> Draft:
        pairs = list(zip((*self.parts, *self.codes), choice, strict=True))
        chosen = {
            part.name: int(part.options[option]) for part, option in pairs[: len(self.parts)] if option < len(part.options) - 1
        }
        change = sum(part.changes[option] for part, option in pairs[: len(self.parts)])
        if self.structure == "units":
            change = self.found.after_fitting(change)
        alone = sum(part.changes[option] for part, option in pairs[len(self.parts) :])
        of_numbers = self.found.when_coded(alone * self.fewer(choice) ** self.found.fewer_power)
        of_numbers += self.found.forms[self.form].change
        costs = {
            name: Constraint(name, limits[name], self.tables(name)).cost(choice) * corrections.get(name, 1.0) for name in limits
        }
        coded_bytes = Constraint("coded", 0.0, self._coded()).cost(choice) if self.codes else 0.0
        units, ranks = (chosen if self.structure == one else {} for one in ("units", "ranks"))
        return Draft(
            self.structure,
            self.form,
            units,
            ranks,
            tuple(self.found.tables),
            coded_bytes,
            change + of_numbers,
            of_numbers,
            costs,
            self.found.embeds and not ranks.keys() & set(self.found.tables),
        )

    def fewer(self, choice: Sequence[int]) -> float:
        """How many times fewer weights are coded than in the whole model."""
        names = [f"{part.name}.weight" for part in self.codes]
        known = [name for name in names if self.structure == "units" and name in self.found.parameters_of]
        if not known:
            return 1.0
        tables = _sum([self.found.tables_of_parameters(name) for name in known])
        return _whole(tables) / max(Constraint("", 0.0, tables).cost(choice), 1.0)

    def tables(self, name: str) -> dict[tuple[int, ...], Table]:
        """The tables of a cost."""
        own = self.found.forms[self.form]
        if name == "parameters":
            return self._parameters()
        if name == "macs":
            return self._macs()
        if name == "latency":
            return self._milliseconds()
        if name == "onnx_size":
            return _scaled(self._parameters(), own.onnx_size / self.found.parameters)
        if self.form != "coded":
            return _scaled(self._parameters(), own.size / self.found.parameters)
        return _sum([{(): np.array(own.size)}, self._coded()])

    def _parameters(self) -> dict[tuple[int, ...], Table]:
        if self.structure == "units":
            tables = _sum([self.found.tables_of_parameters(name) for name in self.found.parameters_of])
            return _sum([tables, {(): np.array(self.found.parameters - _whole(tables))}])
        return self._by_ranks(self.found.parameters, [part.sizes for part in self.parts])

    def _macs(self) -> dict[tuple[int, ...], Table]:
        if self.structure == "units":
            return tables_of(self.found.macs_of, self.found.shares)
        return self._by_ranks(self.found.macs, self.found.macs_of_ranks if self.parts else [])

    def _milliseconds(self) -> dict[tuple[int, ...], Table]:
        """The milliseconds of a form: a + b · those of the operators in floating point, by two measurements of the form."""
        whole, own = self.found.forms["float"].latency, self.found.forms[self.form]
        if self.structure != "units":
            times = self._by_ranks(whole, self.found.rank_times if self.parts else [])
            return _scaled(times, own.latency / max(whole, _LEAST))
        times = dict(self.found.times)
        full, cut = _whole(times), Constraint("", 0.0, times).cost(self.found.cut)
        slope = own.latency / max(full, _LEAST)  # in proportion, unless the operators show what the cut saves
        if full - cut > _SHOWN * full:
            slope = max((own.latency - own.latency_when_cut) / (full - cut), 0.0)
        return _sum([_scaled(times, slope), {(): np.array(own.latency - slope * full)}])

    def _by_ranks(self, whole: float, costs: Sequence[Sequence[float]]) -> dict[tuple[int, ...], Table]:
        """The cost of the whole model, and by how much each layer's factors change it."""
        tables: dict[tuple[int, ...], Table] = {(k,): np.array(own) - own[-1] for k, own in enumerate(costs)}
        return {(): np.array(whole), **tables}

    def _coded(self) -> dict[tuple[int, ...], Table]:
        """The bytes of coded weights: of each layer its bytes when whole, times the share of its weight that stays."""
        found = []
        for number, (part, shares) in enumerate(zip(self.codes, self.shares(), strict=True), start=len(self.parts)):
            options = np.array(part.sizes)
            found.append({(*items, number): np.multiply.outer(table, options) for items, table in shares.items()})
        return _sum(found)

    def shares(self) -> list[dict[tuple[int, ...], Table]]:
        """The share of the weight of each coded layer that stays."""
        places = {part.name: place for place, part in enumerate(self.parts)}
        found: list[dict[tuple[int, ...], Table]] = []
        for part in self.codes:
            name = f"{part.name}.weight"
            if self.structure == "units" and name in self.found.parameters_of:
                found.append(_scaled(self.found.tables_of_parameters(name), 1 / self._elements(name)))
            elif self.structure == "ranks" and part.name in places:
                place = places[part.name]
                sizes = np.array(self.parts[place].sizes)
                found.append({(place,): sizes / sizes[-1]})
            else:
                found.append({(): np.array(1.0)})
        return found

    def _elements(self, name: str) -> float:
        return sum(self.found.parameters_of[name].values())


def _whole(tables: Mapping[tuple[int, ...], Table]) -> float:
    """The cost if everything stays: the last option of every part."""
    return float(sum(table[(-1,) * table.ndim] for table in tables.values()))


def _scaled(tables: Mapping[tuple[int, ...], Table], factor: float) -> dict[tuple[int, ...], Table]:
    return {items: table * factor for items, table in tables.items()}


def _sum(several: Sequence[Mapping[tuple[int, ...], Table]]) -> dict[tuple[int, ...], Table]:
    found: dict[tuple[int, ...], Table] = {}
    for tables in several:
        for items, table in tables.items():
            found[items] = found[items] + table if items in found else table
    return found
