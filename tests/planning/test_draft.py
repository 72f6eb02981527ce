"""Drafts are the best of all choices within the limits: compared with every choice, counted out."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from typing import Any

import numpy as np
import pytest

from mirabelle.planning.draft import Draft, drafts_of, fewer_power, least_possible
from mirabelle.planning.measured import Form, FormMeasured, Measured, Part

WIDTHS, STEPS = (0.25, 0.5, 0.75, 1.0), (100.0, 40.0, 25.0)


def measured(**changes: Any) -> Measured:
    """A chain 3 → a → b → 2 of linear layers; a and b are groups of 8 and 12 units, all weights may be coded."""
    draw = np.random.default_rng(0)
    units = [
        Part(f"{name}.weight:0", tuple(size * share for share in WIDTHS), (*falling(draw, 3), 0.0), WIDTHS)
        for name, size in (("one", 8), ("two", 12))
    ]
    sizes = {"one": 24.0, "two": 96.0, "three": 24.0}
    codes = [
        Part(name, STEPS, falling(draw, 3), (0.1 * size, 0.3 * size, 0.5 * size)) for name, size in sizes.items()
    ]  # fmt: skip
    known: dict[str, Any] = {
        "forms": {
            "float": FormMeasured(0.0, 700.0, 800.0, 3.0, 2.0), "dynamic": FormMeasured(why_not="no"),
            "static": FormMeasured(0.02, 300.0, 350.0, 2.0, 1.5), "coded": FormMeasured(0.0, 60.0, 800.0, 3.0, 2.0),
        },
        "parameters": 164.0, "macs": 144.0, "float_bytes": 656.0, "units": units, "codes": codes,
        "parameters_of": {
            "one.weight": {(0,): 24.0}, "one.bias": {(0,): 8.0}, "two.weight": {(0, 1): 96.0}, "two.bias": {(1,): 12.0},
            "three.weight": {(1,): 24.0},
        },
        "macs_of": {(0,): 24.0, (0, 1): 96.0, (1,): 24.0},
        "times": {(): np.array(0.5), (0, 1): np.array([[1.0 + a + b for b in WIDTHS] for a in WIDTHS])},
        "cut": [1, 1],
        "ranks": [Part("two", (2.0, 4.0, 0.0), (0.3, 0.1, 0.0), (40.0, 80.0, 96.0))],
        "rank_times": [[0.5, 0.8, 1.2]], "macs_of_ranks": [[40.0, 80.0, 96.0]],
        "recovered": [(0.0, 0.0), (0.5, 0.05), (1.0, 0.2)], "coded_together": [(0.0, 0.0), (0.1, 0.3)],
        "metrics": [(0.0, 0.9), (0.1, 0.88), (1.0, 0.4)],
    }  # fmt: skip
    return Measured(**{**known, **changes})


def drafted(*arguments: Any) -> Draft | None:
    """The best draft."""
    return next(iter(drafts_of(*arguments)), None)


def falling(draw: np.random.Generator, count: int) -> tuple[float, ...]:
    return tuple(float(one) for one in np.sort(draw.uniform(0.01, 0.4, count))[::-1])


def costs_by_hand(found: Measured, form: Form, widths: tuple[int, ...], steps: tuple[int, ...]) -> dict[str, float]:
    a, b = (WIDTHS[option] for option in widths)
    parameters = 24 * a + 8 * a + 96 * a * b + 12 * b + 24 * b
    own = found.forms[form]
    size = own.size / 164 * parameters
    if form == "coded":
        sizes = [part.sizes[option] for part, option in zip(found.codes, steps, strict=True)]
        size = own.size + sizes[0] * a + sizes[1] * a * b + sizes[2] * b
    slope = (own.latency - own.latency_when_cut) / (3.5 - 2.5)
    return {
        "size": size, "parameters": parameters, "macs": 24 * a + 96 * a * b + 24 * b,
        "onnx_size": own.onnx_size / 164 * parameters, "latency": own.latency + slope * (1.5 + a + b - 3.5),
    }  # fmt: skip


LIMITS = [{"size": 150.0}, {"latency": 1.6}, {"macs": 70.0, "latency": 2.2}, {"size": 80.0, "parameters": 60.0}]


@pytest.mark.parametrize("form", ["float", "static"])
@pytest.mark.parametrize("limits", LIMITS)
def test_a_draft_is_the_best_of_all_choices(form: Form, limits: dict[str, float]) -> None:
    found = measured()
    draft = drafted(found, ("units", form), limits, {})
    best: tuple[float, dict[str, float]] | None = None
    for widths in product(range(4), repeat=2):
        costs = costs_by_hand(found, form, widths, ())
        if all(costs[name] <= limit for name, limit in limits.items()):
            damage = sum(part.changes[option] for part, option in zip(found.units, widths, strict=True))
            best = min(best or (damage, costs), (damage, costs), key=lambda one: one[0])
    assert (draft is None) == (best is None)
    if draft is not None and best is not None:
        assert all(draft.costs[name] <= limit for name, limit in limits.items())
        assert {name: pytest.approx(best[1][name]) for name in limits} == draft.costs


@pytest.mark.parametrize("limits", LIMITS)
def test_units_and_steps_together_are_near_the_best_of_all_choices(limits: dict[str, float]) -> None:
    """The error of a step counts more the fewer weights are left, which is no sum over parts: drafts are not exact there."""
    found = measured()
    draft = drafted(found, ("units", "coded"), limits, {})
    best = np.inf
    for widths in product(range(4), repeat=2):
        a, b = (WIDTHS[option] for option in widths)
        cut = found.after_fitting(sum(part.changes[option] for part, option in zip(found.units, widths, strict=True)))
        for steps in product(range(3), repeat=3):
            costs = costs_by_hand(found, "coded", widths, steps)
            if all(costs[name] <= limit for name, limit in limits.items()):
                alone = sum(part.changes[option] for part, option in zip(found.codes, steps, strict=True))
                best = min(best, cut + found.when_coded(alone * 144 / (24 * a + 96 * a * b + 24 * b)))
    assert (draft is None) == np.isinf(best)
    if draft is not None:
        assert all(draft.costs[name] <= limit for name, limit in limits.items())
        assert best <= draft.change * (1 + 1e-9)
        assert draft.change <= 1.3 * best


@pytest.mark.parametrize(("power", "told"), [(0.5, 0.5), (0.0, 0.0), (-1.0, 0.0), (4.0, 1.5)])
def test_how_much_more_errors_count_after_a_cut_is_read_from_one(power: float, told: float) -> None:
    found, choice, share = measured(), [1, 1], 0.06
    a, b = (WIDTHS[option] for option in choice)
    weights = 24 * a + 96 * a * b + 24 * b
    sizes = [np.array(part.sizes) * own for part, own in zip(found.codes, (a, a * b, b), strict=True)]
    alone = min(
        sum(part.changes[option] for part, option in zip(found.codes, steps, strict=True))
        for steps in product(range(3), repeat=3)
        if sum(size[option] for size, option in zip(sizes, steps, strict=True)) <= 4 * share * weights
    )
    change = found.when_coded(alone) * (144 / weights) ** power
    assert fewer_power(found, choice, share, change) == pytest.approx(told)
    assert fewer_power(found, [3, 3], share, change) == found.fewer_power, "nothing is cut"
    assert fewer_power(found, choice, 1e-9, change) == found.fewer_power, "no steps take so few bytes"
    cut = {name: dataclasses.replace(found, fewer_power=value) for name, value in {"none": 0.0, "one": 1.0}.items()}
    changes = {name: drafted(one, ("units", "coded"), {"size": 80.0, "parameters": 60.0}, {}) for name, one in cut.items()}
    assert changes["none"] is not None
    assert changes["one"] is not None
    assert changes["none"].of_numbers < changes["one"].of_numbers


def test_what_is_expected_of_a_draft_is_that_of_its_parts_together() -> None:
    found = measured()
    draft = drafted(found, ("units", "static"), {"macs": 50.0}, {})
    assert draft is not None
    alone = sum(part.changes[part.options.index(draft.units.get(part.name, part.options[-1]))] for part in found.units)
    assert draft.change == pytest.approx(np.interp(alone, *zip(*found.recovered, strict=True)) + 0.02)
    assert draft.of_numbers == pytest.approx(0.02)
    coded = drafted(found, ("whole", "coded"), {"size": 130.0}, {})
    assert coded is not None
    assert coded.costs["size"] == pytest.approx(60 + coded.coded_bytes)
    assert coded.change == coded.of_numbers


def test_ranks_are_chosen_by_what_they_cost() -> None:
    found = measured()
    expected = Draft("ranks", "float", ranks={"two": 4}, change=0.1, costs={"parameters": 148.0})
    assert drafted(found, ("ranks", "float"), {"parameters": 150.0}, {}) == expected
    assert drafted(found, ("ranks", "float"), {"latency": 2.4}, {}).ranks == {"two": 2}  # type: ignore[union-attr]
    assert drafted(found, ("ranks", "coded"), {"size": 500.0}, {}) is None
    assert drafted(found, ("ranks", "dynamic"), {"size": 500.0}, {}) is None
    assert drafted(measured(ranks=[]), ("ranks", "float"), {"size": 900.0}, {}) is None


def test_a_correction_makes_the_next_draft_smaller() -> None:
    found = measured()
    first = drafted(found, ("units", "float"), {"size": 400.0}, {})
    second = drafted(found, ("units", "float"), {"size": 400.0}, {"size": 1.25})
    assert first is not None
    assert second is not None
    assert second.costs["size"] <= 400
    assert second.costs["size"] / 1.25 < first.costs["size"]
    assert drafted(found, ("whole", "float"), {"size": 699.0}, {}) is None
    assert drafted(found, ("whole", "float"), {"size": 701.0}, {}) is not None


def test_the_least_that_is_possible_is_that_of_all_structures_and_forms() -> None:
    found = measured()
    assert least_possible(found, "parameters") == pytest.approx(24 * 0.25 + 8 * 0.25 + 96 * 0.0625 + 36 * 0.25)
    least = 24 * 0.25 + 8 * 0.25 + 96 * 0.0625 + 36 * 0.25
    assert least_possible(found, "size") == pytest.approx(min(300 / 164 * least, 60 + 2.4 * 0.25 + 9.6 * 0.0625 + 2.4 * 0.25))


def test_measurements_come_back_from_their_file() -> None:
    found = measured()
    again = Measured.from_data(json.loads(json.dumps(found.to_data())))
    assert json.dumps(again.to_data()) == json.dumps(found.to_data())
    assert drafted(again, ("units", "coded"), {"size": 120.0}, {}) == drafted(found, ("units", "coded"), {"size": 120.0}, {})


def test_the_metric_is_read_between_what_was_measured() -> None:
    found = measured()
    assert found.metric_at(0.05) == pytest.approx(0.89)
    assert found.metric_at(7.0) == pytest.approx(0.4)
    assert found.change_at(0.89) == pytest.approx(0.05)
    assert (found.change_at(0.95), found.change_at(0.3)) == (0.0, 1.0)
    seen = found.with_metric(0.05, 0.7)
    assert seen.metrics == ((0.0, 0.9), (0.05, 0.7), (1.0, 0.4))
    assert seen.change_at(0.8) == pytest.approx(0.025)
