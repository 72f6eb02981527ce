"""Preprocessing of images to model inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import Positive, record
from mirabelle.task.preprocessing import scaling
from mirabelle.task.preprocessing.pictures import CHANNELS, SUFFIXES, Mode, Pixels, Resample, Resizing, pixels
from mirabelle.task.preprocessing.raw_inputs import Preprocessing

Array = npt.NDArray[np.float32]
Scaling: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel
Layout: TypeAlias = Literal["channels-first", "channels-last"]
_BYTE, _SIXTEEN_BITS = 255, 65535  # the largest values of 8 and of 16 bits
_CONSTANT = 1 / _BYTE / 1000  # a channel with a smaller deviation counts as constant
_MOST_SIDE, _MOST_PIXELS = 1 << 14, 1 << 25  # limits for the size in a stored file, which could otherwise exhaust the memory


@record
class Image(Preprocessing):
    """Standardized pixels: x[c, i, j] = (pixel[i, j, c] / white − mean[c]) / deviation[c], float32; or x[i, j, c].

    For files of at most 8 bits for each channel white is 255.

    Args:
        size: (height, width); images of another size are resized by Pillow.
        mode: "L" for greyscale, one channel; "RGB" for three channels.
        mean: mean of each channel, for pixels in [0, 1]; by default 0.
        deviation: standard deviation of each channel; by default 1.
        layout: layout of a model input, "channels-first" as in torch, or "channels-last" as in Keras.
        white: the value that becomes 1 in files of more than 8 bits for each channel (16 or 32 bits, floating point); by
            default 65,535.
        resize: the size before the middle is cut out, (height, width), or (side,) for the shorter side; by default `size`.
        resample: how images are resized, by Pillow's name: "bilinear", "bicubic", "lanczos", "box", "hamming" or "nearest".

    Raises:
        UserError: E110 if height or width are not in 1..16,384, the image has more than 2²⁵ pixels, `resize` is smaller than
            `size`, or the number of means or deviations is not that of the channels.

    Example:
        >>> Image(size=(1, 2), mean=(0.5,), deviation=(0.5,)).scaled(np.array([[[0], [255]]], np.uint8))
        array([[[-1.,  1.]]], dtype=float32)
    """

    key: ClassVar[str] = "size"
    raw_inputs: ClassVar[str] = "images"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    file_content: ClassVar[str] = "an image"
    folder_content: ClassVar[str] = "image"

    size: tuple[int, int]
    mode: Mode = "L"
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"
    white: Positive | None = None
    resize: tuple[int, ...] = ()
    resample: Resample = "bilinear"

    def __post_init__(self) -> None:
        before = (self.resize or self.size) * (1 if len(self.resize) != 1 else 2)
        for name, size in (("size", self.size), ("resize", before)):
            if len(size) != len(self.size) or not (
                all(1 <= side <= _MOST_SIDE for side in size) and size[0] * size[1] <= _MOST_PIXELS
            ):
                rule = f"{name} must be (height, width), each from 1 to {_MOST_SIDE:,}, at most {_MOST_PIXELS:,} pixels"
                raise UserError("E110", f"{rule}; got {list(size)}", "give a smaller size")
        if any(own < cut for own, cut in zip(before, self.size, strict=True)):
            message = f"resize must not be smaller than size, {list(self.size)}; got {list(self.resize)}"
            raise UserError("E110", message, "leave resize out, or give a larger one")
        mean, deviation = scaling.settled(self.mean, self.deviation, self.channels, f'channels of mode "{self.mode}"')
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "deviation", deviation)

    @property
    def channels(self) -> int:
        return CHANNELS[self.mode]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one model input, (channels, height, width) or (height, width, channels)."""
        return (self.channels, *self.size) if self.layout == "channels-first" else (*self.size, self.channels)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape,)

    @property
    def image_layout(self) -> Layout:
        return self.layout

    @property
    def remedy(self) -> str:
        return "give an image or a folder of images"

    def samples(self, path: Path) -> Iterator[tuple[str, Array]]:
        """(path, model input) of the image in a file.

        Raises:
            UserError: E130 if the file is missing, E131 if it cannot be read as an image.
        """
        yield str(path), self(path)

    def __call__(self, path: Path) -> Array:
        """The model input of an image file, of `shape`.

        Raises:
            UserError: E130 if the file is missing, E131 if it cannot be read as an image.
        """
        return self.scaled(self.as_bytes(pixels(path, self.resizing, self.mode)))

    @property
    def resizing(self) -> Resizing:
        """How the pixels of a file get the size of a model input."""
        return Resizing(self.size, self.resize, self.resample)

    def as_bytes(self, values: Pixels) -> Pixels:
        """Pixels of a file, with `white` as 255: bytes stay unchanged, deeper values are multiplied by 255 / white."""
        return values if values.dtype == np.uint8 else values * np.float32(_BYTE / (self.white or _SIXTEEN_BITS))

    def scaled(self, values: Pixels | npt.NDArray[np.float64]) -> Array:
        """Pixels with 255 as white, (..., height, width, channels), as model inputs (..., *shape)."""
        scaled = values.astype(np.float32)
        scaled /= np.float32(_BYTE)
        scaled -= np.array(self.mean, np.float32)
        scaled /= np.array(self.deviation, np.float32)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, -3)) if self.layout == "channels-first" else scaled

    def to_data(self) -> dict[str, Any]:
        mode = {} if self.mode == "L" else {"mode": self.mode}
        layout = {} if self.layout == "channels-first" else {"layout": self.layout}
        white = {} if self.white is None else {"white": int(self.white) if float(self.white).is_integer() else self.white}
        resize = {"resize": list(self.resize)} if self.resize else {}
        resample = {} if self.resample == "bilinear" else {"resample": self.resample}
        changes = {**mode, **layout, **white, **resize, **resample}
        return {"size": list(self.size), **changes, **scaling.to_data(self.mean, self.deviation)}


def white_of(largest: float) -> float:
    """The value to count as white in deep images: the largest of as many bits as they use, at least 8; 1 for values up to 1.

    Args:
        largest: the largest value of the training images. If it is not a whole number, it counts as white itself.

    Example:
        >>> white_of(4000.0), white_of(200.0), white_of(0.7), white_of(1812.5)
        (4095, 255, 1, 1812.5)
    """
    if largest <= 1:
        return 1
    return max(_BYTE, (1 << int(largest).bit_length()) - 1) if largest.is_integer() else largest


def mean_and_deviation(values: Pixels) -> Scaling:
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1]; a constant channel has deviation 1.

    Args:
        values: pixels with 255 as white, (..., channels).

    Example:
        >>> mean_and_deviation(np.array([[0], [255]], np.uint8))
        ((0.5,), (0.5,))
    """
    if values.dtype == np.uint8:
        return mean_and_deviation_of_bytes([values])
    pairs = [
        (float(one.mean(dtype=np.float64)) / _BYTE, float(one.std(dtype=np.float64)) / _BYTE)
        for one in np.moveaxis(values, -1, 0)
    ]
    return _without_constant(pairs)


def mean_and_deviation_of_parts(parts: Iterable[Pixels]) -> Scaling:
    """As `mean_and_deviation`, of pixels that come in parts, each (..., channels), all of one type; empty without any part."""
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        return (), ()
    if first.dtype == np.uint8:
        return mean_and_deviation_of_bytes(chain([first], parts))
    means, deviations = scaling.mean_and_deviation_of_parts(chain([first], parts))
    return _without_constant([(mean / _BYTE, deviation / _BYTE) for mean, deviation in zip(means, deviations, strict=True)])


def mean_and_deviation_of_bytes(parts: Iterable[Pixels]) -> Scaling:
    """As `mean_and_deviation`, of pixels of one byte that come in parts, each (..., channels)."""
    counts: Any = 0
    for part in parts:
        counts = counts + np.stack([np.bincount(one.ravel(), minlength=_BYTE + 1) for one in np.moveaxis(part, -1, 0)])
    levels = np.arange(_BYTE + 1) / _BYTE
    pairs = []
    for own in counts:
        shares = own / own.sum()
        mean = float(shares @ levels)
        pairs.append((mean, float(shares @ (levels - mean) ** 2) ** 0.5))
    return _without_constant(pairs)


def _without_constant(pairs: Sequence[tuple[float, float]]) -> Scaling:
    return tuple(mean for mean, _ in pairs), tuple(deviation if deviation > _CONSTANT else 1.0 for _, deviation in pairs)
