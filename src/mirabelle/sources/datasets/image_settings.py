"""The settings of images as data, from a folder or built in."""

from __future__ import annotations

from typing import Literal

from mirabelle.records.record import Positive, record
from mirabelle.sources.datasets.divided import OfFiles
from mirabelle.task.preprocessing.image import Image, Layout
from mirabelle.task.preprocessing.pictures import Resample


@record
class EncodedImages(OfFiles):
    """Settings of images in files: how they become inputs.

    Args:
        size: (height, width); by default that of the images if all have the same size of at most 256 × 256, otherwise 64 × 64.
        resize: the size before the middle is cut out, (height, width), or (side,) for the shorter side; by default `size`.
        resample: how images are resized, "bilinear", "bicubic", "lanczos", "box", "hamming" or "nearest" of Pillow.
        mode: "L" (grayscale) or "RGB"; by default "L" if all images are grayscale.
        mean: subtracted from pixels in [0, 1], one number for each channel; by default the mean of the training images.
        deviation: standard deviation by which they are then divided, likewise.
        layout: of the inputs: "channels-first", as in PyTorch, or "channels-last", as in Keras.
        white: the pixel value that becomes 1 in files of more than 8 bits for each channel; by default the largest value of
            as many bits as the training images use, such as 4,095 for 12 bits; of floating-point images the largest value, or 1
            if none is larger. In other files it is always 255.
    """

    size: tuple[int, int] | None = None
    resize: tuple[int, ...] = ()
    resample: Resample = "bilinear"
    mode: Literal["L", "RGB"] | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"
    white: Positive | None = None


@record
class ImageFolder(EncodedImages):
    """Images with one folder for each class, `folder/<class>/*.png`, or `folder/{train,validation,test}/<class>/*.png`.

    Labels are the sorted names of the class folders. Files without the suffix of an image, and hidden files, are ignored.
    Images are held in memory as float32; those that would need more than 1 GiB are read when they are needed.

    With kind = "segmentation" the folder, or each of its folders for the splits, has the folders `images` and `masks`. The mask
    of an image has its name and the suffix .png; the value of a pixel is the number of its class.

    Args:
        kind: "unlabelled" for images without classes, found recursively in the folder or in its folders for the splits;
            "segmentation" for images with a class for each pixel.
        labels: names of the classes in the order of the model's outputs; a class may have no folder. By default the sorted
            names of the folders, in a segmentation the numbers up to the largest in the training masks.
        ignore: the value of pixels of a mask that have no class.
        reduce_labels: whether 0 in a mask stands for no class, and k for class k − 1.

    Raises:
        UserError: E130 if the folder is missing or empty, E131 if there are fewer than two classes, a class has no image or too
            few for the split, an image cannot be read, the splits have different classes, a class folder is not in `labels`, or
            a mask is missing, has another size than its image or a class that is not in `labels`.
    """

    kind: Literal["unlabelled", "segmentation"] | None = None
    labels: tuple[str, ...] = ()
    ignore: int = 255
    reduce_labels: bool = False


@record
class TarShards(EncodedImages):
    """Images in .tar files, as WebDataset has them: a folder of shards, or their names, "./shards/train-{0000..0099}.tar".

    The members of a shard whose paths are equal up to the first dot of the file name are one sample: an image, and its class in
    a member .cls, or in a field of a member .json. A class is a number from 0, or a name. Members are read where they are in
    the shard; nothing is extracted, links are not followed, and names are never used as paths. The list of the samples of each
    shard is made once, and kept in the cache folder until the shard changes.

    In a folder, shards with the word "train" in their names (or in that of their folder) are training data, those with
    "validation", "val" or "valid" and "test" the other splits; without such words all are training data. Names may contain
    ranges, {000..099}, alternatives, {a,b}, and the patterns * and ?. Images are held in memory as float32; those that would
    need more than 1 GiB are read when they are needed.

    Args:
        kind: "unlabelled" for images without classes.
        labels: names of the classes in the order of the model's outputs; by default the numbers up to the largest, or the
            sorted names.
        label: the field of the .json members that has the class; by default the member .cls, or else the first of the fields
            "label", "cls" and "class".
        image: suffix of the images, such as "jpg", if samples have several; by default any suffix of an image.
        validation: names of the shards for validation, relative to the folder of the others; by default found by their names.
        test: the same for test.

    Raises:
        UserError: E130 if a shard is missing, E131 if a shard is damaged or compressed, a sample has no class, two images or
            two members of one name, an image cannot be read, there are fewer than two classes, or a class is not in `labels`.
    """

    kind: Literal["unlabelled"] | None = None
    labels: tuple[str, ...] = ()
    label: str | None = None
    image: str | None = None
    validation: str | None = None
    test: str | None = None


@record
class BuiltInImages:
    """How images of a built-in data set ("cifar10", "digits", "mnist") become inputs: (pixel / 255 − mean) / deviation.

    Args:
        mean: subtracted from pixels in [0, 1], one number for each channel; by default the usual value for the data set.
        deviation: standard deviation by which they are then divided, likewise; with mean 0, a value of 1 gives pixels in [0,
            1], 0.00392157 pixels in [0, 255].
        layout: of the inputs: "channels-first", as in PyTorch, or "channels-last", as in Keras.

    Raises:
        UserError: E110 if there is not one number for each channel, or a number is out of range.
    """

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"

    def of(self, usual: Image) -> Image:
        """The preprocessing, with the usual values where nothing is set."""
        mean, deviation = self.mean or usual.mean, self.deviation or usual.deviation
        return Image(size=usual.size, mode=usual.mode, mean=mean, deviation=deviation, layout=self.layout)


AS_PUBLISHED = BuiltInImages()
