"""The settings of data sets, under `[task.arguments]` of a recipe; they are checked before any file is read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mirabelle import records
from mirabelle.errors import UserError, at_path, did_you_mean
from mirabelle.records.record import Count, Positive, record
from mirabelle.sources.datasets.corpus_settings import Corpus
from mirabelle.sources.datasets.divided import Divided, OfFiles
from mirabelle.sources.datasets.folders import first_suffix
from mirabelle.sources.datasets.idx import idx_files
from mirabelle.sources.datasets.image_settings import BuiltInImages, ImageFolder, TarShards
from mirabelle.sources.datasets.text_settings import QuestionFile, SequenceFile, TextFile, TokenFile, text_settings
from mirabelle.sources.names import CORPUS, FOLDER, LINES, SHARD, names_files, names_function
from mirabelle.task.preprocessing.image import Layout
from mirabelle.task.preprocessing.waveform import Normalize

VARIABLE = "MIRABELLE_DATA"  # environment variable with the folder of data sets


@record
class SoundFolder(OfFiles):
    """Recordings with one folder for each class, `folder/<class>/*.wav`, or `folder/{train,validation,test}/<class>/*.wav`.

    Labels are the sorted names of the class folders. In a folder without class folders, a `pattern` gets the class from the
    file names. Recordings become log-mel features, standardized by the mean and standard deviation of the training data, or
    what models of transformers take: waveforms, or features of Kaldi at 16 kHz. Features that would need more than 1 GiB of
    memory are computed once into a file, and read when they are needed.

    With kind = "transcription", the folder, or each of its folders for the splits, has a table metadata.csv with the columns
    `file_name` and `transcription` (or `text`, `sentence`), and `labels` are the symbols of a model of CTC, the first, "", the
    blank. The loss is "ctc".

    Args:
        kind: "transcription" for recordings with texts; by default recordings with classes.
        features: "log-mel" (`Sound`), "waveform" (`Waveform`) or "kaldi" (`Kaldi`).
        labels: names of the classes in the order of the model's outputs; by default their sorted names.
        pattern: a regular expression that every file name must match from its beginning; its first group is the class.
        rate: sampling rate in Hz that all recordings must have; by default that of the first.
        seconds: duration to which recordings are cut or padded with silence; by default that of the longest, at most 10.
        mels: number of mel bands.
        window: length of a frame in seconds.
        hop: seconds from one frame to the next.
        normalize: of a waveform: "padded", "recording" or "none".
        frames: number of frames of Kaldi's features.
        mean: subtracted from Kaldi's features; by default 0.
        deviation: number by which they are then divided; by default 1.

    Raises:
        UserError: E130 if the folder is missing or empty, E131 if there are fewer than two classes, a class has no recording,
            or a recording cannot be read or has another sampling rate; E131 for a text with symbols that are not in `labels`.
    """

    kind: Literal["transcription"] | None = None
    features: Literal["log-mel", "waveform", "kaldi"] = "log-mel"
    labels: tuple[str, ...] = ()
    pattern: str | None = None
    rate: Count | None = None
    seconds: Positive | None = None
    mels: Count = 40
    window: Positive = 0.025
    hop: Positive = 0.01
    normalize: Normalize = "padded"
    frames: Count = 1024
    mean: float | None = None
    deviation: Positive | None = None


@record
class Arrays(Divided):
    """Arrays in an .npz file, in the .npy files of a folder, or in its IDX files, as MNIST has them, compressed by gzip or not.

    IDX files may have any names and sizes: of each split one file with one axis (labels) and one with more (inputs). Names with
    "test" or "t10k" are those of test data, names with "val" those of validation data.

    Names of the arrays: train_images, train_labels, val_…, test_… (as in MedMNIST); or x_train, y_train, x_val, …, y_test; or
    inputs and targets. The .npy files of a folder are named after the arrays: x_train.npy. Missing validation and test data are
    drawn from the training data.

    Inputs that would need more than 1 GiB of memory as floats are read from an .npz or .npy file when they are needed. Those
    that are compressed, or in the order of Fortran, are then unpacked once into the folder MIRABELLE_CACHE. Targets are in
    memory.

    Inputs of type uint8 or uint16 are images, (N, H, W), (N, H, W, channels) or (N, channels, H, W), and are scaled to
    (pixel / white − mean) / deviation, where white is 255 or, for uint16, the largest value of as many bits as the training
    images use. Other inputs are not scaled; they become float32 or int64. Integer targets, (N,) or (N,
    1), are classes; with other targets the task is a regression.

    Args:
        labels: names of the classes; by default "0", "1", …
        kind: "classification", "multi-label" (targets of 0 and 1, (N, labels)) or "regression", if it should not be decided by
            the type of the targets; "unlabelled" for inputs without targets.
        mean: subtracted from pixels in [0, 1], one number for each channel; by default the mean of the training images.
        deviation: standard deviation by which they are then divided, likewise.
        layout: of inputs that are images: "channels-first", as in PyTorch, or "channels-last", as in Keras.

    Raises:
        UserError: E130 if the file is missing, E131 if arrays are missing, damaged or do not fit together, E143 if it contains
            pickled objects, which are not read, E202 if there is no space for arrays that must be unpacked.
    """

    labels: tuple[str, ...] = ()
    kind: Literal["classification", "multi-label", "regression", "unlabelled"] | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    layout: Layout = "channels-first"


@record
class TableFile(Divided):
    """A table in a .csv, .data or .tsv file without texts, in a .parquet file (needs pyarrow), or in a folder of them.

    The .parquet files of a folder have the same columns and follow each other in the order of their names. In folders train,
    validation and test, or with names that begin with these words ("train-0.parquet"), they are the splits.

    Cells are separated by commas, semicolons, tabs, bars or spaces and may be in quotes; numbers may have a decimal point or
    comma and groups of three digits. Columns of numbers become (value − mean) / deviation; dates likewise, as days, with their
    parts of the year and of the week. A column with other texts becomes one feature for each of at most 64 words and one for
    all others, or with more words one code. A word counts as other if it occurs in a single training row, or in fewer than 0.1
    % of them and than 20. A missing value (nothing, NA, N/A, NaN, null, None, ?) becomes the median, with a feature that says
    so; among words it is a word of its own. All of this is learned from the training rows. Columns with one word, or with a
    text of its own in every row, are left out.

    Inputs that would need more than 1 GiB of memory are encoded once, into a file in the folder MIRABELLE_CACHE, and read from
    it when they are needed; one column at a time is in memory, and the targets are.

    If the target is text, or has at most 20 different integers, the task is a classification; otherwise it is a regression with
    mean squared error in units of the targets' standard deviation. A network that is trained from its first weights then gets
    output · deviation + mean after its last layer: its outputs, the metrics and the exported file have the units of the table.

    Args:
        target: name of the column to predict; by default the last.
        kind: "classification" or "regression", if it should not be decided by the target's values.
        ignore: names of columns to leave out, such as an identifier.
        header: whether the first line has the names of the columns; by default it must, and is refused if it looks like data.
            Without a header, columns are named column_1, column_2, …
        separator: the character between two cells, if it should not be decided by the file.
        decimal: the decimal mark of all columns, "." or ",", if it should not be decided by the cells of each.
        encoding: character encoding; by default UTF-8, or UTF-16 with a byte-order mark, else Windows-1252.
        missing: further texts that stand for a missing value, such as "-999".
        categories: names of columns whose numbers are names, such as a postal code.
        embed: names of columns that become one code each, from 1 in order of frequency, 0 for other words, which is not scaled:
            a network can look up its embedding.
        day_first: whether the day is first in dates such as 1/2/2020, if the dates do not tell.
        scale_target: whether the targets of a regression with the loss "mse", "mae" or "huber" are scaled in this way.

    Raises:
        UserError: E130 if the file is missing or empty, E131 if it is not such a table, has a text among numbers, or numbers or
            dates can be read in two ways (the message gives line, column and value), E110 if a setting names a column that does
            not exist, E160 for a .parquet file without pyarrow, E202 if there is no space for the encoded rows.
    """

    target: str | None = None
    kind: Literal["classification", "regression"] | None = None
    ignore: tuple[str, ...] = ()
    header: bool | None = None
    separator: str | None = None
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None
    missing: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    day_first: bool | None = None
    scale_target: bool = True


Files: TypeAlias = (
    ImageFolder | TarShards | SoundFolder | Arrays | TableFile | TextFile | TokenFile | SequenceFile | QuestionFile | Corpus
)
_BY_SUFFIX: dict[str, type[Files]] = {
    ".csv": TableFile,
    ".data": TableFile,
    ".parquet": TableFile,
    ".npz": Arrays,
    ".json": QuestionFile,
    CORPUS: Corpus,
    SHARD: TarShards,
    **dict.fromkeys((".tsv", ".jsonl", *LINES), TextFile),
}

_FOLDERS: dict[str, type[Files]] = {".npy": Arrays, ".parquet": TableFile}  # of files with these suffixes


def _names_of_texts() -> set[str]:
    """The settings of texts that tables do not have."""
    texts, table = ({field.name for field in dataclasses.fields(kind)} for kind in (TextFile, TableFile))
    return texts - table


def data_folder_of_environment() -> Path | None:
    """The folder of data sets in the environment variable MIRABELLE_DATA, if it is set."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


@contextmanager
def data_folder_set(folder: Path | None) -> Iterator[None]:
    """A context in which this is the folder of data sets, as if the environment variable named it; None leaves it as it is."""
    before = os.environ.get(VARIABLE)
    if folder is not None:
        os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop(VARIABLE)
            os.environ.update({} if before is None else {VARIABLE: before})


def place_of_data(name: str) -> Path | None:
    """The file or folder that a name of data refers to, in the working directory; None for built-in data and functions."""
    inside = data_folder_of_environment() if name.startswith(FOLDER) else Path()
    return None if inside is None or not names_files(name) else inside / name.removeprefix(FOLDER)


def settings_from(name: str, arguments: Mapping[str, Any], folder: Path = Path()) -> Files | BuiltInImages | None:
    """The settings of the data set that a name refers to; None if the name is a function, which gets `arguments` itself.

    Raises:
        UserError: E102 if a setting is unknown, E103 or another code if its value is wrong; with the path of the setting.

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
        suffix = Path(name).suffix.lower()
        kind: type[Files] | None = text_settings(suffix, arguments) or _BY_SUFFIX.get(suffix)
        if suffix == ".tsv" and "tokenizer" not in arguments and not _names_of_texts() & set(arguments):
            kind = TableFile
        if kind is None:
            from mirabelle.task.preprocessing import pictures, sound

            inside = data_folder_of_environment() if name.startswith(FOLDER) else folder
            if inside is None:
                return None  # an error is raised when the task is loaded
            place = inside / name.removeprefix(FOLDER)
            first = first_suffix(place, (*pictures.SUFFIXES, *sound.SUFFIXES))
            kind = SoundFolder if first in sound.SUFFIXES else ImageFolder
            if first is None:
                others = {SHARD: TarShards, **_FOLDERS}
                kind = next((own for suffix, own in others.items() if first_suffix(place, (suffix,))), kind)
                kind = Arrays if idx_files(place) else kind
        return records.build(kind, arguments, "task.arguments")
