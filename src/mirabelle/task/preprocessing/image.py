"""Preprocessing of images to model inputs."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import record
from mirabelle.task.preprocessing import scaling
from mirabelle.task.preprocessing.raw_inputs import Preprocessing

if TYPE_CHECKING:
    import PIL.Image

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]
Layout: TypeAlias = Literal["channels-first", "channels-last"]
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Only these decoders of Pillow may run; others start programs (EPS) or follow references in the file.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
# Exceptions of Pillow's decoders on damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
_CHANNELS = {"L": 1, "RGB": 3}
_MOST_SIDE, _MOST_PIXELS = 1 << 14, 1 << 25  # limits for the size in a stored file, which could otherwise exhaust the memory


@record
class Image(Preprocessing):
    """Standardized pixels: x[c, i, j] = (pixel[i, j, c] / 255 − mean[c]) / deviation[c], float32; or x[i, j, c].

    Args:
        size: (height, width); images of another size are resized by Pillow with bilinear interpolation.
        mode: "L" for greyscale, one channel; "RGB" for three channels.
        mean: mean of each channel, for pixels in [0, 1]; by default 0.
        deviation: standard deviation of each channel; by default 1.
        layout: layout of a model input, "channels-first" as in torch, or "channels-last" as in Keras.

    Raises:
        UserError: E110 if height or width are not in 1..16,384, the image has more than 2²⁵ pixels, or the number of means or
            deviations is not that of the channels.

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
    mode: Literal["L", "RGB"] = "L"
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"

    def __post_init__(self) -> None:
        height, width = self.size
        if not (1 <= height <= _MOST_SIDE and 1 <= width <= _MOST_SIDE and height * width <= _MOST_PIXELS):
            rule = f"size must be (height, width), each from 1 to {_MOST_SIDE:,}, at most {_MOST_PIXELS:,} pixels"
            raise UserError("E110", f"{rule}; got {list(self.size)}", "give a smaller size")
        mean, deviation = scaling.settled(self.mean, self.deviation, self.channels, f'channels of mode "{self.mode}"')
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "deviation", deviation)

    @property
    def channels(self) -> int:
        return _CHANNELS[self.mode]

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
        return self.scaled(pixels(path, self.size, self.mode))

    def scaled(self, values: Pixels | npt.NDArray[np.float64]) -> Array:
        """Pixels from 0 to 255, (..., height, width, channels), as model inputs (..., *shape)."""
        scaled = values.astype(np.float32)
        scaled /= np.float32(255)
        scaled -= np.array(self.mean, np.float32)
        scaled /= np.array(self.deviation, np.float32)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, -3)) if self.layout == "channels-first" else scaled

    def to_data(self) -> dict[str, Any]:
        mode = {} if self.mode == "L" else {"mode": self.mode}
        layout = {} if self.layout == "channels-first" else {"layout": self.layout}
        return {"size": list(self.size), **mode, **layout, **scaling.to_data(self.mean, self.deviation)}


def pixels(path: Path, size: tuple[int, int], mode: Literal["L", "RGB"]) -> Pixels:
    """The pixels of an image file, (height, width, channels), rotated as its EXIF data say, without transparency.

    Args:
        path: the image file.
        size: (height, width) to which the image is resized.
        mode: "L" for greyscale, "RGB" for colour.

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read as an image.
    """
    from PIL.Image import Resampling

    with _opened(path) as picture:
        upright = _eight_bits(picture)
        height, width = size
        if upright.size != (width, height):
            upright = upright.resize((width, height), Resampling.BILINEAR)
        return np.array(upright.convert(mode), np.uint8).reshape(height, width, _CHANNELS[mode])


def upright_size(path: Path) -> tuple[tuple[int, int], Literal["L", "RGB"]]:
    """((height, width), mode) of an image file after rotation by its EXIF data; for most files only the header is read.

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read as an image.
    """
    with _opened(path) as picture:
        return (picture.height, picture.width), "L" if picture.mode in _GREY else "RGB"


def mean_and_deviation(values: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1]; a constant channel has deviation 1.

    Args:
        values: pixels from 0 to 255, (..., channels).

    Example:
        >>> mean_and_deviation(np.array([[0], [255]], np.uint8))
        ((0.5,), (0.5,))
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(values.shape[-1]):
        shares = np.bincount(values[..., channel].ravel(), minlength=256) / values[..., channel].size
        mean = float(shares @ levels)
        deviation = float(shares @ (levels - mean) ** 2) ** 0.5
        means.append(mean)
        deviations.append(deviation if deviation > 1 / 255 / 1000 else 1.0)  # below this, the channel counts as constant
    return tuple(means), tuple(deviations)


@contextmanager
def _opened(path: Path) -> Iterator[PIL.Image.Image]:
    """Open an image with Pillow and rotate it by its EXIF data; pixels are read when they are first needed.

    Exceptions of the decoder inside the context become E131.
    """
    import PIL.Image
    import PIL.ImageOps

    if not path.is_file():
        raise UserError("E130", f"no image at {path}", "check the path")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faulty tags of a camera do not matter
        try:
            with path.open("rb") as file, PIL.Image.open(file, formats=_FORMATS) as picture:
                PIL.ImageOps.exif_transpose(picture, in_place=True)
                yield picture
        except (*_DAMAGED, PIL.Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, PIL.UnidentifiedImageError):  # its message would show a Python object
                reason = "it has no known image format"
            message = f"{path} cannot be read as an image: {reason}"
            raise UserError("E131", message, f"give an intact {', '.join(SUFFIXES)} file") from error


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The image as greyscale or colour with 8 bits for each channel, at its own size."""
    import PIL.Image

    if picture.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f'its pixels have mode "{picture.mode}", which does not define the values of black and white')
    if picture.mode in _GREY:
        return picture.convert("L")
    return picture.convert("RGBA").convert("RGB") if picture.mode in ("P", "PA") else picture.convert("RGB")
