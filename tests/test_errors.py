from __future__ import annotations

import re
from pathlib import Path

import pytest

from mirabelle.errors import CODES, Place, UserError, UserErrors, did_you_mean, gathered, raise_all

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


def test_every_code_of_the_table_has_a_test() -> None:
    texts = "".join(path.read_text("utf-8") for path in Path(__file__).parent.rglob("test_*.py") if path != Path(__file__))
    assert {code for code in CODES if code not in texts} == set()


def test_every_code_in_use_is_in_the_table_and_every_code_of_the_table_is_in_use() -> None:
    used = {code for path in SOURCE.rglob("*.py") for code in re.findall(r'UserError\(\s*"(E\d+)"', path.read_text("utf-8"))}
    assert used <= set(CODES)
    assert set(CODES) == used


def test_a_place_shows_its_line_with_carets_under_what_is_meant() -> None:
    place = Place("r.toml", 12, 5, "x = 1.5 # too much", 3)
    error = UserError("E110", "x must be less", "take less").at(place)
    assert str(error).splitlines() == [
        "error[E110]: r.toml:12:5: x must be less",
        "  12 | x = 1.5 # too much",
        "     |     ^^^",
        "help: take less",
    ]
    assert str(UserError("E110", "no", "yes").at(Place("--set x=1"))) == "error[E110]: --set x=1: no\nhelp: yes"


def test_messages_are_one_line_whatever_is_in_them() -> None:
    assert str(UserError("E120", "it raised\n\n  this", "a\nb")) == "error[E120]: it raised this\nhelp: a b"


def test_gathered_mistakes_keep_their_paths_and_come_all_at_once() -> None:
    mistakes: list[UserError] = []
    for key in ("a", "b"):
        with gathered(mistakes, "top", key):
            raise UserErrors([UserError("E102", key, path=(0,)), UserError("E103", key)])
    assert [mistake.path for mistake in mistakes] == [("top", "a", 0), ("top", "a"), ("top", "b", 0), ("top", "b")]
    with pytest.raises(UserErrors):
        raise_all(mistakes)
    raise_all([])


def test_a_near_word_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("sparcity", ["sparsity", "scope"]) == 'did you mean "sparsity"?'
    assert did_you_mean("zzz", ["b", "a"]) == "available: a, b"


def test_a_fault_of_several_steps_is_told_once() -> None:
    same = [UserError("E131", "no data", "give some", path=("step", step)) for step in (0, 1)]
    assert str(UserErrors([*same, UserError("E102", "b")])) == f"{same[0]}\nerror[E102]: b"
