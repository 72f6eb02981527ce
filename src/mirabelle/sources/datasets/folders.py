"""A folder of class folders of files, in splits or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mirabelle.errors import UserError

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Kind:
    """Of files: what they are called, one and several, and their suffixes."""

    one: str
    several: str
    suffixes: Sequence[str]

    def files(self, folder: Path) -> list[Path]:
        """Those in a folder, sorted; what begins with a dot is left alone."""
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in self.suffixes and not path.name.startswith(".") and path.is_file()
        )


def files_by_split(folder: Path, kind: Kind) -> dict[str, dict[str, list[Path]]]:
    """Files by split and class; "train" alone where the folder holds classes.

    Raises:
        UserError: E130 when the folder is missing or holds no folder, E131 for fewer than two classes, a class without a file,
            or splits whose classes differ.
    """
    if not folder.is_dir():
        raise UserError(
            "E130", f"no folder of {kind.several} at {folder}", 'paths are relative to the recipe; "~" is not expanded'
        )
    inside = _folders(folder)
    if not inside:
        remedy = f"put {kind.several} ({', '.join(kind.suffixes)}) into one folder for each class: {folder}/<class>/"
        if kind.one == "image":
            remedy += '; images without labels are read with kind = "unlabelled"'
        raise UserError("E130", f"{folder} holds no class folders", remedy)
    if not any(place.name == "train" and _folders(place) for place in inside):
        return {"train": _classes(folder, kind)}
    other = [place.name for place in inside if place.name not in _SPLITS]
    if other:
        raise UserError("E131", f'{folder} has a folder "{other[0]}" beside "train"', f"known here: {', '.join(_SPLITS)}")
    named = [_SPLITS[place.name] for place in inside]
    if len(set(named)) < len(named):
        raise UserError("E131", f"{folder} has validation {kind.several} under two names", 'keep one folder, "validation"')
    splits = {_SPLITS[place.name]: _classes(place, kind) for place in inside}
    for name, classes in splits.items():
        different = sorted(set(classes) ^ set(splits["train"]))
        if different:
            message = f'{folder}: class "{different[0]}" is in one of "train" and "{name}" only'
            raise UserError("E131", message, "give every split the same class folders")
    return splits


def files_without_classes(folder: Path, kind: Kind) -> dict[str, dict[str, list[Path]]]:
    """Files by split, all of one class without a name; anywhere below the folder, or below its folder "train" and the others.

    Raises:
        UserError: E130 when the folder, or the one of a split, is missing or holds no such file.
    """
    if not folder.is_dir():
        raise UserError(
            "E130", f"no folder of {kind.several} at {folder}", 'paths are relative to the recipe; "~" is not expanded'
        )
    inside = {place.name: place for place in _folders(folder) if place.name in _SPLITS}
    places = {_SPLITS[name]: place for name, place in inside.items()} if "train" in inside else {"train": folder}
    found = {}
    for name, place in places.items():
        below = (place, *(part for part in sorted(place.rglob("*")) if part.is_dir() and not part.name.startswith(".")))
        found[name] = {"": [file for part in below for file in kind.files(part)]}
        if not found[name][""]:
            raise UserError("E130", f"no {kind.one} below {place}", f"put {kind.several} there ({', '.join(kind.suffixes)})")
    return found


def first_suffix(folder: Path, suffixes: Sequence[str]) -> str | None:
    """The suffix of the first file in a folder, or in one below it, that has one of these."""
    for place in (folder, *folder.glob("*/"), *folder.glob("*/*/")):
        if place.is_dir():
            found = next((path.suffix.lower() for path in sorted(place.iterdir()) if path.suffix.lower() in suffixes), None)
            if found is not None:
                return found
    return None


def _classes(folder: Path, kind: Kind) -> dict[str, list[Path]]:
    """Files by class, both sorted."""
    classes = {place.name: kind.files(place) for place in _folders(folder)}
    if len(classes) < 2:  # noqa: PLR2004 (something to choose between)
        found = f'one, "{next(iter(classes))}"' if classes else "none"
        raise UserError("E131", f"{folder} must hold at least two class folders; it holds {found}", "add the other classes")
    for name, paths in classes.items():
        if not paths:
            raise UserError("E131", f'class "{name}" in {folder} has no {kind.one}', f"add some ({', '.join(kind.suffixes)})")
    return classes


def _folders(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
