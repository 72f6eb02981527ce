"""Look at a model and its data as an expert would, and measure what a first recipe depends on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from mirabelle.artifact.mira import pack
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters, onnx_file
from mirabelle.job.comparison import step_seconds
from mirabelle.job.dry_run import try_one_batch, with_model_outputs_as_targets
from mirabelle.job.learned import standing
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.planning.learning_rate import learning_rate
from mirabelle.planning.measured import Form
from mirabelle.planning.measuring import quantizing, stopwatch, without_codes
from mirabelle.planning.seen_data import Classes, classes_of, sentences_on_data
from mirabelle.planning.seen_model import Kind, sentences_on_model
from mirabelle.quantize.rate_distortion import RateDistortion
from mirabelle.run.files import length_of_tensors
from mirabelle.run.run import Run
from mirabelle.runtime.latency import Ratio
from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.task.batch import tensors_of
from mirabelle.task.goal import Goal
from mirabelle.task.metric import Metric
from mirabelle.task.task import Task
from mirabelle.training.evaluation import evaluate
from mirabelle.training.settings import Training

MOST_PARAMETERS = 150_000_000  # of a model that is timed and quantized on trial; more takes many minutes
_FASTER = 0.95  # of the milliseconds: integers that gain less are not worth what they change
_QUARTER = 0.25  # of the bytes in float32
_JUDGED = 2000  # validation samples
_MAY_DROP = "1%"  # the goal of a first recipe
_HALF = 0.5  # of it, that may be used on the validation samples
_CERTAIN = 0.05
_SHARES = (0.20, 0.24)  # of the bytes in float32, for a file with coded weights
_SAMPLES, _FEWER, _ELEMENTS = 32, 8, 1_000_000  # by which weights are coded on trial, and in all of them; the step takes more
_SHARE_PRUNED, _LEAST_SHARE = 0.12, 0.05  # for one whose weights were pruned before; for the weights alone
_SECONDS_FOR_RATE = 60.0
_STEPS_FROM_ZERO, _FEWEST_EPOCHS, _MOST_EPOCHS = 2000, 10, 60
_MOST_SECONDS = 600.0  # of a training that has more than the fewest epochs
_FINE_TUNING = {0: 10, 1000: 5, 5000: 3}  # training samples -> epochs of a pre-trained network
_BATCHES = {0: 32, 5000: 64, 50_000: 128}  # training samples -> batch size
_PRUNED_FROM = 20_000  # parameters: in fewer, most of the weights are needed

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Tried:
    """What a form of numbers gives without training.

    Args:
        form: "static", "dynamic" or "coded".
        size: bytes of the packed file.
        ratio: milliseconds relative to floating point.
        share: of coded weights, relative to float32.
        metric: on the validation samples; None for a model that is not trained.
        keeps: whether the metric is kept, as far as the validation samples show it.
    """

    form: Form
    size: float
    ratio: Ratio
    share: float = 0.0
    metric: float | None = None
    keeps: bool = True

    @property
    def faster(self) -> bool:
        return self.ratio.median <= _FASTER


@dataclass(frozen=True)
class Looked:
    """What was found, and what a first recipe needs.

    Args:
        found: sentences on network and data, on what is heavy, on what the model has learned, and on what was tried.
        kind: of network.
        learned: whether the model is trained already.
        metric: that rare classes call for; None if that of the task stays.
        rare: whether some classes are rare.
        training: of a model that is not trained, with a measured learning rate; None for a trained one.
        seconds: that this training takes.
        prunes: whether single weights are pruned after the training.
        form: in which numbers are stored and computed.
        share: of coded weights, relative to float32.
        why: of this form.
    """

    found: Sequence[str]
    kind: Kind
    learned: bool
    metric: str | None
    rare: bool
    training: Training | None
    seconds: float
    prunes: bool
    form: Form
    share: float
    why: str


def look(model: nn.Module, task: Task, tell: Tell, *, seed: int = 0) -> Looked:
    """Look at a model and its data.

    A trained model is quantized on trial, without labels and without training, to integers with fixed ranges, to integers with
    ranges of each input, and to coded weights of few bits. Each is timed, and judged on up to 2,000 validation samples. A model
    that has learned nothing is timed in these forms, and the learning rate of its training is measured.

    Args:
        model: it is not changed.
        task: the data; without labels the outputs of the model are the targets.
        tell: is given a line before each part of the work that takes time.
        seed: of what is drawn.

    Raises:
        UserError: E121 if the model does not fit the data or cannot be exported, E131 if loss or metric fail, E132 if a label
            is not a class of the model.
    """
    model, labelled = copied(model).eval(), task.labelled
    task = with_model_outputs_as_targets(task, model)
    try_one_batch(model, task)
    with tempfile.TemporaryDirectory() as folder:
        return _Look(model, task, Run(folder, seed=seed), tell, labelled=labelled).all()


@dataclass
class _Look:
    model: nn.Module
    task: Task
    run: Run
    tell: Tell
    labelled: bool
    said: list[str] = field(default_factory=list)

    def all(self) -> Looked:
        onnx = onnx_file(self.model, self.task)
        self._float_bytes = float(length_of_tensors(tensors_of_module(self.model)))
        timed = count_parameters(self.model)[0] <= MOST_PARAMETERS
        self.tell("the network")
        kind, said = sentences_on_model(self.model, self.task, onnx, timed=timed)
        classes = classes_of(self.task) if self.labelled else None
        self.said += [*said, *sentences_on_data(self.task, classes, labelled=self.labelled)]
        metric = self._metric(classes)
        learned = self._standing()
        training, seconds = (None, 0.0) if learned else self._training()
        prunes = training is not None and kind != "transformer" and count_parameters(self.model)[0] >= _PRUNED_FROM
        if timed:
            form, share, why = self._form(kind, learned=learned, prunes=prunes)
        else:
            form, share, why = "dynamic", 0.0, "the model is too large to be quantized on trial"
        return Looked(
            self.said, kind, learned, metric, bool(classes and classes.rare), training, seconds, prunes, form, share, why
        )  # fmt: skip

    def _metric(self, classes: Classes | None) -> str | None:
        """The metric that rare classes call for in the place of accuracy, if it is defined for model and data."""
        name = None if classes is None or self.task.metric.name != "accuracy" else classes.metric()
        if name is None:
            return None
        try:
            judged = self.task.replace(metric=Metric.of(name))
            try_one_batch(self.model, judged)
            judged.metric.value(evaluate(self.model, judged.validation, judged))
        except UserError as error:
            self.said.append(f"{name} is not possible here: {error.errors[0].message}")
            return None
        self.task = judged
        return name

    def _standing(self) -> bool:
        """Whether the model is trained; its metric beside that of a constant answer is said."""
        if not self.labelled:
            return True
        found = standing(self.model, self.task, self.task.validation)
        told = found.in_words("validation")
        self.said.append(f"trained: {told}" if found.learned else f"not trained: {told}")
        if found.learned:
            self.said.append("if it was trained on these validation samples, its metric is too good: the test data decide")
        return found.learned

    def _training(self) -> tuple[Training, float]:
        """(training of a model that has learned nothing, its seconds)."""
        self.tell("learning rates")
        count = len(self.task.train)
        batch = _by(_BATCHES, count)
        per_epoch = self.task.train.steps(batch)
        fine_tuned = isinstance(self.model, HuggingFaceModel)
        epochs = (
            _by(_FINE_TUNING, count)
            if fine_tuned
            else min(max(math.ceil(_STEPS_FROM_ZERO / per_epoch), _FEWEST_EPOCHS), _MOST_EPOCHS)
        )
        training = Training(epochs=epochs, batch_size=batch)
        each = step_seconds(self.model, self.task, training, self.run.within("timed"), budget=0.0)
        affordable = int(_MOST_SECONDS / max(each * per_epoch, 1e-9))
        epochs = min(epochs, max(affordable, _FEWEST_EPOCHS))
        rate = learning_rate(
            self.model, self.task, training, self.run.within("rate"), seconds=_SECONDS_FOR_RATE, each=each
        )  # fmt: skip
        self.said.append(f"learning rate {rate:g} reaches the lowest loss in short trainings")
        return Training(epochs=epochs, batch_size=batch, lr=rate), each * epochs * per_epoch

    def _form(self, kind: Kind, *, learned: bool, prunes: bool) -> tuple[Form, float, str]:
        """(form of the numbers, share of coded weights, why)."""
        self._watch = stopwatch(self.model, self.task, 1)
        forms: tuple[Form, ...] = ("dynamic", "static") if learned or kind != "transformer" else ("dynamic",)
        tried = [one for form in forms if (one := self._tried(form, learned=learned)) is not None]
        best = [one for one in tried if one.faster and one.keeps and (prunes or one.size <= _QUARTER * self._float_bytes)]
        if best:
            chosen = min(best, key=lambda one: one.ratio.median)
            return chosen.form, 0.0, f"{chosen.ratio.median:.2f} times the milliseconds of floating point"
        lossy = any(one.faster and not one.keeps for one in tried)
        why = "integers cost accuracy" if lossy else "integers are not faster here, or the file is larger with them"
        rest = self._rest()
        shares = [] if rest is None else [max(share - rest, _LEAST_SHARE) for share in _SHARES]
        if not learned and rest is not None:
            return "coded", max(_SHARE_PRUNED - rest, _LEAST_SHARE) if prunes else shares[-1], why
        for share in dict.fromkeys(shares):
            one = self._tried("coded", share, learned=True)
            if one is not None and one.keeps:
                return "coded", share, why
        kept = [one for one in tried if one.keeps and not one.ratio.slower]
        if kept:
            smallest = min(kept, key=lambda one: one.size)
            return smallest.form, 0.0, "the smallest that keeps the metric"
        return "float", 0.0, "every form that was tried is slower or costs accuracy"

    def _tried(self, form: Form, share: float = 0.0, *, learned: bool) -> Tried | None:
        """A form of the model; None if it cannot be made."""
        title = {"static": "quantize.Static", "dynamic": "quantize.Dynamic"}.get(form, f"coded weights of {share:.0%}")
        self.tell(title)
        try:
            (step,) = quantizing(form, share * self._float_bytes)
            if isinstance(step, RateDistortion):
                step = replace(step, samples=self._samples())
            made = step(self.model, self.task, self.run.within(f"{form}-{share:g}"))
            size = float(len(pack(onnx_file(made, self.task))))
        except UserError as error:
            self.said.append(f"{title}: not possible, {error.errors[0].message}")
            return None
        ratio = Ratio(1.0, 1.0, 1.0) if form == "coded" else self._watch.ratio(made)
        told = f"{title}: {size / self._float_bytes:.1%} of the bytes, {ratio.median:.2f} times the milliseconds"
        if not learned:
            self.said.append(told)
            return Tried(form, size, ratio, share)
        value, keeps, words = self._judged(made)
        self.said.append(f"{told}, {words}")
        return Tried(form, size, ratio, share, value, keeps)

    def _samples(self) -> int:
        """Few samples if they are large: each has many rows of a layer's inputs."""
        size = sum(part[0].numel() for part in tensors_of(self.task.example().inputs))
        return max(min(_SAMPLES, _ELEMENTS // max(size, 1)), _FEWER)

    def _judged(self, made: nn.Module) -> tuple[float, bool, str]:
        """(metric of a model, whether it keeps the metric of the given one, both in words), on the same validation samples."""
        data = self.task.validation.drawn(_JUDGED, 0)
        metric = self.task.metric
        if not hasattr(self, "_before"):
            self._before = evaluate(self.model, data, self.task)
        after = evaluate(made, data, self.task)
        start, value = metric.value(self._before), metric.value(after)
        least = Goal(max_drop=_MAY_DROP).least_metric(start, _HALF)
        assert least is not None, "the goal limits the metric"
        worse = value < start and metric.p_value([self._before], [after]) <= _CERTAIN
        keeps = value >= least and not worse
        return value, keeps, f"{metric.name} {start:.4f} → {value:.4f}" + ("" if keeps else ": too low")

    def _rest(self) -> float | None:
        """The bytes of a file with coded weights besides these, relative to float32; None if weights cannot be coded."""
        (step,) = quantizing("coded", _QUARTER * self._float_bytes)
        try:
            shown = step.preview(self.model, self.task, self.run.within("coded")).model
            return without_codes(onnx_file(shown, self.task), shown) / self._float_bytes
        except UserError as error:
            self.said.append(f"coded weights: not possible, {error.errors[0].message}")
            return None


def _by(table: Mapping[int, int], count: int) -> int:
    """The entry of the largest key that is not larger than the count."""
    return table[max(key for key in table if key <= count)]
