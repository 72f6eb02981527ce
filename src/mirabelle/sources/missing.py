"""The error for a path that does not exist, with the path that may be meant."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from mirabelle.errors import UserError

RELATIVE = 'check the path; it is relative to the recipe, and "~" is not expanded'
_ALIKE = 0.7  # similarity of two names, from 0 to 1


def missing(what: str, name: str, path: Path, remedy: str = RELATIVE) -> UserError:
    """The error E130 for a path that does not exist.

    Args:
        what: is missing, such as "model".
        name: as the user wrote it.
        path: that it stands for.
        remedy: what to do, if no path beside it has a similar name.

    Example:
        >>> print(missing("model", "./bertt", Path("bertt"), "check the path"))
        error[E130]: no model at ./bertt
        help: check the path
    """
    near = similar_path(path)
    return UserError("E130", f"no {what} at {name}", f'did you mean "{near}"?' if near else remedy)


def similar_path(path: Path) -> str | None:
    """The path that exists and differs from this one in one misspelled folder or file name; None without one."""
    above = [path, *path.parents]
    absent = next((one for one, parent in pairwise(above) if not one.exists() and parent.is_dir()), None)
    if absent is None:
        return None
    try:
        names = {entry.name.lower(): entry.name for entry in absent.parent.iterdir()}
    except OSError:
        return None
    near = get_close_matches(absent.name.lower(), sorted(names), n=1, cutoff=_ALIKE)
    found = absent.parent / names[near[0]] / path.relative_to(absent) if near else None
    if found is None or not found.exists():
        return None
    return str(found) if found.is_absolute() or ".." in found.parts[:1] else f"./{found}"
