"""Data augmentation: random shifts and horizontal flips of images, drawn so that every draw can be repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.task.preprocessing.image import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from mirabelle.task.batch import Batch

_DIMENSIONS = 4
_EPOCH_BITS = 32
_SHARE = np.uint64(24)  # bits of a draw that one shift uses


@record
class Augmentation:
    """Random shifts, x'[c, i, j] = x[c, i + dy, j + dx] with zeros outside the image, and random horizontal flips.

    dy and dx are uniform from −crop to crop; half of the images are flipped. The draws depend on (seed, epoch, index of the
    sample) only, not on the seed of the run, the batch or the machine, so that a resumed training sees the same images. In
    centred inputs, zero is the mean colour.

    Args:
        crop: largest shift in pixels: a random crop of the image's size after padding with `crop` zeros on every side.
        flip: whether images are flipped left to right.
        views: number of different draws, used in turn, one in each epoch, so that a teacher's outputs are computed once for
            each of them. None draws again in every epoch.
        seed: seed of the draws.
        layout: layout of the inputs; by default that of their preprocessing, or channels first without preprocessing.

    Raises:
        UserError: E110 if a number is out of range, or neither `crop` nor `flip` is set.

    Example:
        >>> import torch
        >>> from mirabelle.task.samples import Samples
        >>> images = Samples(torch.arange(1.0, 5.0).reshape(1, 1, 1, 4), torch.tensor([0]))
        >>> moved = Augmentation(flip=True)
        >>> [moved(images.first(1), epoch).inputs.flatten().tolist() for epoch in (0, 4)]
        [[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]]

    Source: Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks", section 4.1.
    """

    crop: Annotated[int, Field(ge=0, le=64)] = 0
    flip: bool = False
    views: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if not self.crop and not self.flip:
            raise UserError(
                "E110", "augment needs crop or flip; got crop = 0, flip = false", "for example: crop = 4, flip = true"
            )

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The augmented batch of an epoch; its view identifies (seed, draw) and is never 0."""
        return self.seen(batch, self.view(epoch))

    def seen(self, batch: Batch, view: int) -> Batch:
        """The augmented batch of a view."""
        import torch

        from mirabelle.numerics.arrays import to_numpy
        from mirabelle.task.batch import Batch

        assert batch.index is not None, "a batch of samples has its index"
        drawn = _drawn(view, to_numpy(batch.index))
        if batch.inputs.device.type != "cpu":
            return Batch(self._moved_there(batch.inputs, drawn), batch.targets, batch.index, view)
        images = to_numpy(batch.inputs)
        moved = np.zeros(images.shape, images.dtype)
        for image, target, dy, dx, mirrored in zip(self._first(images), self._first(moved), *self._changes(drawn), strict=True):
            place = target[:, :, ::-1] if mirrored else target
            height, width = image.shape[1:]
            rows, columns = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
            place[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)] = image[:, rows, columns]
        return Batch(torch.from_numpy(moved), batch.targets, batch.index, view)

    def _moved_there(self, images: Tensor, drawn: npt.NDArray[np.uint64]) -> Tensor:
        """The images of a batch on another device, moved all at once: the same numbers as one by one on the CPU."""
        import torch

        last = self.layout == "channels-last"
        first = images.movedim(-1, 1) if last else images
        count, _, height, width = first.shape
        dy, dx, mirrored = (torch.tensor(one).to(images.device)[:, None] for one in self._changes(drawn))
        places = torch.arange(max(height, width), device=images.device)[None]
        rows, across = places[:, :height] + dy, torch.where(mirrored, width - 1 - places[:, :width], places[:, :width])
        columns = across + dx
        samples = torch.arange(count, device=images.device)[:, None, None]
        moved = first.movedim(1, -1)[samples, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        found = torch.where(inside[..., None], moved, torch.zeros((), dtype=images.dtype, device=images.device))
        return found if last else found.movedim(-1, 1).contiguous()

    def view(self, epoch: int) -> int:
        """The view of an epoch: a number above 0 that identifies its draws; 0 is kept for images without augmentation."""
        return (self.seed << _EPOCH_BITS) + (epoch if self.views is None else epoch % self.views) + 1

    def check(self, inputs: Any) -> None:
        """Raise an error unless the inputs are images that can be augmented.

        Raises:
            UserError: E131 if they are no batch of images, or their sides are not above `crop`.
        """
        import torch

        images = isinstance(inputs, torch.Tensor) and inputs.dim() == _DIMENSIONS and inputs.dtype != torch.bfloat16
        last = self.layout == "channels-last"
        if not images or self.crop >= min(inputs.shape[1:3] if last else inputs.shape[2:]):
            axes = "height, width, channels" if last else "channels, height, width"
            rule = f"augment needs inputs (samples, {axes}) with height and width above crop = {self.crop}"
            got = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else type(inputs).__name__
            raise UserError("E131", f"{rule}; got {got}", "give images in memory, or leave augment out")

    def _first(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of the images with the channels after the samples."""
        return np.moveaxis(images, -1, 1) if self.layout == "channels-last" else images

    def _changes(self, drawn: npt.NDArray[np.uint64]) -> tuple[list[int], list[int], list[bool]]:
        """(dy, dx, whether the image is flipped) of every sample."""
        many, mask = np.uint64(2 * self.crop + 1), np.uint64((1 << int(_SHARE)) - 1)
        dy, dx = ((((drawn >> shift) & mask) * many >> _SHARE).astype(np.int64) - self.crop for shift in (np.uint64(0), _SHARE))
        mirrored = (drawn >> np.uint64(63)).astype(bool) & self.flip
        return dy.tolist(), dx.tolist(), mirrored.tolist()


def _drawn(view: int, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """64 random bits for each sample by SplitMix64: the view gives the initial state, the index the number of steps.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    origin = _mixed(np.array([view], np.uint64) * step)
    return _mixed(origin + (index.astype(np.uint64) + np.uint64(1)) * step)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
