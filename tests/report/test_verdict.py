"""The sentence says what the numbers say."""

from __future__ import annotations

from typing import Any

import pytest

from mirabelle.report import Report


def test_the_sentence_has_an_interval_for_everything_that_was_measured(report: Report) -> None:
    assert report.verdict == (
        "10.0× smaller on disk and 1.62× faster in ONNX Runtime (1.55 to 1.70); no significant difference in accuracy "
        "(-0.50 points, 95 % interval -1.40 to +0.40, paired test p = 0.5)."
    )


@pytest.mark.parametrize(
    ("difference", "p_value", "said"),
    [
        ((0.02, 0.01, 0.03), 0.001, "accuracy rose by 2.00 points (95 % interval +1.00 to +3.00, paired test p = 0.001)."),
        ((-0.02, -0.03, -0.01), 2e-9, "accuracy fell by 2.00 points (95 % interval -3.00 to -1.00, paired test p = 2e-09)."),
        (
            (-0.0, -0.001, 0.001),
            1.0,
            "no significant difference in accuracy (+0.00 points, 95 % interval -0.10 to +0.10, paired test p = 1).",
        ),
    ],
)
def test_better_worse_and_no_difference(data: dict[str, Any], difference: Any, p_value: float, said: str) -> None:
    data["comparison"] |= {"difference": dict(zip(("value", "low", "high"), difference, strict=True)), "p_value": p_value}
    assert Report.from_data(data).verdict.endswith(said)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ((1.5, 1.4, 1.6), "1.50× slower in ONNX Runtime (1.40 to 1.60) and "),
        ((0.5, 0.4, 0.8), " and 2.00× faster in ONNX Runtime (1.25 to 2.50);"),
        ((0.9, 0.7, 1.1), " and no significant difference in latency in ONNX Runtime (0.90×, 0.70 to 1.10);"),
        ((0.99, 0.985, 0.995), " and no significant difference in latency in ONNX Runtime"),
    ],
)
def test_faster_slower_and_neither(data: dict[str, Any], ratio: Any, said: str) -> None:
    data["comparison"]["latency_ratio"] = dict(zip(("median", "low", "high"), ratio, strict=True))
    report = Report.from_data(data)
    assert said in report.verdict
    assert any("slower than the dense model" in remark for remark in report.remarks) == (ratio[1] > 1.02)


@pytest.mark.parametrize(
    ("packed", "said"), [(20_100, "same size on disk"), (40_000, "2.0× larger on disk"), (100, "200.0× smaller")]
)
def test_a_file_that_grew_is_not_called_smaller(data: dict[str, Any], packed: int, said: str) -> None:
    data["end"]["size_bytes"]["packed"] = packed
    assert Report.from_data(data).verdict.startswith(said)


def test_a_metric_that_is_no_fraction_has_no_points(data: dict[str, Any]) -> None:
    for end, value in (("start", -0.0123), ("end", -0.0145)):
        data[end]["metric"] |= {"name": "negative_squared_error", "value": value, "low": value - 0.001, "high": value + 0.001}
    data["comparison"] |= {"difference": {"value": -0.0022, "low": -0.003, "high": -0.0014}, "p_value": 0.004}
    said = Report.from_data(data).verdict
    assert said.endswith("negative_squared_error fell by 0.0022 (95 % interval -0.003 to -0.0014, paired test p = 0.004).")
    assert "points" not in said


@pytest.mark.parametrize("name", ["r2", "cosine_similarity"])
def test_a_metric_that_can_be_negative_is_no_fraction_where_it_is_not(data: dict[str, Any], name: str) -> None:
    for end, value in (("start", 0.52), ("end", 0.5)):
        data[end]["metric"] |= {"name": name, "value": value, "low": value - 0.1, "high": value + 0.1}
    data["comparison"] |= {"difference": {"value": -0.02, "low": -0.03, "high": -0.01}, "p_value": 0.004}
    said = Report.from_data(data).verdict
    assert said.endswith(f"{name} fell by 0.02 (95 % interval -0.03 to -0.01, paired test p = 0.004).")


def test_an_older_report_without_the_interval_is_told_without_it(data: dict[str, Any]) -> None:
    del data["comparison"]["difference"], data["curves"], data["name"]
    assert Report.from_data(data).verdict.endswith("no significant difference in accuracy (-0.50 points, paired test p = 0.5).")


def test_what_did_not_pay_is_said(data: dict[str, Any]) -> None:
    data["end"]["nonzero_parameters"] = 100
    data["end"]["size_bytes"]["onnx"] = 30_000
    data["goal"]["shortfalls"] = [{"name": "size", "limit": 10.0, "value": 2000.0, "missed_by": 1990.0}]
    data["gates"]["torch_onnx"]["passed"] = False
    said = " ".join(Report.from_data(data).remarks)
    for part in (
        "Zero weights make the packed file smaller",
        "The ONNX file grew",
        "size is 2000, asked at most 10",
        "Gate torch_onnx FAILED",
    ):
        assert part in said
    assert "Zero weights" not in " ".join(Report.from_data({**data, "end": data["start"]}).remarks)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_drop": "0.25pt"}, "accuracy is missed as measured: a change of -3.67 points, where -0.25 points is allowed."),
        ({"metric": 0.94}, "accuracy is met as measured: a change of -3.67 points, where -4.00 points is allowed."),
        ({"max_drop": "9pt"}, ""),  # the whole interval meets it
        ({"metric": 0.985}, ""),  # none of it does
    ],
)
def test_a_goal_that_the_test_cannot_decide_is_told_with_what_it_can(data: dict[str, Any], asked: Any, said: str) -> None:
    data["goal"]["asked"] = asked
    data["end"]["metric"]["value"] = 0.98 - 0.0367
    data["comparison"] |= {"difference": {"value": -0.0367, "low": -0.0735, "high": 0.0001}, "p_value": 0.052}
    told = [remark for remark in Report.from_data(data).remarks if "as measured" in remark]
    assert len(told) == bool(said)
    if said:
        assert said in told[0]
        assert "400 test samples cannot tell" in told[0]
        assert "-7.35 points to +0.01 points, holds both" in told[0]


@pytest.mark.parametrize(
    ("asked", "said"), [("60%", "missed as measured"), ("63%", "met as measured"), ("70%", ""), ("50%", "")]
)
def test_a_goal_of_latency_between_the_ends_of_the_interval_may_fall_otherwise(
    data: dict[str, Any], asked: str, said: str
) -> None:
    data["goal"]["asked"] = {"latency": asked}
    told = [remark for remark in Report.from_data(data).remarks if "goal for latency" in remark]
    assert len(told) == bool(said)
    assert all(said in remark and "between 0.588 and 0.645" in remark for remark in told)
