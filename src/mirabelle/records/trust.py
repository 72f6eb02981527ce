"""Which names of code may be followed: those that a user gives, and those in somebody's folder if it is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from mirabelle.errors import UserError

NOT_TRUSTED = "E144"
_DATA_ALONE: ContextVar[Path | None] = ContextVar("_DATA_ALONE", default=None)


@contextmanager
def names_of(folder: Path, *, trust: bool) -> Iterator[None]:
    """A context in which names come from files in `folder`; unless it is trusted, `check_trusted` refuses them.

    Example:
        >>> with names_of(Path("run"), trust=False):
        ...     check_trusted("./net.py:net")
        Traceback (most recent call last):
        ...
        mirabelle.errors.UserError: error[E144]: run names ./net.py:net, which is code or an address and is not followed
        help: give --trust (in Python trust=True) if you trust the folder like a program
    """
    token = _DATA_ALONE.set(None if trust else folder)
    try:
        yield
    finally:
        _DATA_ALONE.reset(token)


def data_alone() -> bool:
    """Whether names are read from a folder that is not trusted."""
    return _DATA_ALONE.get() is not None


def check_trusted(name: str) -> None:
    """Raise an error if a name of code, of a pickle or of a hub is read from a folder that is not trusted.

    Raises:
        UserError: E144.
    """
    folder = _DATA_ALONE.get()
    if folder is not None:
        message = f"{folder} names {name}, which is code or an address and is not followed"
        raise UserError("E144", message, "give --trust (in Python trust=True) if you trust the folder like a program")
