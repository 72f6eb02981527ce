"""Settings of data that lie in files, under `[task.arguments]`, held against their types before any file is read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from mirabelle import records
from mirabelle.errors import UserError, at_path, did_you_mean
from mirabelle.records.record import Count, Positive, record
from mirabelle.sources.datasets.corpus_settings import Corpus
from mirabelle.sources.datasets.folders import first_suffix
from mirabelle.sources.names import CORPUS, FOLDER, LINES, names_files, names_function
from mirabelle.task.preprocessing.image import Image, Layout

VARIABLE = "MIRABELLE_DATA"  # of the environment: where data sets lie
Part = Annotated[float, Field(gt=0, lt=1)]


@record
class Divided:
    """How the data of any file are divided and judged.

    Args:
        test_fraction: of the training data (of each class, in a classification), where there are no test data; by default 0.2.
        validation_fraction: of the training data, in the same way, where there are no validation data; by default 0.1.
        seed: of the split; not of the run, so that runs of different seeds are judged on the same data.
        metric: by name, as `Metric.of` knows it, such as "roc_auc" or "f1", or "./file.py:function"; by default accuracy, or
            −(squared error) where the targets are numbers.
        loss: by name, as `mirabelle.task.loss` knows it, or "./file.py:function"; by default cross entropy, or squared error
            where the targets are numbers.
        extra_metrics: further metrics that are reported and decide nothing.
        class_weights: "balanced" to let all classes count alike in the loss, however many samples they have.
    """

    test_fraction: Part | None = None
    validation_fraction: Part | None = None
    seed: int = 0
    metric: str | None = None
    loss: str | None = None
    extra_metrics: tuple[str, ...] = ()
    class_weights: Literal["balanced"] | None = None


@record
class ImageFolder(Divided):
    """Classes from `folder/<class>/*.png`, or splits and classes from `folder/{train,validation,test}/<class>/*.png`.

    Labels are the names of the class folders, sorted. What is not an image by its suffix, and what
    begins with a dot, is left alone. Images lie in memory as float32.

    Args:
        kind: "unlabelled" for images of which nobody knows classes, anywhere below the folder or its folders of splits.
        size: (height, width); by default that of the images where all have one of at most 256 × 256, otherwise 64 × 64.
        mode: "L" or "RGB"; by default "L" where all images are grey.
        mean: one number a channel, of pixels in [0, 1]; by default that of the training images.
        deviation: the same.
        layout: of the inputs, "channels-first" as torch has it, or "channels-last" as Keras does.

    Raises:
        UserError: E130 when the folder is missing or empty; E131 for fewer than two classes, a class without an image, an image
            that cannot be read, splits whose classes differ, a class too small to be divided.
    """

    kind: Literal["unlabelled"] | None = None
    size: tuple[int, int] | None = None
    mode: Literal["L", "RGB"] | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"


@record
class BuiltInImages:
    """How the images of a built-in set ("cifar10", "digits", "mnist") become inputs: (pixel / 255 − mean) / deviation.

    Args:
        mean: one number a channel, of pixels in [0, 1]; by default what the set says.
        deviation: the same; with mean 0, 1 leaves pixels in [0, 1] and 0.00392157 in [0, 255].
        layout: of the inputs, "channels-first" as torch has it, or "channels-last" as Keras does.

    Raises:
        UserError: E110 when there is not one number a channel, or one is out of range.
    """

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"

    def of(self, usual: Image) -> Image:
        """The preprocessing, what is not said as it is usual."""
        mean, deviation = self.mean or usual.mean, self.deviation or usual.deviation
        return Image(size=usual.size, mode=usual.mode, mean=mean, deviation=deviation, layout=self.layout)


AS_PUBLISHED = BuiltInImages()


@record
class SoundFolder(Divided):
    """Classes from `folder/<class>/*.wav`, or splits and classes from `folder/{train,validation,test}/<class>/*.wav`.

    Labels are the names of the class folders, sorted. In a folder without class folders a `pattern` of
    the files' names tells the classes. Recordings become log-mel features
    (`preprocessing.Sound`), standardized by the mean and deviation of the training data.

    Args:
        pattern: a regular expression that every file's name matches from its beginning; its first group is the class.
        rate: samples a second that all must have; by default those of the first.
        seconds: to which recordings are cut, or filled up with silence; by default those of the longest, at most 10.
        mels: bands.
        window: seconds of a frame.
        hop: seconds from a frame to the next.

    Raises:
        UserError: E130 when the folder is missing or empty; E131 for fewer than two classes, a class without a recording, one
            that cannot be read or is of another rate.
    """

    pattern: str | None = None
    rate: Count | None = None
    seconds: Positive | None = None
    mels: Count = 40
    window: Positive = 0.025
    hop: Positive = 0.01


@record
class Arrays(Divided):
    """A task from the arrays of an .npz file.

    Names: train_images, train_labels, val_…, test_… (MedMNIST); x_train, y_train, x_val, …, y_test; or inputs and targets.
    Validation and test data that are missing are drawn from the training data.

    Arrays of uint8 are pixels, (N, H, W), (N, H, W, channels) or (N, channels, H, W), and become
    (pixel / 255 − mean) / deviation; floating numbers are taken as they are, as float32, whole numbers as int64.
    Whole-numbered targets, (N,) or (N, 1), are classes, others numbers to be met.

    Args:
        labels: names of the classes; by default "0", "1", …
        kind: "classification", "multi-label" (targets of 0 and 1, (N, labels)) or "regression", where the type of the targets
            does not tell; "unlabelled" for inputs alone.
        mean: one number a channel, of pixels in [0, 1]; by default that of the training images.
        deviation: the same.
        layout: of the inputs made of pixels, "channels-first" as torch has it, or "channels-last" as Keras does.

    Raises:
        UserError: E130 when the file is missing; E131 when arrays are missing or do not fit together; E143 when it holds
            pickled objects, which are not read.
    """

    labels: tuple[str, ...] = ()
    kind: Literal["classification", "multi-label", "regression", "unlabelled"] | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"


@record
class TableFile(Divided):
    """A task from a .csv file, or a .parquet file through pyarrow.

    Every column but the target must hold numbers; they become (value − mean) / deviation, float32, with mean and deviation of
    the training rows. A target of texts, or of whole numbers with at most 20 different values, makes a classification; other
    numbers a regression with mean squared error, on the numbers as they are.

    Args:
        target: name of the column to predict; by default the last.
        kind: "classification" or "regression", where the target's values should not decide.
        ignore: columns to leave out, such as an identifier.

    Raises:
        UserError: E130 when the file is missing or empty; E131 when it is no such table, with line and column; E110 when a
            setting names a column that is not there; E160 a .parquet without pyarrow.
    """

    target: str | None = None
    kind: Literal["classification", "regression"] | None = None
    ignore: tuple[str, ...] = ()


@record
class TextFile(Divided):
    """A task from a file of texts and the class of each.

    Rows of a .tsv or .jsonl file, or of a .csv or .parquet with a `tokenizer`; or lines of a .label, .train or .test file (so
    TREC calls them), which `pattern` takes apart. Texts become token ids by the tokenizer of a model of transformers, padded to
    one length; the tokenizer goes beside the artifact, and `predict` takes texts.

    Args:
        tokenizer: the folder of a model with its tokenizer, seen from the file; "hf:organisation/model",
            "ms:organisation/model" or "package:name/folder".
        text: name of the column of texts; by default the only one besides the target, or "text", "sentence", "content",
            "question".
        pair: of a column of second texts, where a sample is two.
        target: of the column of classes.
        pattern: a regular expression that every line matches as a whole; its two groups are the class and the text, as in
            "([A-Z]+):[a-z]+ (.+)" for the six classes of TREC.
        encoding: of the letters, "utf-8" or "latin-1".
        samples: training texts at most, drawn by `seed`; by default all.
        labels: names of the classes, in the order of the model's outputs; by default those in the column, sorted by length.
        validation: another such file, beside the first; by default drawn from it.
        test: the same.
        max_length: in tokens; longer texts are cut at the end.
        inputs: what the model takes of "input_ids", "attention_mask", "token_type_ids"; by default what the tokenizer says,
            types of tokens for pairs alone.

    Raises:
        UserError: E160 without transformers; E130 when a file or the tokenizer is missing; E131 for texts without classes, rows
            that are none; E110 when a setting names a column that is not there, or the pattern is none.
    """

    tokenizer: str
    text: str | None = None
    pair: str | None = None
    target: str = "label"
    pattern: str | None = None
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    samples: Count | None = None
    labels: tuple[str, ...] = ()
    validation: str | None = None
    test: str | None = None
    max_length: Count = 128
    inputs: tuple[str, ...] = ()


@record
class QuestionFile(Divided):
    """A task from a .json file in SQuAD's form: questions about paragraphs, with answers that stand in them.

    A sample is a question and its paragraph; the model marks the first and the last token of the answer. Answers are judged as
    texts, as SQuAD does it: words in lower case, without articles and punctuation, against the best of several answers.
    Paragraphs are cut at `max_length` tokens of both; questions whose answer is cut off are left out of the training data, and
    judged all the same.

    Args:
        tokenizer: the folder of a model with its tokenizer, seen from the file; "hf:organisation/model",
            "ms:organisation/model" or "package:name/folder".
        validation: another such file, beside the first; by default articles drawn from it.
        test: the same.
        max_length: in tokens.
        inputs: what the model takes of "input_ids", "attention_mask", "token_type_ids"; by default what the tokenizer says.
        test_fraction: of the articles, where there is no file of test questions; by default 0.2.
        validation_fraction: the same; by default 0.1.
        metric: "answer_f1", the default, or "answer_exact_match"; of tokens instead of texts "span_f1" or "exact_match".
        extra_metrics: further metrics that are reported and decide nothing; by default "answer_exact_match".
        class_weights: none; a span is no class.

    Raises:
        UserError: E160 without transformers; E130 when a file or the tokenizer is missing; E131 for a file that is none, a
            question without an answer; E111 for class weights.
    """

    tokenizer: str
    validation: str | None = None
    test: str | None = None
    max_length: Count = 384
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            raise UserError(
                "E111", "class_weights are for classes, and a span is none", "leave them out", path=("class_weights",)
            )


Files: TypeAlias = ImageFolder | SoundFolder | Arrays | TableFile | TextFile | QuestionFile | Corpus
_BY_SUFFIX: dict[str, type[Files]] = {
    ".csv": TableFile,
    ".parquet": TableFile,
    ".npz": Arrays,
    ".json": QuestionFile,
    CORPUS: Corpus,
    **dict.fromkeys((".tsv", ".jsonl", *LINES), TextFile),
}


def data_folder_of_environment() -> Path | None:
    """Where data sets lie, if MIRABELLE_DATA says it."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def settings_from(name: str, arguments: Mapping[str, Any], folder: Path = Path()) -> Files | BuiltInImages | None:
    """The settings of the files that a name points at, or of a built-in set; None for a function, whose keywords they are.

    Raises:
        UserError: as `records.build`, at the path of the setting; E102 for one that a built-in set does not have.

    Example:
        >>> settings_from("a/b.csv", {"target": "price"}).target
        'price'
    """
    if names_function(name):
        return None
    if not names_files(name):
        known = [field.name for field in dataclasses.fields(BuiltInImages)]
        for key in arguments:
            if key not in known:
                message, path = f'unknown key "{key}" for data "{name}"', ("task", "arguments", key)
                raise UserError("E102", message, did_you_mean(key, known), path=path)
        with at_path("task", "arguments"):
            return records.build(BuiltInImages, arguments, "task.arguments")
    with at_path("task", "arguments"):
        kind: type[Files] | None = _BY_SUFFIX.get(Path(name).suffix.lower())
        if "tokenizer" in arguments and kind not in (QuestionFile, Corpus):
            kind = TextFile
        if kind is None:
            from mirabelle.task.preprocessing import image, sound

            inside = data_folder_of_environment() if name.startswith(FOLDER) else folder
            if inside is None:
                return None  # which the task tells when it is read
            first = first_suffix(inside / name.removeprefix(FOLDER), (*image.SUFFIXES, *sound.SUFFIXES))
            kind = SoundFolder if first in sound.SUFFIXES else ImageFolder
        return records.build(kind, arguments, "task.arguments")
