from __future__ import annotations

import re
from pathlib import Path

import pytest

from mirabelle.errors import CODES, UserError, UserErrors, did_you_mean, require_between

SOURCE = Path(__file__).parents[1] / "src" / "mirabelle"


def test_the_message_is_one_line_and_the_remedy_follows() -> None:
    error = UserError("E110", "sparsity must be in [0, 1); got 1.0", "take less")
    assert str(error) == "error[E110]: sparsity must be in [0, 1); got 1.0\nhelp: take less"
    assert error.exit_status == 2
    assert str(error.at("recipe.toml")).startswith("error[E110]: recipe.toml: sparsity")


def test_several_errors_print_each_and_exit_as_the_first() -> None:
    errors = UserErrors([UserError("E201", "a"), UserError("E102", "b")])
    assert str(errors.at("x")).splitlines() == ["error[E201]: x: a", "error[E102]: x: b"]
    assert errors.exit_status == 3


def test_every_code_in_use_is_in_the_table_and_every_code_of_the_table_is_in_use() -> None:
    used = {code for path in SOURCE.rglob("*.py") for code in re.findall(r'UserError\(\s*"(E\d+)"', path.read_text("utf-8"))}
    assert used <= set(CODES)
    assert set(CODES) - used <= {"E301"}  # a goal that is not met is an exit status, not an exception


@pytest.mark.parametrize("value", [1.0, -0.1, "0.5", True, float("nan")])
def test_a_number_outside_its_interval_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"sparsity must be a number in \[0, 1\)"):
        require_between("sparsity", value, 0, 1, high_open=True)  # type: ignore[arg-type]


def test_the_ends_of_an_interval_count_unless_open() -> None:
    require_between("x", 0, 0, 1)
    require_between("x", 1, 0, 1)
    with pytest.raises(UserError, match=r"\(0, 1\]"):
        require_between("x", 0, 0, 1, low_open=True)


def test_a_near_word_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("sparcity", ["sparsity", "scope"]) == 'did you mean "sparsity"?'
    assert did_you_mean("zzz", ["b", "a"]) == "known here: a, b"
