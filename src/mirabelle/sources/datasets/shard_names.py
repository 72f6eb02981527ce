"""Which tar files the name of data refers to, and to which split each of them belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from glob import has_magic
from pathlib import Path

from mirabelle.errors import UserError
from mirabelle.sources.datasets.folders import SPLITS
from mirabelle.sources.names import SHARD

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # names of shards
_WORDS = re.compile(r"[a-z]+")


def shards_at(path: Path) -> list[Path]:
    """The tar files in a folder, and in the folders in it; or those that a name with ranges or patterns refers to, in order.

    Raises:
        UserError: E130 if there are none, or one of a range is missing; E110 if a range cannot be read.
    """
    if path.is_dir():
        inside = sorted(one for pattern in (f"*{SHARD}", f"*/*{SHARD}") for one in path.glob(pattern) if _is_shard(one, path))
        if not inside:
            raise UserError("E130", f"{path} contains no {SHARD} file", "give a folder of shards")
        return inside
    found: list[Path] = []
    for name in _written_out(str(path)):
        place = Path(name)
        if has_magic(name) and not place.is_file():
            own = sorted(one for one in _matches(place) if one.is_file())
            if not own:
                raise UserError("E130", f"no shard matches {name}", "check the name; paths are relative to the recipe")
            found += own
        elif place.is_file():
            found.append(place)
        else:
            raise UserError("E130", f"there is no shard {name}", "fetch it, or name those that are there")
    return list(dict.fromkeys(found))


def by_split(shards: list[Path], above: Path) -> dict[str, list[Path]]:
    """The shards by split, which a word in their names says, or in those of their folders; without any word, for training.

    Args:
        shards: in order.
        above: a folder whose own name says nothing.

    Raises:
        UserError: E131 if some shards say their split and others do not, or none is for training.
    """
    named = {shard: _split_of(shard, above) for shard in shards}
    if not any(named.values()):
        return {"train": shards}
    other = next((shard for shard, split in named.items() if split is None), None)
    if other is not None:
        message = f"the name of {other} does not say to which split it belongs, others do"
        raise UserError("E131", message, f"put one of the words into its name: {', '.join(SPLITS)}")
    found = {split: [shard for shard in shards if named[shard] == split] for split in dict.fromkeys(SPLITS.values())}
    if not found["train"]:
        raise UserError("E131", f"no shard in {above} is for training", 'put the word "train" into the names of some')
    return {split: own for split, own in found.items() if own}


def above(path: Path) -> Path:
    """The folder of the shards that a name refers to: that without ranges and patterns, or the folder itself."""
    if path.is_dir():
        return path
    return next(one for one in path.parents if not has_magic(str(one)) and not _BRACES.search(str(one)))


def _is_shard(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _split_of(shard: Path, above: Path) -> str | None:
    inside = shard.relative_to(above) if shard.is_relative_to(above) else Path(shard.name)
    words = [word for part in inside.parts for word in _WORDS.findall(part.lower())]
    found = dict.fromkeys(SPLITS[word] for word in words if word in SPLITS)
    if len(found) > 1:
        message = f"the name of {shard} has the words of two splits, {' and '.join(found)}"
        raise UserError("E131", message, "keep one of them")
    return next(iter(found), None)


def _written_out(name: str) -> Iterator[str]:
    """All names that a name with ranges, {000..099}, and alternatives, {a,b}, refers to, in order."""
    count = 1
    for inside in _BRACES.findall(name):
        count *= len(_choices(inside))
        if count > _MOST:
            raise UserError("E110", f"{name} refers to more than {_MOST:,} shards", "name fewer")
    yield from _expanded(name)


def _expanded(name: str) -> Iterator[str]:
    found = _BRACES.search(name)
    if found is None:
        yield name
        return
    for choice in _choices(found[1]):
        for rest in _expanded(name[found.end() :]):
            yield name[: found.start()] + choice + rest


def _choices(inside: str) -> list[str]:
    ends = _RANGE.fullmatch(inside)
    if ends is None:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(ends[1]), int(ends[2])
    if not 0 <= last - first < _MOST:
        raise UserError("E110", f"{{{inside}}} is no range of at most {_MOST:,} shards", "write it as {000..099}")
    width = len(ends[1])
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _matches(pattern: Path) -> Iterator[Path]:
    folder = above(pattern)
    yield from folder.glob(str(pattern.relative_to(folder)))
