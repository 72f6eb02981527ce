"""The one family of user errors: a code, the rule with the value received, and the remedy.

A `UserError` is a mistake a person can mend (input, machine, goal); anything else that is raised is ours.
The code decides the exit status: 2 wrong or unsafe input, 3 the machine, 4 goal not met or gate failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

CODES: dict[str, tuple[int, str]] = {
    "E101": (2, "not valid TOML"),
    "E102": (2, "unknown key"),
    "E103": (2, "wrong type or value in a recipe"),
    "E104": (2, "missing key"),
    "E105": (2, "illegal order of steps"),
    "E106": (2, "unknown step, term or score"),
    "E110": (2, "hyperparameter out of range"),
    "E111": (2, "contradictory settings"),
    "E112": (2, "pattern matches nothing"),
    "E113": (2, "a goal that cannot be read"),
    "E120": (2, "factory not found or failing"),
    "E121": (2, "model that cannot be used"),
    "E130": (2, "data missing"),
    "E131": (2, "data that cannot be used"),
    "E140": (2, "weights that do not fit"),
    "E141": (2, "damaged file"),
    "E142": (2, "file of a newer version"),
    "E143": (2, "unsafe or unknown kind of file"),
    "E150": (2, "output folder holds another run"),
    "E151": (2, "output folder cannot be used"),
    "E201": (3, "training diverged"),
    "E202": (3, "file cannot be written"),
    "E301": (4, "goal not met"),
    "E302": (4, "gate failed"),
}


class UserError(Exception):
    """A mistake in what was given, with its remedy.

    Args:
        code: a key of `CODES`.
        message: the rule that was broken and the value received, one line.
        remedy: what to do about it, one line.

    Example:
        >>> print(UserError("E112", 'no parameter matches "cov*"', 'did you mean "conv*"?'))
        error[E112]: no parameter matches "cov*"
        help: did you mean "conv*"?
    """

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        assert code in CODES, f"{code} is not in the table of codes"
        super().__init__(code, message, remedy)
        self.code = code
        self.message = message
        self.remedy = remedy

    @property
    def exit_status(self) -> int:
        return CODES[self.code][0]

    def at(self, place: str) -> UserError:
        """The same error, its message led by where it happened."""
        return UserError(self.code, f"{place}: {self.message}", self.remedy)

    def __str__(self) -> str:
        first = f"error[{self.code}]: {self.message}"
        return f"{first}\nhelp: {self.remedy}" if self.remedy else first


class UserErrors(UserError):  # noqa: N818 (several of the one kind)
    """Several mistakes found at once; prints each, exits as the first."""

    def __init__(self, errors: list[UserError]) -> None:
        assert errors, "no error to raise"
        super().__init__(errors[0].code, errors[0].message, errors[0].remedy)
        self.errors = errors

    def at(self, place: str) -> UserErrors:
        return UserErrors([error.at(place) for error in self.errors])

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def require_between(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
    remedy: str = "",
) -> None:
    """Raise E110 unless `value` is a number from `low` to `high` (ends included unless open)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    above = is_number and (value > low if low_open else value >= low)
    below = is_number and (value < high if high_open else value <= high)
    if not (above and below):
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise UserError("E110", f"{name} must be a number in {interval}; got {value!r}", remedy)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known word, or all of them when none is near."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(known) or 'none'}"
