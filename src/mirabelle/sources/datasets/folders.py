"""List the files of a folder that has one subfolder for each class, optionally inside folders for the splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mirabelle.errors import UserError, did_you_mean

_WORD = re.compile("[-_.]")  # behind the name of a split in the name of a file
_FEW = 5  # number of suffixes in a message
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name in the singular and plural, for messages, its suffixes, and where such files must lie."""

    one: str
    several: str
    suffixes: Sequence[str]
    place: str = "directly in a class folder"

    def files(self, folder: Path) -> list[Path]:
        """The files of this kind in a folder, sorted; hidden files are ignored."""
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in self.suffixes and not path.name.startswith(".") and path.is_file()
        )


def files_by_split(folder: Path, kind: Kind, labels: Sequence[str] = ()) -> dict[str, dict[str, list[Path]]]:
    """The files by split and class. If the folder directly contains class folders, the only split is "train".

    Args:
        folder: of the data.
        kind: of the files.
        labels: names of the classes in their order, also of some without a folder; by default the sorted names of the folders.

    Raises:
        UserError: E130 if the folder is missing or has no subfolders, E131 if there are fewer than two classes, a class has no
            files, the splits have different classes, or a class is not in `labels`.
    """
    return {part: ordered(classes, labels, folder) for part, classes in _by_split(folder, kind).items()}


def ordered(classes: Mapping[str, list[Path]], labels: Sequence[str], folder: Path) -> dict[str, list[Path]]:
    """The files by class in the order of `labels`, by default as they are.

    Raises:
        UserError: E131 if a class is not in `labels`.
    """
    other = sorted(set(classes) - set(labels))
    if labels and other:
        message = f'{folder} has a class "{other[0]}", which is not in `labels`: {", ".join(labels[:_FEW])}'
        raise UserError("E131", message + (", …" if len(labels) > _FEW else ""), did_you_mean(other[0], labels))
    return {name: classes.get(name, []) for name in labels or classes}


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits in a folder, by split; the folder itself as "train" if it has none."""
    inside = {SPLITS[place.name]: place for place in _folders(folder) if place.name in SPLITS}
    return inside if "train" in inside else {"train": folder}


def by_name_of_split(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files by split, if each has a name that begins with a split, as "test-0.parquet", and "train" is among them.

    Example:
        >>> by_name_of_split([Path("train.parquet"), Path("val-0.parquet"), Path("val-1.parquet")])
        {'train': [PosixPath('train.parquet')], 'validation': [PosixPath('val-0.parquet'), PosixPath('val-1.parquet')]}
        >>> by_name_of_split([Path("train.parquet"), Path("trains.parquet")])
        {}
    """
    named = [SPLITS.get(_WORD.split(path.stem, maxsplit=1)[0]) for path in files]
    if None in named or "train" not in named:
        return {}
    return {split: [path for path, own in zip(files, named, strict=True) if own == split] for split in SPLITS if split in named}


def _by_split(folder: Path, kind: Kind) -> dict[str, dict[str, list[Path]]]:
    if not folder.is_dir():
        raise UserError(
            "E130", f"no folder of {kind.several} at {folder}", 'paths are relative to the recipe; "~" is not expanded'
        )
    inside = _folders(folder)
    if not inside:
        remedy = f"put {kind.several} ({', '.join(kind.suffixes)}) into one folder for each class: {folder}/<class>/"
        if kind.one == "image":
            remedy += '; images without labels are read with kind = "unlabelled"'
        raise UserError("E130", f"{folder} contains no class folders", remedy)
    if not any(place.name == "train" and _folders(place) for place in inside):
        return {"train": _classes(folder, kind)}
    other = [place.name for place in inside if place.name not in SPLITS]
    if other:
        message = f'{folder} has a folder "{other[0]}" next to "train", which is not a split'
        raise UserError("E131", message, f"the names of splits are {', '.join(SPLITS)}")
    named = [SPLITS[place.name] for place in inside]
    if len(set(named)) < len(named):
        raise UserError("E131", f"{folder} has two folders of validation {kind.several}", 'keep one folder, "validation"')
    splits = {SPLITS[place.name]: _classes(place, kind) for place in inside}
    for name, classes in splits.items():
        different = sorted(set(classes) ^ set(splits["train"]))
        if different:
            message = f'{folder}: class "{different[0]}" is only in one of the splits "train" and "{name}"'
            raise UserError("E131", message, "give every split the same class folders")
    return splits


def files_without_classes(folder: Path, kind: Kind) -> dict[str, dict[str, list[Path]]]:
    """The files by split, in a single class "", found recursively in the folder or in its folders for the splits.

    Raises:
        UserError: E130 if the folder is missing, or a split has no files.
    """
    if not folder.is_dir():
        raise UserError(
            "E130", f"no folder of {kind.several} at {folder}", 'paths are relative to the recipe; "~" is not expanded'
        )
    found = {}
    for name, place in split_folders(folder).items():
        below = (place, *(part for part in sorted(place.rglob("*")) if part.is_dir() and not part.name.startswith(".")))
        found[name] = {"": [file for part in below for file in kind.files(part)]}
        if not found[name][""]:
            raise UserError("E130", f"no {kind.one} in {place}", f"put {kind.several} there ({', '.join(kind.suffixes)})")
    return found


def unread_files(folder: Path, read: Container[Path], kind: Kind) -> list[str]:
    """A sentence on the files in a folder, at any depth, that are not read; none if all are. Hidden files do not count.

    Args:
        folder: of the data.
        read: the files that are read.
        kind: the kind of file that is read.
    """
    inside = (
        path for path in sorted(folder.rglob("*")) if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in inside if path.is_file() and path not in read)
    if not suffixes:
        return []
    named = ", ".join(f"{count:,} × {suffix}" for suffix, count in suffixes.most_common(_FEW))
    places = f"{kind.several} are read ({', '.join(kind.suffixes)})"
    misplaced = f" that lie {kind.place}" if any(suffix in kind.suffixes for suffix in suffixes) else ""
    return [f"Not all files in {folder.name} are read: {named} are left out; only {places}{misplaced}."]


def first_suffix(folder: Path, suffixes: Sequence[str]) -> str | None:
    """The suffix of the first file in a folder, or up to two levels below it, that has one of these suffixes; else None."""
    for place in (folder, *folder.glob("*/"), *folder.glob("*/*/")):
        if place.is_dir():
            found = next((path.suffix.lower() for path in sorted(place.iterdir()) if path.suffix.lower() in suffixes), None)
            if found is not None:
                return found
    return None


def _classes(folder: Path, kind: Kind) -> dict[str, list[Path]]:
    """The files by class, both sorted."""
    classes = {place.name: kind.files(place) for place in _folders(folder)}
    if len(classes) < 2:  # noqa: PLR2004 (a classification needs two classes)
        found = f'one, "{next(iter(classes))}"' if classes else "none"
        message = f"{folder} must contain at least two class folders; it contains {found}"
        raise UserError("E131", message, "add the other classes")
    for name, paths in classes.items():
        if not paths:
            raise UserError("E131", f'class "{name}" in {folder} has no {kind.one}', f"add some ({', '.join(kind.suffixes)})")
    return classes


def _folders(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
