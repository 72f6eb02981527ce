"""The samples of a tar file: each with the position of its image and its class. The list is made once, and kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mirabelle import __version__
from mirabelle.errors import UserError
from mirabelle.run.files import digest, write
from mirabelle.sources.datasets.cache import alone, cache_folder
from mirabelle.sources.datasets.image_settings import TarShards
from mirabelle.sources.datasets.places import Member, Shard
from mirabelle.sources.datasets.tar_members import members_of
from mirabelle.task.preprocessing.pictures import SUFFIXES, Header, header_of

Class: TypeAlias = int | str | None
_CLASS, _FIELDS = "cls", "json"  # suffixes of members
_NAMES_OF_FIELDS = ("label", "cls", "class")
_MOST_BYTES, _MOST_LETTERS = 1 << 20, 200  # of a member with a class, and of the name of a class
_NUMBER = re.compile(r"\d{1,9}")


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a shard.

    Args:
        image: where its image is.
        label: its class, a number or a name; None if classes are not read.
        header: of its image; None if it cannot be read.
    """

    image: Member
    label: Class
    header: Header | None


@dataclass(frozen=True)
class Listed:
    """What a shard contains.

    Args:
        samples: in their order.
        without_image: number of samples without an image.
        damage: what the shard could not be read behind; None if it is whole.
    """

    samples: tuple[Sample, ...]
    without_image: int
    damage: UserError | None


def listed(path: Path, settings: TarShards) -> Listed:
    """The samples of a shard, from the list that was made before if the shard has not changed since.

    Raises:
        UserError: E130 if it is not there, E131 as `TarShards`; damage of the shard is returned.
    """
    shard = Shard.at(path)
    if not settings.cache:
        return _read(shard, settings)
    manner = f"{settings.kind} {settings.label} {settings.image} {__version__}"
    place = f"{path.resolve()} {shard.size} {shard.changed}"
    file = cache_folder() / f"{digest(place.encode(), manner.encode())}.json"
    known = _known(file, shard)
    if known is None:
        known = _read(shard, settings)
        _keep(file, known)
    return known


def _known(file: Path, shard: Shard) -> Listed | None:
    """The list in a file; None if there is none that can be read."""
    if not file.is_file():
        return None
    said, _, text = file.read_bytes().partition(b"\n")
    if said != digest(text).encode():
        return None
    data = json.loads(text)
    headers = [Header((one[0], one[1]), *one[2:]) for one in data["headers"]]
    samples = tuple(
        Sample(Member(shard, name, offset, size), label, None if header is None else headers[header])
        for name, offset, size, label, header in data["samples"]
    )
    damage = None if data["damage"] is None else UserError("E131", **data["damage"])
    return Listed(samples, data["without_image"], damage)


def _keep(file: Path, found: Listed) -> None:
    """Write a list, with a digest in front, if the folder can be used."""
    headers: dict[Header, int] = {}  # most images have one of a few
    for one in found.samples:
        if one.header is not None:
            headers.setdefault(one.header, len(headers))
    damage = None if found.damage is None else {"message": found.damage.message, "remedy": found.damage.remedy}
    data = {
        "headers": [(*one.size, one.mode, one.deep, one.transparent, one.several) for one in headers],
        "samples": [
            (one.image.name, one.image.offset, one.image.size, one.label, None if one.header is None else headers[one.header])
            for one in found.samples
        ],
        "without_image": found.without_image,
        "damage": damage,
    }
    text = json.dumps(data).encode()
    try:
        with alone(file):
            write(file, digest(text).encode() + b"\n" + text)
    except (OSError, UserError):  # it is made again the next time
        pass


def _read(shard: Shard, settings: TarShards) -> Listed:
    members: list[Member] = []
    damage = None
    try:
        for member in members_of(shard):
            members.append(member)  # noqa: PERF402 (those before a damage are kept)
    except UserError as error:
        if error.code != "E131":
            raise
        damage = error
    groups, samples, without = _grouped(members), list[Sample](), 0
    for place, group in enumerate(groups.values()):
        image = _image_of(group, settings.image)
        if image is None:
            without += 1
            continue
        try:
            label = None if settings.kind == "unlabelled" else _label_of(group, image, settings.label)
        except UserError:
            if damage is not None and place == len(groups) - 1:  # the rest of the sample is behind the damage
                continue
            raise
        samples.append(Sample(image, label, _header_or_none(image)))
    return Listed(tuple(samples), without, damage)


def _grouped(members: Iterable[Member]) -> dict[str, dict[str, Member]]:
    """The members of each sample by their suffixes; hidden files, and those without a suffix, belong to none."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, _, base = member.name.removeprefix("./").rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem or not dot:
            continue
        group = groups.setdefault(f"{folder}/{stem}", {})
        if suffix.lower() in group:
            raise UserError("E131", f"two members are named {member}", "give each member a name of its own")
        group[suffix.lower()] = member
    return groups


def _image_of(group: dict[str, Member], asked: str | None) -> Member | None:
    suffixes = SUFFIXES if asked is None else (f".{asked.lower().lstrip('.')}",)
    found = [member for suffix, member in group.items() if f".{suffix}" in suffixes]
    if len(found) > 1:
        message = f"a sample has two images, {found[0].name} and {found[1]}"
        raise UserError("E131", message, 'name the suffix of those to read: image = "jpg"')
    return found[0] if found else None


def _header_or_none(image: Member) -> Header | None:
    try:
        return header_of(image)
    except UserError as error:
        if error.code != "E131":
            raise
        return None


def _label_of(group: dict[str, Member], image: Member, field: str | None) -> int | str:
    if field is None and _CLASS in group:
        return _class_in(_content(group[_CLASS]), str(group[_CLASS]))
    if _FIELDS not in group:
        message = f"the sample of {image} has no class: there is no member .{_CLASS if field is None else _FIELDS} beside it"
        raise UserError("E131", message, 'add it, or read the images without classes: kind = "unlabelled"')
    member = group[_FIELDS]
    try:
        data = json.loads(_content(member))
    except (ValueError, RecursionError) as error:
        raise UserError("E131", f"{member} is not valid JSON", "write the shard again") from error
    names = _NAMES_OF_FIELDS if field is None else (field,)
    found = next((data[name] for name in names if name in data), None) if isinstance(data, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, str)):
        given = ", ".join(map(str, list(data)[:5])) if isinstance(data, dict) else type(data).__name__
        message = f"{member} has no class in {' or '.join(names)}: it has {given}"
        raise UserError("E131", message, 'name the field that has it: label = "…"')
    return _class_in(str(found), str(member))


def _class_in(text: str, where: str) -> int | str:
    """A class as a number, or as the name that it is otherwise."""
    found = text.strip()
    if not found or len(found) > _MOST_LETTERS or not found.isprintable():
        raise UserError("E131", f"{where} has no class, but {found[:20]!r}", "write the number or the name of the class")
    return int(found) if _NUMBER.fullmatch(found) else found


def _content(member: Member) -> str:
    if member.size > _MOST_BYTES:
        message = f"{member} has {member.size:,} bytes; a class is read from at most {_MOST_BYTES:,}"
        raise UserError("E131", message, "write the class alone")
    with member.open("rb") as file:
        return file.read().decode("utf-8", "replace")
