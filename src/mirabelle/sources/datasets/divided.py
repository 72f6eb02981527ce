"""The settings that every data set from files has: splits, loss and metrics."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from mirabelle.records.record import record

OutputsAre: TypeAlias = Literal["classes", "classes_last", "labels", "numbers"]
Part = Annotated[float, Field(gt=0, lt=1)]
Workers = Annotated[int, Field(ge=0, le=1024)]


@record
class Divided:
    """Settings of every data set that is read from files: splits, loss and metrics.

    Args:
        test_fraction: fraction of the training data (in a classification, of each class) for test, if there are no test data;
            by default 0.2.
        validation_fraction: the same for validation, if there are no validation data; by default 0.1.
        seed: of the random split. It does not depend on the seed of the run, so that runs with different seeds use the same
            data.
        metric: a name such as "roc_auc" or "f1", or "./file.py:function"; by default accuracy, F1 for several labels, r² for a
            regression.
        loss: a name such as "cross_entropy" or "mse", or "./file.py:function"; by default cross entropy, or squared error
            where the targets are numbers.
        extra_metrics: further metrics, which are only reported.
        outputs_are: what the outputs are, if the loss is your own: "classes" (in axis 1), "classes_last", "labels" (each yes or
            no) or "numbers".
        class_weights: "balanced" gives all classes the same total weight in the loss, whatever their number of samples.
    """

    test_fraction: Part | None = None
    validation_fraction: Part | None = None
    seed: int = 0
    metric: str | None = None
    loss: str | None = None
    extra_metrics: tuple[str, ...] = ()
    outputs_are: OutputsAre | None = None
    class_weights: Literal["balanced"] | None = None


@record
class OfFiles(Divided):
    """Settings of data that are many files, each of which is decoded.

    Args:
        cache: whether data that do not fit into memory are decoded once into a file in the cache folder; otherwise nothing is
            written there, and files are decoded whenever they are read.
        workers: number of threads that decode, 0 for none; by default one for each core that the process may use, or none for
            files that take less than 0.15 ms. For other files threads are as fast as processes, since decoding leaves Python
            free.
        skip_unreadable: whether files that are damaged are left out and told; otherwise the first one is an error.
    """

    cache: bool = True
    workers: Workers | None = None
    skip_unreadable: bool = False
