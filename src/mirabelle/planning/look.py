"""Look at a model and its data as an expert would, and measure what a first recipe depends on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import nn

from mirabelle.artifact.mira import pack
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters, onnx_file
from mirabelle.job.comparison import step_seconds
from mirabelle.job.dry_run import try_one_batch, with_model_outputs_as_targets
from mirabelle.job.learned import standing
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.numerics.statistics import Scores
from mirabelle.planning.learning_rate import learning_rate
from mirabelle.planning.measured import Form
from mirabelle.planning.measuring import has_heavy_tables, quantizing, stopwatch, without_codes
from mirabelle.planning.seen_data import Classes, classes_of, lengths_of_texts, sentences_on_data
from mirabelle.planning.seen_model import Kind, sentences_on_model
from mirabelle.quantize.rate_distortion import RateDistortion
from mirabelle.quantize.weights import Weights as WeightsAlone
from mirabelle.run.files import length_of_tensors
from mirabelle.run.run import Run
from mirabelle.runtime.latency import Ratio
from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.step import Step, use_of
from mirabelle.task.batch import tensors_of
from mirabelle.task.goal import Goal
from mirabelle.task.metric import Metric
from mirabelle.task.preprocessing.text import Text
from mirabelle.task.task import Task
from mirabelle.training.evaluation import evaluate
from mirabelle.training.settings import Training

MOST_PARAMETERS = 150_000_000  # of a model that is timed and quantized on trial; more takes many minutes
_FASTER = 0.95  # of the milliseconds: integers that gain less are not worth what they change
_QUARTER = 0.25  # of the bytes in float32
_JUDGED = 2000  # validation samples
_MAY_DROP, _FIDELITY_MAY_DROP = "1%", "5pt"  # the goals of a first recipe: of a metric, and of how close outputs stay
_HALF = 0.5  # of it, that may be used on the validation samples
_CERTAIN = 0.05
_SHARES = (0.20, 0.24)  # of the bytes in float32, for a file with coded weights
_SAMPLES, _FEWER, _ELEMENTS = 32, 8, 1_000_000  # by which weights are coded on trial, and in all of them; the step takes more
_SHARE_PRUNED = 0.12  # for one whose weights were pruned before
_LEAST_SHARE, _LEAST_SHARE_PRUNED = 0.15, 0.08  # for the weights alone, however much the file holds besides
_FEW, _USUAL_RATES = (
    30,
    (1e-3, 3e-5),
)  # validation samples that choose a rate; rates without, from zero and of pre-trained networks
_SECONDS_FOR_RATE = 60.0
_STEPS_FROM_ZERO, _FEWEST_EPOCHS, _MOST_EPOCHS = 2000, 10, 60
_MOST_SECONDS = 600.0  # of a training that has more than the fewest epochs
_FINE_TUNING = {0: 10, 1000: 5, 5000: 3}  # training samples -> epochs of a pre-trained network
_BATCHES = {0: 32, 5000: 64, 50_000: 128}  # training samples -> batch size
_PADDED = 0.3  # of the inputs
_PRUNED_FROM = 20_000  # parameters: in fewer, most of the weights are needed

Weights = Literal["given", "drawn", "unknown"]
LookedForm = Form | Literal["weights"]  # "weights": 8 bits for each, in the file alone
_COMPUTED_IN_FLOAT = ("coded", "weights")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Tried:
    """What a form of numbers gives without training.

    Args:
        form: "static", "dynamic", "coded" or "weights".
        size: bytes of the packed file.
        ratio: milliseconds relative to floating point; 1 for weights that are decoded when the file is loaded.
        keeps: whether the metric is kept, as far as the validation samples show it; not known of a model that is not trained.
    """

    form: LookedForm
    size: float
    ratio: Ratio
    keeps: bool = True

    @property
    def faster(self) -> bool:
        return self.ratio.median <= _FASTER


@dataclass(frozen=True)
class Looked:
    """What was found, and what a first recipe needs.

    Args:
        found: sentences on network and data, on what is heavy, on what the model has learned, and on what was tried.
        learned: whether the model is trained already.
        metric: that rare classes call for; None if that of the task stays.
        rare: whether some classes are rare.
        training: of a model that is not trained, with a measured learning rate; None for a trained one, and for one in which
            nothing can be trained.
        seconds: that this training takes.
        prunes: whether single weights are pruned after the training.
        form: in which numbers are stored and computed.
        share: of coded weights, relative to float32.
        why: of this form.
        embeds: whether tables of embeddings get 8 bits besides.
        max_drop: the goal.
    """

    found: Sequence[str]
    learned: bool
    metric: str | None
    rare: bool
    training: Training | None
    seconds: float
    prunes: bool
    form: LookedForm
    share: float
    why: str
    embeds: bool
    max_drop: str


def look(
    model: nn.Module, task: Task, tell: Tell, *, weights: Weights = "unknown", sets_metric: bool = True, seed: int = 0
) -> Looked:
    """Look at a model and its data.

    A trained model is quantized on trial, without labels and without training, to integers with fixed ranges, to integers with
    ranges of each input, and to coded weights of few bits. Each is timed, and judged on up to 2,000 validation samples. A model
    that has learned nothing is timed in these forms, and the learning rate of its training is measured.

    Args:
        model: it is not changed.
        task: the data; without labels the outputs of the model are the targets.
        tell: is given a line before each part of the work that takes time.
        weights: "given" as those of a trained model, which is not trained again; "drawn" at random, so that it is not trained
            however well it guesses; or "unknown", and its metric decides.
        sets_metric: whether the recipe can set the metric of the data; if not, rare classes are said, and the metric stays.
        seed: of what is drawn.

    Raises:
        UserError: E121 if the model does not fit the data or cannot be exported, E131 if loss or metric fail, E132 if a label
            is not a class of the model.
    """
    model, labelled = copied(model).eval(), task.labelled
    task = with_model_outputs_as_targets(task, model)
    try_one_batch(model, task)
    with tempfile.TemporaryDirectory() as folder:
        given = _Given(labelled=labelled, weights=weights, sets_metric=sets_metric)
        return _Look(model, task, Run(folder, seed=seed), tell, given).all()


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Whether data have labels, where the weights come from, and whether a recipe can set the metric."""

    labelled: bool
    weights: Weights
    sets_metric: bool


@dataclass
class _Look:
    model: nn.Module
    task: Task
    run: Run
    tell: Tell
    given: _Given
    said: list[str] = field(default_factory=list)

    def all(self) -> Looked:
        onnx = onnx_file(self.model, self.task)
        self._embeds = has_heavy_tables(self.model)
        self._float_bytes = float(length_of_tensors(tensors_of_module(self.model)))
        timed = count_parameters(self.model)[0] <= MOST_PARAMETERS
        self.tell("the network")
        kind, said = sentences_on_model(self.model, self.task, onnx, timed=timed)
        classes = classes_of(self.task) if self.given.labelled else None
        self.said += [*said, *sentences_on_data(self.task, classes, labelled=self.given.labelled)]
        metric = self._metric(classes)
        learned = self._standing()
        training, seconds = (None, 0.0) if learned else self._training(timed=timed)
        prunes = training is not None and kind != "transformer" and count_parameters(self.model)[0] >= _PRUNED_FROM
        if timed:
            form, share, why = self._form(kind, learned=learned, prunes=prunes)
        else:
            form, share, why = self._untried(kind)
        return Looked(
            self.said, learned, metric, bool(classes and classes.rare), training, seconds, prunes, form, share, why,
            self._embeds and form in ("static", "dynamic"), self.max_drop,
        )  # fmt: skip

    def _metric(self, classes: Classes | None) -> str | None:
        """The metric that rare classes call for in the place of accuracy, if it is defined for model and data."""
        name = None if classes is None or self.task.metric.name != "accuracy" else classes.metric()
        if name is None:
            return None
        if not self.given.sets_metric:
            self.said.append(f'the metric of a function is its own: Task(metric="{name}") would show these classes')
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
        if not self.given.labelled:
            return True
        found = standing(self.model, self.task, self.task.validation)
        told = found.in_words("validation")
        if self.given.weights == "drawn":
            self.said.append(f"not trained, weights are drawn at random: {told}")
            return False
        self.said.append(f"trained: {told}" if found.learned else f"not trained: {told}")
        if self.given.weights == "given" and not found.learned:
            self.said.append(
                "the given weights are not better than the same answer for every input: check that they belong here"
            )
            return True
        if found.learned:
            self.said.append("if it was trained on these validation samples, its metric is too good: the test data decide")
        return found.learned

    def _training(self, *, timed: bool) -> tuple[Training | None, float]:
        """(training of a model that has learned nothing, its seconds); None if nothing in it can be trained."""
        count, pretrained = len(self.task.train), isinstance(self.model, HuggingFaceModel)
        batch = min(_by(_BATCHES, count), max(count // 8, 1))
        per_epoch = self.task.train.steps(batch)
        epochs = min(max(math.ceil(_STEPS_FROM_ZERO / per_epoch), _FEWEST_EPOCHS), _MOST_EPOCHS)
        training = Training(
            epochs=_by(_FINE_TUNING, count) if pretrained else epochs,
            batch_size=batch,
            lr=_USUAL_RATES[pretrained],
            group_by_length=self._is_padded(),
        )
        if not timed:
            self.said.append(f"the learning rate, {training.lr:g}, is the usual one; it was not measured in so large a model")
            return training, 0.0
        self.tell("learning rates")
        try:
            each = step_seconds(self.model, self.task, training, self.run.within("timed"), budget=0.0)
        except UserError as error:
            self.said.append(f"it cannot be trained: {error.errors[0].message}")
            return None, 0.0
        affordable = int(_MOST_SECONDS / max(each * per_epoch, 1e-9))
        training = replace(training, epochs=min(training.epochs or 1, max(affordable, _FEWEST_EPOCHS)))
        seconds = each * (training.epochs or 1) * per_epoch
        if len(self.task.validation) < _FEW:
            self.said.append(f"too few validation samples to choose a learning rate: {training.lr:g} is the usual one")
            return training, seconds
        rate = learning_rate(
            self.model, self.task, training, self.run.within("rate"), seconds=_SECONDS_FOR_RATE, each=each
        )  # fmt: skip
        self.said.append(f"learning rate {rate:g} reaches the lowest loss in short trainings")
        return replace(training, lr=rate), seconds

    def _is_padded(self) -> bool:
        """Whether texts that get one class each are padded so much that batches of equal lengths pay."""
        found, text = lengths_of_texts(self.task), self.task.preprocessing
        if found is None or not isinstance(text, Text) or text.use is not None or text.answers:
            return False
        return 1 - float(found[0].mean()) / found[1] >= _PADDED

    def _untried(self, kind: Kind) -> tuple[LookedForm, float, str]:
        """The form that a large network of this kind mostly takes, if it can have that."""
        form: Form = "static" if kind == "convolutional network" else "dynamic"
        try:
            quantizing(form, 0.0)[0].preview(self.model, self.task, self.run.within("preview"))
        except UserError as error:
            return "float", 0.0, f"it cannot have integers: {error.errors[0].message}"
        return form, 0.0, "usual for its kind; the model is too large to be quantized on trial"

    def _form(self, kind: Kind, *, learned: bool, prunes: bool) -> tuple[LookedForm, float, str]:
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
            return "coded", max(_SHARE_PRUNED - rest, _LEAST_SHARE_PRUNED) if prunes else shares[-1], why
        for share in dict.fromkeys(shares):
            one = self._tried("coded", share, learned=True)
            if one is not None and one.keeps:
                return "coded", share, why
        if learned and (one := self._tried("weights", learned=True)) is not None and one.keeps:
            return "weights", 0.0, f"{why}, and so do fewer bits" if lossy else why
        kept = [one for one in tried if one.keeps and not one.ratio.slower]
        if kept:
            smallest = min(kept, key=lambda one: one.size)
            return smallest.form, 0.0, "the smallest that keeps the metric"
        return "float", 0.0, "every form that was tried is slower or costs accuracy"

    def _tried(self, form: LookedForm, share: float = 0.0, *, learned: bool) -> Tried | None:
        """A form of the model; None if it cannot be made."""
        titles = {"static": "quantize.Static", "dynamic": "quantize.Dynamic", "weights": "quantize.Weights"}
        title = titles.get(form, f"coded weights of {share:.0%}")
        title += ", tables of embeddings in 8 bits" if self._embeds and form in ("static", "dynamic") else ""
        self.tell(title)
        try:
            made = self.model
            for step in self._steps(form, share):
                fewer = replace(step, samples=self._samples()) if isinstance(step, RateDistortion) else step
                made = fewer(made, self.task, self.run.within(f"{form}-{share:g}/{use_of(step)}"))
            size = float(len(pack(onnx_file(made, self.task))))
        except UserError as error:
            self.said.append(f"{title}: not possible, {error.errors[0].message}")
            return None
        told, ratio = f"{title}: {size / self._float_bytes:.1%} of the bytes", Ratio(1.0, 1.0, 1.0)
        if form not in _COMPUTED_IN_FLOAT:  # the others are computed as before, and not timed
            ratio = self._watch.ratio(made)
            told += f", {ratio.median:.2f} times the milliseconds"
        if not learned:
            self.said.append(told)
            return Tried(form, size, ratio)
        keeps, words = self._judged(made)
        self.said.append(f"{told}, {words}")
        return Tried(form, size, ratio, keeps)

    def _steps(self, form: LookedForm, share: float) -> list[Step]:
        if form == "weights":
            return [WeightsAlone()]
        return quantizing(form, share * self._float_bytes, embeds=self._embeds)

    def _samples(self) -> int:
        """Few samples if they are large: each has many rows of a layer's inputs."""
        size = sum(part[0].numel() for part in tensors_of(self.task.example().inputs))
        return max(min(_SAMPLES, _ELEMENTS // max(size, 1)), _FEWER)

    def _judged(self, made: nn.Module) -> tuple[bool, str]:
        """(whether a model keeps the metric of the given one, both metrics in words), on the same validation samples.

        It does not if more than half of what the goal allows is lost, or the loss is more than chance. Without labels the given
        model is right by definition, any other one worse for certain, and only the first counts.
        """
        data = self.task.validation.drawn(_JUDGED, 0)
        metric = self.task.metric
        before, after = self._before, evaluate(made, data, self.task)
        start, value = metric.value(before), metric.value(after)
        least = Goal(max_drop=self.max_drop).least_metric(start, _HALF)
        assert least is not None, "the goal limits the metric"
        worse = self.given.labelled and value < start and metric.p_value([before], [after]) <= _CERTAIN
        keeps = value >= least and not worse
        return keeps, f"{metric.name} {start:.5g} → {value:.5g}" + ("" if keeps else ": too low")

    @property
    def max_drop(self) -> str:
        """The goal: without labels the metric is how close the outputs stay, and decisions survive more of that."""
        return _MAY_DROP if self.given.labelled else _FIDELITY_MAY_DROP

    @cached_property
    def _before(self) -> Scores:
        return evaluate(self.model, self.task.validation.drawn(_JUDGED, 0), self.task)

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
