"""The task of a model: data, loss, metric, preprocessing, and the teacher for distillation."""

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
from mirabelle.task.batch import Batch, Inputs, Outputs, map_tensors, parts_of, tensors_of
from mirabelle.task.class_names import with_numbered_classes
from mirabelle.task.class_targets import with_class_indices
from mirabelle.task.generation import Generation
from mirabelle.task.given_data import data_of, in_memory
from mirabelle.task.indexed import Indexed
from mirabelle.task.loss import Loss, Matching, loss_of
from mirabelle.task.metric import Metric, PerSample
from mirabelle.task.outputs import DEFAULTS, Form, OutputKind, OutputsAre, default_form, default_metric
from mirabelle.task.preprocessing import Preprocessing
from mirabelle.task.read_once import notes_on_reading
from mirabelle.task.samples import Samples, Stream
from mirabelle.task.torch_losses import known_loss

_LEAST_VARIANCE = 1e-12  # used for an output that is equal for all samples
_HELD_OUT_SEED = 0  # fixed, so that runs with different seeds use the same validation split


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Task:
    """The task of a model: data splits, loss, metrics, preprocessing, and a teacher.

    A task is immutable: `replace` and the methods `with_…` return another one.

    Args:
        train: training data: `(inputs, targets)` tensors, arrays, lists or tables of pandas, a `Dataset`, or a `DataLoader`.
            Targets may be the names of classes. Data without labels are inputs alone, or a dict of them by name; the outputs
            of the teacher, by default of the original model, then serve as targets.
        test: test data in the same form, read into memory once, so that all models are evaluated on the same samples.
        validation: validation data in the same form, read into memory once; by default a held-out part of the training data,
            always the same samples.
        validation_fraction: the fraction of the training data that is held out if no validation data are given.
        loss: "cross_entropy", "token_cross_entropy" (classes last), "binary_cross_entropy", "mse", "mae", "huber", "span",
            "ctc" or "matching" (`mirabelle.task.LOSSES`), a function (outputs, targets) -> scalar, or its name,
            "pkg.mod:function". Several outputs are passed as a tuple. Losses of torch, such as
            `nn.CrossEntropyLoss(label_smoothing=0.1)` or `nn.MSELoss()`, are known; targets that they ignore become −100. By
            default "cross_entropy" for integer targets, "mse" for floating-point targets, "binary_cross_entropy" if they have
            `labels`, without targets "matching".
        metric: a name that `Metric.of` knows, such as "accuracy", or a function (outputs, targets) -> one score for each
            sample, higher is better; `Metric.over_set(function)` for a metric of a whole set. By default that of the loss:
            "accuracy" for classes and for a single label, "f1" for several labels, "r2" for numbers, without targets
            "fidelity". A loss of your own with floating-point targets has none: name one, or say what `outputs_are`.
        extra_metrics: further metrics in the same form, reported for information only.
        outputs_are: what the outputs of the model are, if the loss is your own: "classes" (logits, classes in axis 1),
            "classes_last" (in the last axis), "labels" (logits of yes or no) or "numbers". It decides what metrics compare, how
            a teacher is followed, which targets are refused, and what `predict` prints.
        labels: names of the classes, or of the columns of multi-label targets, (samples, labels), or of no and yes for a single
            output; stored with the artifact. For CTC the names of the symbols, the first "" for the blank: `predict` then
            prints the sequence.
        name: name of the data in reports.
        preprocessing: how a raw input becomes a model input; stored with the artifact, which then takes raw inputs.
        augment: random changes of images during training; evaluation uses the images without them.
        generation: how a sequence-to-sequence model generates sequences; needed for metrics of generated sequences, and for
            generated sequences of a teacher as targets.
        extra_files: files that the preprocessing needs, such as a tokenizer, by name; they are stored next to the artifact.
        notes: sentences on what was left out, cut or changed while the data were read; `check`, the run and the report show
            them, together with what was found when data sets and loaders were read into memory.

    Raises:
        UserError: E110 if loss or metric are unknown; E111 for a metric of sequences without `generation`, or if loss, metric
            and `outputs_are` do not fit each other; E131 if the data cannot be used or augmented, do not match the
            preprocessing, or only some splits have labels.

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
    outputs_are: OutputsAre | None
    labels: tuple[str, ...]
    name: str
    preprocessing: Preprocessing | None
    augment: Augmentation | None
    generation: Generation | None
    extra_files: Mapping[str, bytes]
    notes: tuple[str, ...]
    teacher: nn.Module | None
    unlearned: nn.Module | None
    loss_is_default: bool

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
        outputs_are: OutputsAre | None = None,
        labels: tuple[str, ...] = (),
        name: str = "data",
        preprocessing: Preprocessing | None = None,
        augment: Augmentation | None = None,
        generation: Generation | None = None,
        extra_files: Mapping[str, bytes] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        sources = {"train": train, "validation": validation, "test": test}
        given, labels = with_numbered_classes(sources, labels)
        learned, validation, judged = data_of(given["train"]), given["validation"], in_memory(given["test"])
        if validation is None:
            if isinstance(learned, Stream):
                raise UserError(
                    "E131", "data from a loader that shuffles cannot be split", "give `validation`, or tensors as `train`"
                )
            learned, validation = learned.split(validation_fraction, _HELD_OUT_SEED)
        named_loss, own_metric = None if loss is None else loss_of(loss), not isinstance(metric, (str, type(None)))
        found, told = with_class_indices((learned, in_memory(validation), judged), named_loss, labels, own_metric=own_metric)
        learned, validated, judged = found[0], in_memory(found[1]), in_memory(found[2])
        form = default_form(validated.targets, labels) if _labelled(learned, validated, judged) else Form.MATCHED
        loss = named_loss or loss_of(DEFAULTS[form][0])
        if metric is None:
            kind = OutputKind.of_task(loss, validated.targets, labels, outputs_are)
            metric = default_metric(kind, validated.targets, judged.targets)
        self._settle(
            train=learned,
            test=judged,
            validation=validated,
            loss=loss,
            metric=Metric.of(metric),
            extra_metrics=tuple(Metric.of(one) for one in extra_metrics),
            outputs_are=outputs_are,
            labels=tuple(labels),
            name=name,
            preprocessing=preprocessing,
            augment=augment,
            generation=generation,
            extra_files=dict(extra_files or {}),
            notes=(*notes, *told, *notes_on_reading(sources, {"train": learned, "validation": validated, "test": judged})),
            teacher=None,
            unlearned=None,
            loss_is_default=named_loss is None and outputs_are is None,
        )

    def replace(self, **changes: Any) -> Task:
        """A copy of the task with other values of some attributes.

        Args:
            changes: new values by the names of the attributes, of the attributes' types: `Samples` or `Stream`, a `Metric`, a
                loss function, a tuple of labels.

        Raises:
            TypeError: for an unknown name.
            UserError: E111 or E131 if the parts do not fit each other, as in the constructor.

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
        """Set attributes of a task under construction, and check that all attributes fit each other."""
        vars(self).update(values)
        self._know_loss()
        for metric in (self.metric, *self.extra_metrics):
            metric.check(self.outputs)
        _check_preprocessing(self.preprocessing, self.validation)
        vars(self).update(augment=_applicable(self.augment, self.train, self.preprocessing))
        if self.generation is None and any(one.of_sequences for one in (self.metric, *self.extra_metrics)):
            message = f"the metric {self.metric.name} needs generated sequences, and the task has no `generation`"
            raise UserError("E111", message, "give `generation`: mirabelle.Generation(begin=…, end=…)")

    def _know_loss(self) -> None:
        """Replace a loss of torch by that of Mirabelle, and the targets that it ignores by −100."""
        known = known_loss(self.loss)
        vars(self).update(loss=known.loss)
        if known.ignored != UNLABELLED:
            for name in ("train", "validation", "test"):
                data = getattr(self, name)
                if isinstance(data, Stream):
                    message = (
                        f"the loss ignores targets of {known.ignored}, and the {name} data are a stream, which is not changed"
                    )
                    raise UserError("E131", message, "let the loader yield targets of -100 for them, and ignore these")
                vars(self)[name] = data.ignoring(known.ignored)

    @property
    def outputs(self) -> OutputKind:
        """The meaning of the model's outputs and of the targets."""
        return OutputKind.of_task(self.loss, self.validation.targets, self.labels, self.outputs_are)

    def with_teacher(self, teacher: nn.Module | None) -> Task:
        """A copy of the task with another teacher."""
        return self.replace(teacher=teacher)

    def with_augment(self, augment: Augmentation | None) -> Task:
        """A copy of the task with another data augmentation.

        Raises:
            UserError: E131 if the data are no images in memory.
        """
        return self.replace(augment=augment)

    def with_unlabelled(self, inputs: Inputs) -> Task:
        """A copy of the task with additional training samples without labels, for which only the teacher gives targets.

        Their targets are `UNLABELLED`: `TaskLoss` ignores them, and terms that need the true class raise an error.

        Args:
            inputs: inputs like those of the training data, (samples, ...).

        Raises:
            UserError: E131 if the task is no classification, its training data are a stream, or the inputs have other shapes.

        Example:
            >>> import torch
            >>> x, y = torch.randn(40, 3), torch.randint(0, 2, (40,))
            >>> more = Task(train=(x, y), test=(x, y)).with_unlabelled(torch.randn(100, 3))
            >>> len(more.train), int((more.train.targets == UNLABELLED).sum())
            (136, 100)
        """
        if not self.outputs.classifies or not isinstance(self.train, Samples):
            raise UserError("E131", "samples without labels need a classification task with data in memory", "give tensors")
        own, more = tensors_of(self.train.first(1).inputs), tensors_of(inputs)
        if [tuple(part.shape[1:]) for part in own] != [tuple(part.shape[1:]) for part in more]:
            shapes = [[tuple(part.shape[1:]) for part in side] for side in (more, own)]
            raise UserError(
                "E131",
                f"samples without labels have shapes {shapes[0]}, the data {shapes[1]}",
                "prepare both in the same way",
            )
        without = torch.full((len(more[0]), *self.train.targets.shape[1:]), UNLABELLED, dtype=self.train.targets.dtype)
        targets = torch.cat([self.train.targets, without])
        if isinstance(self.train, Indexed):
            return self.replace(train=self.train.with_more(inputs, targets))
        pairs = iter([torch.cat(both) for both in zip(tensors_of(self.train.inputs), more, strict=True)])
        return self.replace(train=Samples(map_tensors(self.train.inputs, lambda _: next(pairs)), targets))

    def without_lessons_of(self, model: nn.Module) -> Task:
        """A copy of the task in which a model that has learned nothing teaches only where an objective asks for a teacher."""
        return self.replace(unlearned=model)

    @property
    def has_lessons(self) -> bool:
        """Whether there is a teacher that has learned something, as far as is known."""
        return self.teacher is not None and self.teacher is not self.unlearned

    @property
    def labelled(self) -> bool:
        """Whether the data have labels."""
        return not isinstance(self.train, Samples) or self.train.labelled

    def against(self, outputs: Callable[[Samples], Outputs]) -> Task:
        """A copy of a task without labels with the outputs of a model as targets; a task with labels is returned unchanged.

        In the loss "matching", each output is divided by its variance over the training data.

        Args:
            outputs: samples -> outputs of the model, in the order of the samples.
        """
        if self.labelled or self.validation.targets.shape[1:] != (0,):  # outputs are the targets already
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
        """The first `count` samples of the training data as an example batch."""
        return self.train.first(count)

    def fingerprint(self) -> dict[str, Any]:
        """The identity of the data: number of samples and digest of each split (a stream has no digest)."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            name: {"samples": len(data), "digest": data.digest() if isinstance(data, Samples) else None}
            for name, data in splits.items()
        }


def _labelled(*splits: Samples | Stream) -> bool:
    """Whether the splits have labels; either all or none of them must."""
    known = [not isinstance(data, Samples) or data.labelled for data in splits]
    if any(known) and not all(known):
        names = [name for name, own in zip(("train", "validation", "test"), known, strict=True) if not own]
        remedy = "give targets for all of them, or for none"
        raise UserError("E131", f"the {' and '.join(names)} data have no targets, the others do", remedy)
    return all(known)


def _applicable(
    augment: Augmentation | None, data: Samples | Stream, preprocessing: Preprocessing | None
) -> Augmentation | None:
    """The augmentation with the layout of the data; an error is raised if the data cannot be augmented."""
    if augment is not None:
        if augment.layout is None and preprocessing is not None and preprocessing.image_layout == "channels-last":
            augment = replace(augment, layout=preprocessing.image_layout)
        if isinstance(data, Samples) and not data.labelled:
            message = "images without labels cannot be augmented: their targets are outputs for the original images"
            raise UserError("E131", message, "leave `augment` out")
        if isinstance(data, Stream):
            raise UserError(
                "E131",
                "data from a loader that shuffles cannot be augmented",
                "augment in its data set, or give tensors as `train`",
            )
        augment.check(data.first(2).inputs if isinstance(data, Indexed) else data.inputs)
    return augment


def _check_preprocessing(preprocessing: Preprocessing | None, data: Samples) -> None:
    """Raise an error if the preprocessing makes inputs of other shapes than those of the data."""
    if preprocessing is not None:
        shapes = [tuple(tensor.shape[1:]) for tensor in tensors_of(data.first(1).inputs)]
        if shapes != list(preprocessing.shapes):
            made = ", ".join(map(str, preprocessing.shapes))
            raise UserError(
                "E131", f"the preprocessing makes inputs of shape {made}; the data have {shapes}", "make them agree"
            )
