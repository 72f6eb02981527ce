"""User errors: a code, a message with the rule and the value received, and a remedy.

A `UserError` reports something that the user can correct: the input, the machine or the goal. Any other exception is a bug in
Mirabelle. The code determines the exit status: 2 wrong or unsafe input, 3 memory or disk exhausted or training diverged, 4 goal
not met or gate failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

MODULE_OF_FILES = "mirabelle_user_"  # prefix of the names of modules loaded from a user's Python files
Path = tuple[str | int, ...]  # keys and indices from the top of the data to a value

CODES: dict[str, tuple[int, str]] = {
    "E100": (2, "wrong command line"),
    "E101": (2, "not valid TOML"),
    "E102": (2, "unknown key"),
    "E103": (2, "wrong type or value in a recipe"),
    "E104": (2, "missing key"),
    "E105": (2, "invalid order of steps"),
    "E106": (2, "unknown step, term or score"),
    "E110": (2, "hyperparameter out of range"),
    "E111": (2, "contradictory settings"),
    "E112": (2, "pattern matches nothing"),
    "E113": (2, "goal cannot be parsed"),
    "E114": (2, "goal cannot be reached"),
    "E120": (2, "user function not found or failing"),
    "E121": (2, "unusable model"),
    "E122": (2, "device is not there"),
    "E130": (2, "data missing"),
    "E131": (2, "unusable data"),
    "E132": (2, "labels out of range"),
    "E140": (2, "weights do not match the model"),
    "E141": (2, "damaged file"),
    "E142": (2, "file from a newer version"),
    "E143": (2, "unsafe or unknown file type"),
    "E144": (2, "code that a folder names, which is not trusted"),
    "E150": (2, "output folder contains another run"),
    "E151": (2, "output folder cannot be used"),
    "E152": (2, "output folder is in use"),
    "E160": (2, "extra not installed"),
    "E201": (3, "training diverged"),
    "E202": (3, "file cannot be written"),
    "E203": (3, "out of memory"),
    "E204": (3, "another process of the job has ended"),
    "E301": (4, "goal not met"),
    "E302": (4, "gate failed"),
}


@dataclass(frozen=True)
class Place:
    """The position of a mistake in a text file, or a command-line option.

    Args:
        file: name of the file, or the option, such as "--set seed=x".
        line: from 1; 0 for an option, which has no line.
        column: from 1.
        text: the line itself.
        width: number of characters to underline.
    """

    file: str
    line: int = 0
    column: int = 1
    text: str = ""
    width: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def shown(self) -> str:
        """The line with carets under the mistake; empty if there is no line."""
        if not self.line:
            return ""
        number = str(self.line)
        before = "".join("\t" if letter == "\t" else " " for letter in self.text[: self.column - 1])
        carets = "^" * max(1, min(self.width, len(self.text) - self.column + 1))
        return f"  {number} | {self.text}\n  {' ' * len(number)} | {before}{carets}"


class UserError(Exception):
    """An error that the user can correct.

    Args:
        code: a key of `CODES`.
        message: the violated rule and the value received, in one line.
        remedy: what to do about it, in one line.
        path: keys and indices that lead to the wrong value in the input data, such as ("step", 0, "sparsity").
        place: its position in a file.

    Example:
        >>> print(UserError("E112", 'no parameter matches "cov*"', 'did you mean "conv*"?'))
        error[E112]: no parameter matches "cov*"
        help: did you mean "conv*"?
    """

    def __init__(self, code: str, message: str, remedy: str = "", *, path: Path = (), place: Place | None = None) -> None:
        assert code in CODES, f"{code} is not in the table of codes"
        message, remedy = _one_line(message), _one_line(remedy)
        super().__init__(code, message, remedy)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.path = path
        self.place = place

    @property
    def exit_status(self) -> int:
        """Exit status of the command line: 2, 3 or 4, see `CODES`."""
        return CODES[self.code][0]

    @property
    def errors(self) -> list[UserError]:
        """This error in a list; for `UserErrors`, all of its errors."""
        return [self]

    def at(self, place: str | Place) -> UserError:
        """A copy of this error with its place: a `Place`, or a text to put in front of the message."""
        if isinstance(place, Place):
            return self._changed(place=place)
        return self._changed(message=f"{place}: {self.message}")

    def within(self, *keys: str | int) -> UserError:
        """A copy of this error with `keys` in front of its path."""
        return self._changed(path=(*keys, *self.path))

    def _changed(self, *, message: str | None = None, path: Path | None = None, place: Place | None = None) -> UserError:
        """A copy with the given changes and the same cause."""
        message, path = message or self.message, self.path if path is None else path
        other = UserError(self.code, message, self.remedy, path=path, place=place or self.place)
        other.__cause__ = self.__cause__
        return other

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        lines = [f"error[{self.code}]: {where}{self.message}"]
        if self.place and self.place.line:
            lines.append(self.place.shown())
        if self.remedy:
            lines.append(f"help: {self.remedy}")
        return "\n".join(lines)


class UserErrors(UserError):  # noqa: N818 (a list of errors)
    """Several errors found at once. All are printed; the exit status is that of the first."""

    def __init__(self, errors: list[UserError]) -> None:
        assert errors, "no error to raise"
        super().__init__(errors[0].code, errors[0].message, errors[0].remedy)
        self._errors = [one for error in errors for one in error.errors]

    @property
    def errors(self) -> list[UserError]:
        return self._errors

    def at(self, place: str | Place) -> UserErrors:
        return UserErrors([error.at(place) for error in self.errors])

    def within(self, *keys: str | int) -> UserErrors:
        return UserErrors([error.within(*keys) for error in self.errors])

    def __str__(self) -> str:
        return "\n".join(dict.fromkeys(str(error) for error in self.errors))  # a fault of several steps is told once


@contextmanager
def gathered(mistakes: list[UserError], *path: str | int) -> Iterator[None]:
    """Context manager: appends a `UserError` raised inside to `mistakes`, with `path` in front of its path, and suppresses it.

    Example:
        >>> mistakes = []
        >>> with gathered(mistakes, "step", 0):
        ...     raise UserError("E112", "nothing matches", path=("include",))
        >>> mistakes[0].path
        ('step', 0, 'include')
    """
    try:
        yield
    except UserError as error:
        mistakes.extend(one.within(*path) for one in error.errors)


@contextmanager
def at_path(*path: str | int) -> Iterator[None]:
    """Context manager: puts `path` in front of the path of a `UserError` raised inside."""
    try:
        yield
    except UserError as error:
        raise error.within(*path) from error.__cause__


def raise_all(mistakes: list[UserError]) -> None:
    """Raise the gathered errors as one; do nothing if there are none."""
    if mistakes:
        raise UserErrors(mistakes) if len(mistakes) > 1 else mistakes[0]


def _one_line(text: str) -> str:
    return " ".join(part for part in (line.strip() for line in text.splitlines()) if part)


# Messages of torch, ONNX Runtime and the C++ library when memory is exhausted. Python itself raises MemoryError.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Failed to allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    """The first non-empty line of the message of any exception, or its class name if the message is empty.

    Example:
        >>> first_line(ValueError("\\n no such file\\nsee the manual"))
        'no such file'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy that suggests the most similar known word, or lists all of them if none is similar."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1, cutoff=0.52)
    return f'did you mean "{near[0]}"?' if near else f"available: {', '.join(known) or 'none'}"
