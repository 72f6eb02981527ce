"""What a model is for: its data, its loss, its metric, and the teacher that guides it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED, as_one_tensor
from mirabelle.task.augmentation import Augmentation
from mirabelle.task.batch import Batch, Inputs, Outputs, Samples, Stream, data_of, in_memory, map_tensors, parts_of, tensors_of
from mirabelle.task.generation import Generation
from mirabelle.task.loss import Loss, Matching, loss_of
from mirabelle.task.metric import Metric, PerSample
from mirabelle.task.outputs import DEFAULTS, Form, OutputKind
from mirabelle.task.preprocessing import Preprocessing

_LEAST_VARIANCE = 1e-12  # of an output that is the same for all samples
_HELD_OUT_SEED = 0  # the split belongs to the data, so that all seeds of a comparison share it


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Task:
    """Batches, loss, metric, example inputs, teacher. A task never changes: `replace` and `with_…` give another one.

    Args:
        train: `(inputs, targets)` tensors or arrays, a `Dataset`, or a `DataLoader`; inputs alone, or a dict of them by name,
            where nobody knows labels: the outputs of the teacher, by default of the model at the start, then stand for them.
        test: the same, read into memory once, so that all models are judged on the same samples.
        validation: the same, read into memory once; by default `validation_fraction` of train, always the same samples.
        loss: "cross_entropy", "token_cross_entropy" (classes last), "binary_cross_entropy", "mse", "mae", "huber", "span",
            "ctc" or "matching" (`mirabelle.task.loss`), a function (outputs, targets) -> scalar, or the name of one,
            "pkg.mod:function"; a model of several outputs gives it a tuple. By default "cross_entropy", without labels
            "matching".
        metric: a name that `Metric.of` knows, "accuracy" say, or a function (outputs, targets) -> one score a sample, higher =
            better; `Metric.over_set(function)` for one of all samples together. By default "accuracy", without labels
            "fidelity".
        also: further metrics, named in the same way, that are told before and after, and judge nothing.
        labels: names of the classes, or where targets are floats (samples, labels) of what each says yes or no to; kept with
            the artifact. Of sequences without alignment those of symbols, the first "" for nothing: `predict` then writes the
            sequence.
        name: of the data, for the report.
        preprocessing: how a raw input became one of these inputs; kept with the artifact, so that it takes raw inputs.
        augment: how images are changed while a model trains; they are judged as they lie.
        generation: how a model of sequences to sequences writes; needed by metrics of what is written, and for a teacher's
            sequences as targets.
        beside: files that the preprocessing needs, a tokenizer say, by name; they go beside the artifact.

    Raises:
        UserError: E110 unknown loss or metric; E111 a metric of sequences without `generation`; E131 data that cannot be used
            or augmented, that the preprocessing cannot have made, or of which only some have labels.

    Example:
        >>> import torch
        >>> x, y = torch.randn(40, 3), torch.randint(0, 2, (40,))
        >>> task = Task(train=(x, y), test=(x, y), name="noise")
        >>> len(task.train), len(task.validation)
        (36, 4)
    """

    train: Samples | Stream
    test: Samples
    validation: Samples
    loss: Loss
    metric: Metric
    extra_metrics: tuple[Metric, ...]
    labels: tuple[str, ...]
    name: str
    preprocessing: Preprocessing | None
    augment: Augmentation | None
    generation: Generation | None
    extra_files: Mapping[str, bytes]
    teacher: nn.Module | None

    def __init__(
        self,
        *,
        train: Any,
        test: Any,
        validation: Any = None,
        validation_fraction: float = 0.1,
        loss: str | Loss | None = None,
        metric: str | PerSample | Metric | None = None,
        extra_metrics: Sequence[str | PerSample | Metric] = (),
        labels: tuple[str, ...] = (),
        name: str = "data",
        preprocessing: Preprocessing | None = None,
        augment: Augmentation | None = None,
        generation: Generation | None = None,
        extra_files: Mapping[str, bytes] | None = None,
    ) -> None:
        learned, judged = data_of(train), in_memory(test)
        if validation is None:
            if isinstance(learned, Stream):
                raise UserError("E131", "a shuffling loader cannot be split", "give `validation`, or tensors as `train`")
            learned, validation = learned.split(validation_fraction, _HELD_OUT_SEED)
        validated = in_memory(validation)
        default_loss, default_metric = DEFAULTS[Form.CLASSES if _labelled(learned, validated, judged) else Form.MATCHED]
        self._settle(
            train=learned,
            test=judged,
            validation=validated,
            loss=loss_of(loss or default_loss),
            metric=Metric.of(metric or default_metric),
            extra_metrics=tuple(Metric.of(one) for one in extra_metrics),
            labels=tuple(labels),
            name=name,
            preprocessing=preprocessing,
            augment=augment,
            generation=generation,
            extra_files=dict(extra_files or {}),
            teacher=None,
        )

    def replace(self, **changes: Any) -> Task:
        """The same task with other values of some attributes.

        Args:
            changes: by the name of the attribute, in the form in which it is kept: `Samples` or a `Stream`, a `Metric`, a loss
                as a function, a tuple of labels.

        Raises:
            TypeError: for a name that is no attribute.
            UserError: E111, E131 as the constructor does where the parts do not fit each other.

        Example:
            >>> import torch
            >>> x, y = torch.randn(40, 3), torch.randint(0, 2, (40,))
            >>> task = Task(train=(x, y), test=(x, y))
            >>> task.replace(metric=Metric.of("f1")).metric.name, task.metric.name
            ('f1', 'accuracy')
        """
        unknown = sorted(set(changes) - {one.name for one in fields(self)})
        if unknown:
            raise TypeError(f"Task has no attribute {', '.join(unknown)}")
        other = copy.copy(self)
        other._settle(**changes)
        return other

    def _settle(self, **values: Any) -> None:
        """Set attributes of a task that nobody has seen yet, and check that all of them fit each other."""
        vars(self).update(values)
        _check_preprocessing(self.preprocessing, self.validation)
        vars(self).update(augment=_applicable(self.augment, self.train, self.preprocessing))
        if self.generation is None and any(one.of_sequences for one in (self.metric, *self.extra_metrics)):
            message = f"{self.metric.name} is of what a model writes, and the task does not say how it does"
            raise UserError("E111", message, "give `generation`: mirabelle.Generation(begin=…, end=…)")

    @property
    def outputs(self) -> OutputKind:
        """What the outputs of a model and the targets of the data are."""
        return OutputKind.of_task(self.loss, self.validation.targets, self.labels)

    def with_teacher(self, teacher: nn.Module | None) -> Task:
        """The same task under another teacher."""
        return self.replace(teacher=teacher)

    def with_augment(self, augment: Augmentation | None) -> Task:
        """The same task, its images changed in another way while a model trains.

        Raises:
            UserError: E131 when the data are no images in memory.
        """
        return self.replace(augment=augment)

    def with_unlabelled(self, inputs: Inputs) -> Task:
        """The same task with more training samples, of which nobody knows the class: they learn from the teacher alone.

        Their targets are `UNLABELLED`; `TaskLoss` leaves them out, and terms that need the right class refuse them.

        Args:
            inputs: as those of the training data, (samples, ...).

        Raises:
            UserError: E131 when the task does not classify, its training data are a stream, or the inputs are of other shapes.

        Example:
            >>> import torch
            >>> x, y = torch.randn(40, 3), torch.randint(0, 2, (40,))
            >>> more = Task(train=(x, y), test=(x, y)).with_unlabelled(torch.randn(100, 3))
            >>> len(more.train), int((more.train.targets == UNLABELLED).sum())
            (136, 100)
        """
        if not self.outputs.classifies or not isinstance(self.train, Samples):
            raise UserError("E131", "samples without labels need a task that classifies samples in memory", "give tensors")
        own, more = tensors_of(self.train.inputs), tensors_of(inputs)
        if [tuple(part.shape[1:]) for part in own] != [tuple(part.shape[1:]) for part in more]:
            shapes = [[tuple(part.shape[1:]) for part in side] for side in (more, own)]
            raise UserError(
                "E131", f"samples without labels have shapes {shapes[0]}, the data {shapes[1]}", "prepare them alike"
            )
        pairs = iter([torch.cat(both) for both in zip(own, more, strict=True)])
        targets = torch.full((len(more[0]), *self.train.targets.shape[1:]), UNLABELLED, dtype=self.train.targets.dtype)
        inputs = map_tensors(self.train.inputs, lambda _: next(pairs))
        return self.replace(train=Samples(inputs, torch.cat([self.train.targets, targets])))

    @property
    def labelled(self) -> bool:
        """Whether the data bring targets of their own."""
        return not isinstance(self.train, Samples) or self.train.labelled

    def against(self, outputs: Callable[[Samples], Outputs]) -> Task:
        """The task without labels in which outputs of a model stand for them; one with labels as it is.

        Each output counts in the loss "matching" by its variance over the training data.

        Args:
            outputs: of samples, in their order.
        """
        if self.labelled or self.validation.targets.shape[1:] != (0,):  # they do already
            return self
        changes: dict[str, Any] = {}
        for name in ("train", "validation", "test"):
            data: Samples = getattr(self, name)
            given = outputs(data)
            changes[name] = data.against(as_one_tensor(given))
            if name == "train" and self.loss == Matching():
                variances = tuple(max(float(part.float().var(0).mean()), _LEAST_VARIANCE) for part in parts_of(given))
                changes["loss"] = Matching(variances)
        return self.replace(**changes)

    def example(self, count: int = 2) -> Batch:
        """The first samples of the training data, at least two, as an example of a batch."""
        return self.train.first(count)

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others: lengths and digests by split (a stream has no digest)."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: {"samples": len(data), "digest": data.digest() if isinstance(data, Samples) else None}
            for name, data in splits.items()
        }


def _labelled(*splits: Samples | Stream) -> bool:
    """Whether all of them have labels, rather than none."""
    known = [not isinstance(data, Samples) or data.labelled for data in splits]
    if any(known) and not all(known):
        names = [name for name, own in zip(("train", "validation", "test"), known, strict=True) if not own]
        remedy = "give all of them targets, or none"
        raise UserError("E131", f"the {' and '.join(names)} data have no targets, others do", remedy)
    return all(known)


def _applicable(
    augment: Augmentation | None, data: Samples | Stream, preprocessing: Preprocessing | None
) -> Augmentation | None:
    """The augmentation, if it can change these data, in the layout that they have."""
    if augment is not None:
        if augment.layout is None and preprocessing is not None and preprocessing.image_layout == "channels-last":
            augment = replace(augment, layout=preprocessing.image_layout)
        if isinstance(data, Samples) and not data.labelled:
            message = "images without labels cannot be augmented: what stands for labels are outputs for them as they lie"
            raise UserError("E131", message, "leave `augment` out")
        if isinstance(data, Stream):
            raise UserError(
                "E131", "a shuffling loader cannot be augmented", "let its data set do it, or give tensors as `train`"
            )
        augment.check(data.inputs)
    return augment


def _check_preprocessing(preprocessing: Preprocessing | None, data: Samples) -> None:
    """Raise where the preprocessing makes other inputs than those of the data."""
    if preprocessing is not None:
        shapes = [tuple(tensor.shape[1:]) for tensor in tensors_of(data.inputs)]
        if shapes != list(preprocessing.shapes):
            made = ", ".join(map(str, preprocessing.shapes))
            raise UserError("E131", f"the preprocessing makes inputs of {made}; the data have {shapes}", "make them agree")
