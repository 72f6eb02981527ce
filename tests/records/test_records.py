"""Goal, schedules, patterns, profile, plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
from torch import nn

from mirabelle import records
from mirabelle.errors import UserError, UserErrors
from mirabelle.records.patterns import matches, selected, selected_modules
from mirabelle.records.record import record
from mirabelle.records.schedules import Gradual, learning_rate_factor
from mirabelle.step import STEPS
from mirabelle.task.goal import Goal
from mirabelle.task.profile import Latency, MeasuredMetric, Profile, SizeBytes


def profile(**changes: object) -> Profile:
    plain_profile = Profile(
        parameters=1000,
        nonzero_parameters=1000,
        macs=5000,
        size_bytes=SizeBytes(torch=4000, onnx=4100, onnx_gzip=3900, packed=3500),
        metric=MeasuredMetric("accuracy", 0.9, 0.88, 0.92, 1000),
        latency_ms=Latency(2.0, 2.2, "onnxruntime", 2, 1),
    )
    return dataclasses.replace(plain_profile, **changes)


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        ({"max_drop": "1pt"}, True),
        ({"max_drop": "0.9pt"}, False),
        ({"max_drop": "1.2%"}, True),  # 1.2 % of 0.9 is 0.0108
        ({"max_drop": "1%"}, False),
        ({"metric": "89%"}, True),
        ({"metric": 0.891}, False),
        ({"size": "5%"}, True),  # of the start's 4000 bytes of plain weights
        ({"size": "0.19 kB"}, False),
        ({"size": 200}, True),
        ({"onnx_size": "25%"}, True),
        ({"onnx_size": "1 kB"}, False),
        ({"latency": "50%"}, True),
        ({"latency": "0.9 ms"}, False),
        ({"macs": "5k"}, True),
        ({"macs": "99%"}, False),
        ({"parameters": "10%"}, True),
        ({"parameters": "50"}, False),
        ({}, True),
    ],
)
def test_a_goal_is_judged_against_the_start(goal: dict[str, object], met: bool) -> None:
    end = profile(
        nonzero_parameters=100,
        size_bytes=SizeBytes(torch=1100, onnx=1020, onnx_gzip=300, packed=200),
        metric=MeasuredMetric("accuracy", 0.89, 0.87, 0.91, 1000),
        latency_ms=Latency(1.0, 1.1, "onnxruntime", 2, 1),
    )
    shortfalls = records.build(Goal, goal, "goal").shortfalls(profile(), end)
    assert (not shortfalls) == met
    for shortfall in shortfalls:
        assert shortfall.missed_by > 0
        points = f"missed by {100 * shortfall.missed_by:.2f} points"
        assert (points if shortfall.name == "metric" else f"missed by {shortfall.missed_by:.4g}") in str(shortfall)


@pytest.mark.parametrize(
    "goal", [{"size": "44 kb"}, {"latency": "3 kB"}, {"max_drop": "0.5"}, {"metric": "x"}, {"size": "-1 kB"}]
)
def test_a_goal_that_cannot_be_read_is_named(goal: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"E113.*goal.{next(iter(goal))}"):
        Goal(**goal)


def test_a_goal_of_bytes_alone_has_no_limit_of_latency() -> None:
    slow = profile(latency_ms=Latency(9.0, 9.1, "onnxruntime", 2, 1))
    goal = records.build(Goal, {"latency": "any", "batch": 32, "threads": 1}, "goal")
    assert goal.shortfalls(profile(), slow) == []
    assert goal.limit_of_latency(profile()) is None
    with pytest.raises(UserError, match=r"goal\.batch"):
        records.build(Goal, {"batch": 0}, "goal")


def test_rounding_does_not_decide_a_goal() -> None:
    start, end = profile(metric=MeasuredMetric("a", 0.3, 0, 1, 10)), profile(metric=MeasuredMetric("a", 0.2, 0, 1, 10))
    assert Goal(max_drop="10pt").shortfalls(start, end) == []
    nearly = profile(metric=MeasuredMetric("a", 0.9 - 0.1 - 1e-12, 0, 1, 10))
    assert Goal(max_drop="10pt").shortfalls(profile(), nearly) == []


def test_a_nan_meets_no_goal_and_a_negative_metric_may_fall() -> None:
    nan = profile(metric=MeasuredMetric("a", float("nan"), 0, 1, 10))
    assert Goal(max_drop="5pt").shortfalls(profile(), nan)
    one, lower = profile(metric=MeasuredMetric("a", -1.0, -2, 0, 10)), profile(metric=MeasuredMetric("a", -1.005, -2, 0, 10))
    assert Goal(max_drop="1%").shortfalls(one, lower) == []
    assert Goal(max_drop="0.1%").shortfalls(one, lower)


def test_a_profile_comes_back_from_plain_data() -> None:
    assert Profile.from_data(profile().to_data()) == profile()
    bare = profile(metric=None, latency_ms=None)
    assert Profile.from_data(bare.to_data()) == bare


def test_gradual_is_the_formula_of_zhu_and_gupta() -> None:
    schedule = Gradual(begin=0.2, end=0.8, initial=0.1, power=3.0)
    for progress in (0.2, 0.35, 0.5, 0.79):
        expected = 0.9 + (0.1 - 0.9) * (1 - (progress - 0.2) / 0.6) ** 3
        assert schedule.at(progress, 0.9) == pytest.approx(expected)
    assert schedule.at(0.1, 0.9) == 0.1
    assert schedule.at(0.8, 0.9) == 0.9
    assert schedule.at(1.0, 0.9) == 0.9


def test_schedules_grow_and_end_where_they_should() -> None:
    for name in ("constant", "linear", "cubic"):
        values = [Gradual.named(name).at(k / 100, 0.95) for k in range(101)]
        assert values == sorted(values)
        assert values[-1] == 0.95
    assert Gradual.named("constant").at(0.0, 0.95) == 0.95
    assert Gradual.named("linear").at(0.3, 0.8) == pytest.approx(0.4)


def test_a_schedule_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(UserError, match="E111"):
        Gradual(begin=0.5, end=0.4)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "one-cycle"])
def test_learning_rates_rise_to_one_and_fall(schedule: str) -> None:
    factors = [learning_rate_factor(schedule, k / 1000, 0.1) for k in range(1001)]
    assert factors[0] == 0.0
    assert max(factors) == pytest.approx(1.0, abs=5e-3)
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-9)
    quarter = learning_rate_factor("cosine", 0.25, 0.0)
    assert quarter == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_patterns_match_names_and_all_below_them() -> None:
    assert matches("layer1.0.conv.weight", ("layer1",))
    assert matches("layer1.0.conv.weight", ("*.conv.*",))
    assert not matches("layer10.weight", ("layer1",))


def test_targets_are_weights_by_default_and_ignore_takes_away(mlp: nn.Sequential) -> None:
    assert list(selected(mlp, ())) == ["0.weight", "2.weight"]
    assert list(selected(mlp, ("*.bias",))) == ["0.bias", "2.bias"]
    assert list(selected(mlp, (), ("2",))) == ["0.weight"]
    assert list(selected_modules(mlp, (nn.Linear,), (), ("0",))) == ["2"]


@pytest.mark.parametrize("arguments", [(("fc*",),), ((), ("nothing",)), ((), ("0", "2"))])
def test_a_pattern_that_matches_nothing_is_refused(mlp: nn.Sequential, arguments: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(UserError, match="E112"):
        selected(mlp, *arguments)


@record
class Inner:
    size: int = 1


@record
class Outer:
    """Defined here to see every kind of mistake."""

    rate: float
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    inner: Inner | None = None


def test_records_come_from_plain_data_and_go_back() -> None:
    built = records.build(Outer, {"rate": 1, "names": ["x"], "inner": {"size": 3}})
    assert built == Outer(rate=1.0, names=("x",), inner=Inner(size=3))
    assert records.build(Outer, records.to_data(built)) == built


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ({"rate": 1.0, "kindd": "a"}, "E102", 'unknown key "top.kindd"'),
        ({"rate": 1.0, "inner": {"sizes": 2}}, "E102", 'unknown key "top.inner.sizes"'),
        ({"kind": "a"}, "E104", 'missing key "top.rate"'),
        ({"rate": "1.0"}, "E103", '"top.rate"'),
        ({"rate": 1.0, "kind": "c"}, "E103", '"top.kind"'),
    ],
)
def test_each_mistake_has_its_code_and_its_path(data: dict[str, object], code: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        records.build(Outer, data, "top")
    assert caught.value.code == code


def test_all_mistakes_are_told_at_once_with_suggestions() -> None:
    with pytest.raises(UserErrors) as caught:
        records.build(Outer, {"rate": "x", "nams": [], "inner": {"siz": 1}}, "top")
    assert len(caught.value.errors) == 3
    text = str(caught.value)
    assert 'did you mean "names"?' in text
    assert 'did you mean "size"?' in text


@pytest.mark.parametrize(
    "settings",
    [{"rate": "fast"}, {"rate": 1.0, "kind": "c"}, {"rate": 1.0, "names": "x"}, {"rate": True}, {"rate": 1.0, "inner": 3}],
)
def test_types_are_held_in_python_too(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match="E103"):
        Outer(**settings)


def test_lists_in_python_are_taken_as_those_of_files_are() -> None:
    assert Outer(rate=1.0, names=["x", "y"]).names == ("x", "y")  # type: ignore[arg-type]  # as a user in a hurry writes it
    with pytest.raises(UserError, match="must be a list of strings; got"):
        Outer(rate=1.0, names=[1])  # type: ignore[arg-type]


def test_what_a_package_does_not_export_is_not_found() -> None:
    with pytest.raises(UserError, match=r'"prune\.Wieghts" is not known') as caught:
        STEPS.member("prune.Wieghts")
    assert caught.value.remedy == 'did you mean "prune.Weights"?'
    with pytest.raises(UserError, match="E106"):
        STEPS.member("prune.__builtins__")


@record
class Parent:
    """Defined here to see inherited descriptions.

    Args:
        rate, pace: of the parent.
        size: of the parent, too.
    """

    rate: float = 1.0
    pace: float = 1.0
    size: int = 1


@record
class Child(Parent):
    """Describes one setting anew and adds another.

    Args:
        size: of the child.
        color: of the child alone.
    """

    color: str = "red"


def test_a_setting_is_described_by_the_nearest_class_that_describes_it() -> None:
    assert records.described(Child, "rate") == "rate: of the parent."
    assert records.described(Child, "pace") == "pace: of the parent."
    assert records.described(Child, "size") == "size: of the child."
    assert records.described(Child, "color") == "color: of the child alone."
    assert records.described(Parent, "color") == ""
    with pytest.raises(UserError) as caught:
        records.build(Child, {"rate": "fast"}, "child")
    assert caught.value.remedy == "rate: of the parent."
