"""Decode image files with Pillow: pixels with the depth of the file, turned upright, without transparency.

A file of at most 8 bits for each channel gives bytes from 0 to 255. A deeper file (16 or 32 bits, floating point) gives its own
values; which of them counts as white is not in the file, so `Image` decides it.
"""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError

if TYPE_CHECKING:
    import PIL.Image

Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Mode: TypeAlias = Literal["L", "RGB"]
Resample: TypeAlias = Literal["bilinear", "bicubic", "lanczos", "box", "hamming", "nearest"]
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CHANNELS = {"L": 1, "RGB": 3}
# Only these decoders of Pillow may run; others start programs (EPS) or follow references in the file.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_DEEP_GREY = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_GREY = ("1", "L", "LA", *_DEEP_GREY)
_GREY_AND_ALPHA = "LA;16B"  # layout of a PNG file that Pillow opens with mode "RGBA"
# Pillow keeps the high byte of each colour of 16 bits. Read as the other order of bytes, it keeps the low byte.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, as in Pillow
# Where Pillow finds EXIF data of a PNG file before its pixels are decoded; its first chunk stands behind the signature.
_EXIF, _SIGNATURE = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"), 8
_MOST = 65535  # the largest value of 16 bits
# Exceptions of Pillow's decoders on damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)


class Place(Protocol):
    """Where an encoded image is: a file (`pathlib.Path`), or a part of one. Its text, `str(place)`, names it in messages."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """The bytes of the image, to be read and closed."""


@dataclass(frozen=True)
class Header:
    """What the beginning of an image file says.

    Args:
        size: (height, width) after rotation by its EXIF data.
        mode: "L" for greyscale, "RGB" for colour.
        deep: whether it has more than 8 bits for each channel.
        transparent: whether it has a transparent colour or a channel of transparency.
        several: whether it contains several images or pages, of which the first is read.
    """

    size: tuple[int, int]
    mode: Mode
    deep: bool
    transparent: bool
    several: bool


def header_of(place: Place) -> Header:
    """The header of an image; pixels are decoded only if the image must be rotated.

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read as an image.
    """
    with _opened(place, header=True) as (picture, layout):
        grey = picture.mode in _GREY or layout == _GREY_AND_ALPHA
        return Header(
            size=(picture.height, picture.width),
            mode="L" if grey else "RGB",
            deep=_is_deep(picture, layout),
            transparent=picture.has_transparency_data,
            several=bool(getattr(picture, "is_animated", False)),
        )


@dataclass(frozen=True)
class Resizing:
    """How an image gets its size: it is resized, and then its middle is cut out.

    Args:
        size: (height, width) of the result.
        before: (height, width) before the middle is cut out, or (side,) for the shorter side; by default `size`.
        resample: the interpolation, by its name in Pillow.
    """

    size: tuple[int, int]
    before: tuple[int, ...] = ()
    resample: Resample = "bilinear"

    def plane(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """The image in its size. The longer side of an image and the edges of the cut are rounded down, as in torchvision."""
        from PIL.Image import Resampling

        due = self._resized(picture.height, picture.width)
        if picture.size != due[::-1]:
            picture = picture.resize(due[::-1], Resampling[self.resample.upper()])
        top, left = ((whole - part) // 2 for whole, part in zip(due, self.size, strict=True))
        return picture if due == self.size else picture.crop((left, top, left + self.size[1], top + self.size[0]))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if len(self.before) != 1:
            return (self.before[0], self.before[1]) if self.before else self.size
        shorter, longer = self.before[0], int(self.before[0] * max(height, width) / min(height, width))
        return (longer, shorter) if width <= height else (shorter, longer)


def pixels(place: Place, resizing: Resizing, mode: Mode) -> Pixels:
    """The pixels of an image, (height, width, channels), rotated as its EXIF data say, without transparency.

    Args:
        place: the encoded image.
        resizing: how the image gets its size.
        mode: "L" for greyscale, "RGB" for colour.

    Returns:
        uint8 from 0 to 255 for a file of at most 8 bits for each channel; otherwise float32, in the units of the file.

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read as an image.
    """
    height, width = resizing.size
    with _opened(place) as (picture, layout):
        if not _is_deep(picture, layout):
            upright = resizing.plane(_eight_bits(picture))
            return np.array(upright.convert(mode), np.uint8).reshape(height, width, CHANNELS[mode])
        values = _deep_values(place, picture, layout)
    channels = _resized(values, resizing)
    if channels.shape[2] > 1 and mode == "L":
        return (channels @ _LUMINANCE)[..., np.newaxis]
    return np.ascontiguousarray(np.broadcast_to(channels, (height, width, CHANNELS[mode])))


def _is_deep(picture: PIL.Image.Image, layout: str) -> bool:
    return picture.mode in _DEEP_GREY or ";16" in layout


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The image as greyscale or colour with 8 bits for each channel, at its own size."""
    if picture.mode in _GREY:
        return picture.convert("L")
    return picture.convert("RGBA").convert("RGB") if picture.mode in ("P", "PA") else picture.convert("RGB")


def _deep_values(place: Place, picture: PIL.Image.Image, layout: str) -> npt.NDArray[np.float32]:
    """The values of a deep image, (height, width, 1 or 3), with all their bits."""
    if picture.mode in _DEEP_GREY:
        values = np.asarray(picture).astype(np.float32)[..., np.newaxis]
        if not np.isfinite(values).all():
            raise ValueError("it has pixels that are NaN or infinite")
        return values
    if layout == _GREY_AND_ALPHA:
        high, low, *_ = np.moveaxis(_bytes(place, {layout: "RGBA"}), -1, 0)
        grey: npt.NDArray[np.float32] = (high * 256 + low)[..., np.newaxis].astype(np.float32)
        return grey
    if layout.startswith("RGBa") or layout[-1] not in _OTHER_ORDER:
        raise ValueError(f'its layout "{layout}" of 16 bits for each channel is not supported')
    values = np.asarray(picture).astype(np.float32) * 256 + _bytes(place, {})
    if picture.mode == "CMYK":
        return ((_MOST - values[..., :3]) * (_MOST - values[..., 3:]) / _MOST).astype(np.float32)
    return values[..., :3]


def _bytes(place: Place, layouts: dict[str, str]) -> npt.NDArray[np.float32]:
    """The image decoded with another layout of its bytes; by default with the other order of bytes."""
    with _opened(place, layouts) as (picture, _):
        return np.asarray(picture).astype(np.float32)


def _resized(values: npt.NDArray[np.float32], resizing: Resizing) -> npt.NDArray[np.float32]:
    """Values (height, width, channels) in their size, interpolated in floating point."""
    import PIL.Image

    planes = [PIL.Image.fromarray(np.ascontiguousarray(values[..., k])) for k in range(values.shape[2])]
    return np.stack([np.asarray(resizing.plane(plane)) for plane in planes], axis=-1)


def mask_values(place: Place, resizing: Resizing) -> npt.NDArray[np.int64]:
    """The values of a mask, (height, width): numbers of classes, or of colours of a palette. The interpolation is "nearest".

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read as an image, or has colours.
    """
    with _opened(place) as (picture, _):
        if picture.mode not in (*_GREY, "P") or picture.mode == "LA":
            raise ValueError("it has colours; a mask has one number for each pixel")
        return np.array(replace(resizing, resample="nearest").plane(picture)).astype(np.int64)


@contextmanager
def _opened(
    place: Place, layouts: dict[str, str] | None = None, *, header: bool = False
) -> Iterator[tuple[PIL.Image.Image, str]]:
    """Open an image with Pillow and rotate it by its EXIF data; pixels are read when they are first needed.

    Exceptions of the decoder inside the context become E131.

    Args:
        place: the encoded image.
        layouts: other layouts by which Pillow's decoder shall read the bytes; {} for the other order of bytes.
        header: whether pixels are not needed: a PNG file is then decoded only if it has EXIF data.

    Returns:
        The image, and the layout of its bytes in the file by Pillow's name, such as "RGB;16B".
    """
    import PIL.Image
    import PIL.ImageOps

    if isinstance(place, Path) and not place.is_file():
        raise UserError("E130", f"no image at {place}", "check the path")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faulty tags of a camera do not matter
        try:
            with place.open("rb") as file, PIL.Image.open(file, formats=_FORMATS) as picture:
                layout = _layout(picture)
                if layouts is not None:
                    _read_as(picture, layouts)
                if not (header and picture.format == "PNG" and _without_exif(file, picture)):
                    PIL.ImageOps.exif_transpose(picture, in_place=True)
                yield picture, layout
        except (*_DAMAGED, PIL.Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, PIL.UnidentifiedImageError):  # its message would show a Python object
                reason = "it has no known image format"
            message = f"{place} cannot be read as an image: {reason}"
            raise UserError("E131", message, f"give an intact {', '.join(SUFFIXES)} file") from error


def _without_exif(file: BinaryIO, picture: PIL.Image.Image) -> bool:
    """Whether a PNG file has no EXIF data. Pillow decodes all pixels to look for them, as they may stand behind the pixels."""
    if any(name in picture.info for name in _EXIF):
        return False
    at, behind, found = file.tell(), False, False
    file.seek(_SIGNATURE)
    while not found and len(chunk := file.read(8)) == 8:  # noqa: PLR2004 (a length and a name of four bytes each)
        kind = chunk[4:]
        behind = behind or kind == b"IDAT"
        found = kind == b"eXIf" or (behind and kind in (b"tEXt", b"zTXt", b"iTXt"))
        file.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
    file.seek(at)
    return not found


def _layout(picture: PIL.Image.Image) -> str:
    """The layout of the bytes of an image that has not been decoded."""
    tile: Any = next(iter(getattr(picture, "tile", ())), None)
    if tile is None:
        return ""
    first, *others = (tile.args,) if isinstance(tile.args, str) or not tile.args else tile.args
    if str(tile.codec_name).startswith("ppm") and first == "RGB" and others[0] > 255:  # noqa: PLR2004 (the largest byte)
        raise ValueError("Pillow reads only 8 bits for each channel of a coloured .ppm file; save it as .png or .tif")
    return first if isinstance(first, str) else ""


def _read_as(picture: PIL.Image.Image, layouts: dict[str, str]) -> None:
    """Make Pillow decode the bytes of an opened image by another layout."""
    tiles = []
    for tile in getattr(picture, "tile", ()):
        own, *others = (tile.args,) if isinstance(tile.args, str) else tile.args
        other = layouts.get(own) or own[:-1] + _OTHER_ORDER[own[-1]]
        tiles.append(tile._replace(args=other if isinstance(tile.args, str) else (other, *others)))
    picture.tile = tiles  # type: ignore[attr-defined]
