"""Decoded images in a file: decoded once, and then read nearly as fast as from memory, whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.errors import UserError
from mirabelle.run.files import digest
from mirabelle.sources.datasets.cache import CACHE, cache_folder, write_once
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.pictures import Pixels, pixels

_AT_ONCE = 256  # images that are decoded between two writes, and that are looked at together
_DRAWN, _ENDS = 256, 1 << 16  # files whose contents identify all, and bytes of each at its beginning

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Indices = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Decoded:
    """Images that are read by their positions.

    Args:
        read: positions -> pixels, (images, height, width, channels), uint8.
        count: number of images.
        identity: a digest: of the names and sizes of all files, the contents of some, and how they become pixels.
        note: a sentence on what could not be kept; "" for nothing.
    """

    read: Callable[[Indices], Pixels]
    count: int
    identity: str
    note: str = ""

    def parts(self, positions: Indices) -> Iterator[Pixels]:
        """The pixels of some images in parts of bounded size."""
        for start in range(0, len(positions), _AT_ONCE):
            yield self.read(positions[start : start + _AT_ONCE])


def decoded(paths: Sequence[Path], image: Image) -> Decoded:
    """Decode images into a file in the cache folder, unless it is there already; without space, whenever they are read.

    Args:
        paths: image files of at most 8 bits for each channel.
        image: size, mode and resizing.

    Raises:
        UserError: E131 naming a file that cannot be read as an image.
    """
    sizes = [path.stat() for path in paths]
    manner = f"{image.resizing} {image.mode}"
    names = "".join(f"{path.parent.name}/{path.name} {found.st_size}\n" for path, found in zip(paths, sizes, strict=True))
    identity = digest(manner.encode(), names.encode(), *_contents(paths))
    shape = (len(paths), *image.size, image.channels)
    when = "".join(f"{path.resolve()} {found.st_mtime_ns}\n" for path, found in zip(paths, sizes, strict=True))
    file = cache_folder() / f"{digest(identity.encode(), when.encode())}.npy"
    try:
        write_once(file, partial(_write, paths, shape, image), int(np.prod(shape)), "decoded images")
    except UserError as error:
        if error.code != "E202":
            raise
        note = f"{error.message}: they are decoded in every epoch. The variable {CACHE} names another folder."
        return Decoded(lambda index: _read([paths[k] for k in index], image), len(paths), identity, note)
    return Decoded(partial(_rows, file), len(paths), identity)


def _rows(file: Path, index: Indices) -> Pixels:
    """Some rows of an array in a file. They are read, not mapped: pages that are mapped count as memory of the process."""
    with file.open("rb") as opened:
        version = np.lib.format.read_magic(opened)
        shape, _, kind = _HEADERS[version](opened)
        first, found = opened.tell(), np.empty((len(index), *shape[1:]), kind)
        size = found[:1].nbytes
        for row, place in zip(found, index.tolist(), strict=True):
            opened.seek(first + place * size)
            if opened.readinto(row.reshape(-1).view(np.uint8).data) != size:
                raise UserError(
                    "E141", f"{file} is damaged: it ends too early", "remove it, so that the images are decoded again"
                )
    return found


def _contents(paths: Sequence[Path]) -> Iterator[bytes]:
    """The beginnings of some of the files, always the same ones."""
    for k in np.linspace(0, len(paths) - 1, min(len(paths), _DRAWN)).astype(int):
        with paths[k].open("rb") as file:
            yield file.read(_ENDS)


def _write(paths: Sequence[Path], shape: tuple[int, ...], image: Image, opened: BinaryIO) -> None:
    """Write the pixels of all images."""
    np.lib.format.write_array_header_1_0(opened, {"descr": "|u1", "fortran_order": False, "shape": shape})
    opened.writelines(_read(paths[start : start + _AT_ONCE], image).data for start in range(0, len(paths), _AT_ONCE))


def _read(paths: Sequence[Path], image: Image) -> Pixels:
    """The pixels of some files; decoding leaves Python free, so threads share it."""
    if not paths:
        return np.zeros((0, *image.size, image.channels), np.uint8)
    with ThreadPoolExecutor(min(torch.get_num_threads(), len(paths))) as pool:
        return np.stack(list(pool.map(lambda path: pixels(path, image.resizing, image.mode), paths))).astype(
            np.uint8, copy=False
        )
