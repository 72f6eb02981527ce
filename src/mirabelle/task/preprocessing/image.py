"""An image file, or its pixels, to one model input."""

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
# Only these decoders may run: Pillow's others start programs (EPS) or follow what a file says.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
# What Pillow's decoders raise on damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
_CHANNELS = {"L": 1, "RGB": 3}
_MOST_SIDE, _MOST_PIXELS = 1 << 14, 1 << 25  # a few bytes in a file must not ask for more memory than there is


@record
class Image(Preprocessing):
    """x[c, i, j] = (pixel[i, j, c] / 255 − mean[c]) / deviation[c], float32, channels first; or x[i, j, c].

    Args:
        size: (height, width); images of another size are scaled to it, bilinearly, by Pillow.
        mode: "L" grey, one channel; "RGB" three.
        mean: one number a channel, of pixels in [0, 1]; by default 0.
        deviation: one number a channel; by default 1.
        layout: of a model input, "channels-first" as torch has it, or "channels-last" as Keras does.

    Raises:
        UserError: E110 when a side is not in 1..16,384 or the image has more than 2²⁵ pixels, or mean and deviation do not fit.

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
        """Of one model input: (channels, height, width), or (height, width, channels)."""
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
        """The one image of a file; errors as of a call."""
        yield str(path), self(path)

    def __call__(self, path: Path) -> Array:
        """The model input of an image file, of `shape`.

        Raises:
            UserError: E130 when it is not there, E131 when it cannot be read as an image.
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
    """The pixels of an image file, (height, width, channels), upright as its camera held it, without transparency.

    Raises:
        UserError: E130 when it is not there, E131 when it cannot be read as an image.
    """
    from PIL.Image import Resampling

    with _opened(path) as picture:
        upright = _eight_bits(picture)
        height, width = size
        if upright.size != (width, height):
            upright = upright.resize((width, height), Resampling.BILINEAR)
        return np.array(upright.convert(mode), np.uint8).reshape(height, width, _CHANNELS[mode])


def upright_size(path: Path) -> tuple[tuple[int, int], Literal["L", "RGB"]]:
    """((height, width), mode) of an image file as it lies; for most files only their head is read.

    Raises:
        UserError: E130 when it is not there, E131 when it cannot be read as an image.
    """
    with _opened(path) as picture:
        return (picture.height, picture.width), "L" if picture.mode in _GREY else "RGB"


def mean_and_deviation(values: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of pixels in [0, 1], each channel of (..., channels) alone; a channel that is constant has deviation 1.

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
        deviations.append(deviation if deviation > 1 / 255 / 1000 else 1.0)  # less than any real picture varies
    return tuple(means), tuple(deviations)


@contextmanager
def _opened(path: Path) -> Iterator[PIL.Image.Image]:
    """A Pillow image, turned upright; its pixels are read when they are first needed.

    What a decoder raises inside becomes E131.
    """
    import PIL.Image
    import PIL.ImageOps

    if not path.is_file():
        raise UserError("E130", f"no image at {path}", "check the path")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a camera wrote wrongly into its tags does not matter
        try:
            with path.open("rb") as file, PIL.Image.open(file, formats=_FORMATS) as picture:
                PIL.ImageOps.exif_transpose(picture, in_place=True)
                yield picture
        except (*_DAMAGED, PIL.Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, PIL.UnidentifiedImageError):  # whose words name the file object that it was given
                reason = "its bytes are of no known kind"
            message = f"{path} cannot be read as an image: {reason}"
            raise UserError("E131", message, f"give an intact {', '.join(SUFFIXES)} file") from error


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture as grey or colour of 8 bits a channel, at its own size."""
    import PIL.Image

    if picture.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f'its pixels are of mode "{picture.mode}", which says nothing of black and white')
    if picture.mode in _GREY:
        return picture.convert("L")
    return picture.convert("RGBA").convert("RGB") if picture.mode in ("P", "PA") else picture.convert("RGB")
