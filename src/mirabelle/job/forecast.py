"""Forecast the effect and the cost of a recipe within seconds: preview all steps, and time a few optimizer steps."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.errors import UserError
from mirabelle.inspection.measure import Files, count_parameters, exported, multiply_accumulates, sizes, weights_of
from mirabelle.job.conditions import Conditions
from mirabelle.job.dry_run import JobPlan, TriedStep, try_one_batch, try_steps
from mirabelle.job.learned import REMEDY, nothing_learned, standing
from mirabelle.job.metric_trial import unknown_loss
from mirabelle.job.notes import notes_of
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.run.files import length_of_tensors
from mirabelle.run.run import Run
from mirabelle.runtime.latency import Ratio
from mirabelle.runtime.runtime import time_side_by_side
from mirabelle.step import Preview, use_of
from mirabelle.task.batch import parts_of, tensors_of
from mirabelle.task.goal import Shortfall
from mirabelle.task.profile import Profile
from mirabelle.task.reading_cost import Reading
from mirabelle.task.samples import Samples, Stream
from mirabelle.task.task import Task
from mirabelle.training import Training, default_objective, evaluate, fit, outputs_of, with_replaced_model_as_teacher
from mirabelle.training.shared import training_of
from mirabelle.training.single_samples import why_not_one_sample

_WARM_STEPS, _TIMED_STEPS = 2, 8
_TRIES, _PLAIN = 3, 0.05  # timings of both, until the difference is this share of the longer one
_VALIDATED = 200  # number of samples by which a model is judged
_TIMED_SAMPLES = 64  # number of samples with which evaluation is timed
_LATENCY_SECONDS = 1.0
_STATE = {"adamw": 2, "sgd": 1}  # size of the optimizer state, as a multiple of the parameters
_REPORT_BYTES = 300_000  # approximate size of report, model card and journal


@dataclass(frozen=True)
class StepForecast:
    """The forecast of one step.

    Args:
        name: of the step.
        description: sentences on what the step does to the model.
        seconds: estimated duration.
        optimizer_steps: number of optimizer steps of its training.
        parameters: number of parameters of the model after the step.
        nonzero_parameters: number of non-zero parameters of the model after the step.
    """

    name: str
    description: tuple[str, ...]
    seconds: float
    optimizer_steps: int
    parameters: int
    nonzero_parameters: int


@dataclass(frozen=True)
class Forecast:
    """The forecast of a whole recipe.

    Args:
        inputs, outputs: shapes of the inputs and outputs of the model for a batch of two samples.
        samples: lengths of the splits.
        reading: how the samples of the splits are read, and what it costs.
        steps: forecasts of teacher, baseline and all steps.
        seconds: duration of the run, estimated from timed optimizer steps, with the making of files from which data are read.
        memory_bytes: peak memory of the process, measured while it trained on a batch, plus the size of checkpoints.
        disk_bytes: largest size of the folder of the run.
        start, end: profiles without metric, before and after compression; sizes and latency after compression are those of
            the previewed model, which is not trained.
        latency: ratio of the latencies after and before compression.
        shortfalls: parts of the goal that the previewed model does not meet.
        emptied: names of tensors that would lose all weights.
        remarks: warnings, for example that there is too little memory, or that the model does not become faster; and what was
            left out or changed while the data were read, see `Task.notes`.
    """

    inputs: str
    outputs: str
    samples: dict[str, int]
    reading: dict[str, Reading]
    steps: Sequence[StepForecast]
    seconds: float
    memory_bytes: int
    disk_bytes: int
    start: Profile
    end: Profile
    latency: Ratio
    shortfalls: Sequence[Shortfall]
    emptied: Sequence[str]
    remarks: Sequence[str]

    def to_data(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        reading = {split: one.to_data() for split, one in self.reading.items()}
        return {**data, "reading": reading, "shortfalls": [shortfall.to_data() for shortfall in self.shortfalls]}

    def reading_in_words(self) -> list[tuple[str, str]]:
        """(names of splits that are read alike, how)."""
        words = {split: one.in_words() for split, one in self.reading.items()}
        alike = {own: [split for split in words if words[split] == own] for own in words.values()}
        return [(", ".join(splits), own) for own, splits in alike.items()]


def forecast(plan: JobPlan, *, free_memory: int | None = None, free_disk: int | None = None) -> Forecast:
    """Forecast a run.

    Args:
        plan: the arguments of the run.
        free_memory, free_disk: available bytes, for the remarks.

    Raises:
        UserError: the errors that the run would raise at its beginning, or at the beginning of one of its steps.
    """
    outputs = try_one_batch(plan.model, plan.task)
    tried = try_steps(plan)
    example = plan.task.example()
    unlearned = _unlearned(plan)
    splits = {"train": plan.task.train, "validation": plan.task.validation, "test": plan.task.test}
    reading = {name: data.reading() for name, data in splits.items()}
    task = plan.task.with_teacher(plan.teacher or plan.model)
    if plan.model in unlearned:
        task = task.without_lessons_of(plan.model)
    with tempfile.TemporaryDirectory() as folder:
        steps, models, trainings = _previewed(plan, tried, task, Run(folder))
    begin = time.perf_counter()
    before, after = exported(plan.model, task), exported(models[-1], task)
    exporting, evaluating = (time.perf_counter() - begin) / 2, _evaluation_seconds(plan.model, task)
    begin = time.perf_counter()
    start, end, ratio = _profiles((plan.model, before), (models[-1], after), task, Conditions.of(plan.goal, task))
    rest = _rest(len(plan.recipe.steps), len(steps), exporting, evaluating, time.perf_counter() - begin)
    goal = dataclasses.replace(plan.goal, max_drop=None, metric=None)
    found = Forecast(
        inputs=", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(example.inputs)),
        outputs=", ".join(str(tuple(part.shape)) for part in parts_of(outputs)),
        samples={name: len(data) for name, data in splits.items()},
        reading=reading,
        steps=steps,
        seconds=sum(step.seconds for step in steps) + rest + _making_seconds(reading.values()),
        memory_bytes=_peak_memory() + max((_checkpoint_bytes(part) for part in trainings), default=0),
        disk_bytes=_disk_bytes(models, trainings, after, task),
        start=start,
        end=end,
        latency=ratio,
        shortfalls=goal.shortfalls(start, end),
        emptied=_emptied(models[-1]),
        remarks=(),
    )
    unknown = [sentence] if trainings and (sentence := unknown_loss(task)) else []
    remarks = [*unlearned.values(), *unknown, *_remarks(found, free_memory, free_disk), *_left_out(plan), *notes_of(plan)]
    return dataclasses.replace(found, remarks=remarks)


def _rest(steps: int, saved: int, exporting: float, evaluating: float, timing: float) -> float:
    """Seconds of what is neither a step nor a training, given those of one export, evaluation and comparison of latencies.

    The model at the start and the result of each step are exported, the latter also before it is saved, to be timed.
    All are evaluated, the first and the last twice. Each result is timed beside the model before it, the last one beside the
    first, too.
    """
    return (saved + steps + 1) * exporting + (saved + 2) * evaluating + (steps + 1) * timing


def _unlearned(plan: JobPlan) -> dict[nn.Module, str]:
    """The models that would begin without having learned anything, judged on a few validation samples, with a sentence each."""
    few, found = plan.task.validation.drawn(_VALIDATED, 0), {}
    if plan.baseline is None and not (own := standing(plan.model, plan.task, few)).learned:
        found[plan.model] = f"{nothing_learned('The model to compress', own)}. {REMEDY}."
    if plan.teacher is not None and plan.teacher_train is None and not (own := standing(plan.teacher, plan.task, few)).learned:
        found[plan.teacher] = f"{nothing_learned('The teacher', own)}."
    return found


def _making_seconds(reading: Iterable[Reading]) -> float:
    """Seconds in which the files are made from which splits are read; several splits may be read from the same one."""
    return sum({one.place: one.seconds for one in reading if one.how == "file"}.values())


@dataclass(frozen=True)
class _Trained:
    """A training, with its model and task."""

    model: nn.Module
    training: Training
    task: Task


def _previewed(
    plan: JobPlan, tried: Sequence[TriedStep], task: Task, run: Run
) -> tuple[list[StepForecast], list[nn.Module], list[_Trained]]:
    """The forecasts of teacher, baseline and steps; the model after each step; and all trainings."""
    steps: list[StepForecast] = []
    models: list[nn.Module] = []
    trainings: list[_Trained] = []

    def look(name: str, preview: Preview, on: Task) -> None:
        training: Training | None = training_of(preview, on)
        seconds, count = (0.0, 0) if training is None else _training_seconds(preview.trained, on, training, run.within(name))
        steps.append(StepForecast(name, preview.description, seconds, count, *count_parameters(preview.model)))
        if training is not None:
            trainings.append(_Trained(preview.trained, training, on))

    if plan.teacher is not None and plan.teacher_train is not None:
        look("teacher", Preview(plan.teacher, ("is trained",), plan.teacher_train), task.with_teacher(None))
    if plan.baseline is not None:
        look("baseline", Preview(plan.model, ("the model is trained",), plan.baseline), task.with_teacher(None))
    model = plan.model
    for step, found in zip(plan.recipe.steps, tried, strict=True):
        preview = found.preview
        under = with_replaced_model_as_teacher([step], model, task)
        look(use_of(step), preview, under)
        taken = found.seconds + preview.more_seconds
        steps[-1] = dataclasses.replace(steps[-1], seconds=steps[-1].seconds + taken)
        model = preview.model
        models.append(model)
    return steps, models, trainings


def _training_seconds(model: nn.Module, task: Task, training: Training, run: Run) -> tuple[float, int]:
    """(seconds, optimizer steps) of a training, estimated by timing a few optimizer steps on a copy of the model."""
    small = _small(task, training)

    def timed(count: int) -> float:
        few = dataclasses.replace(training, epochs=None, steps=count, keep="last", patience=None, until=None)
        (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        begin = time.perf_counter()
        fit(copied(model), small, few, run)
        return time.perf_counter() - begin

    timed(1)  # chooses the execution and caches the teacher
    short = long = math.inf
    for _ in range(_TRIES):  # on a busy machine, the longer one may have been the faster one
        short, long = min(short, timed(_WARM_STEPS)), min(long, timed(_WARM_STEPS + _TIMED_STEPS))
        if long - short > _PLAIN * long:
            break
    per_epoch = task.train.steps(training.batch_size)
    reading = task.train.reading()
    own = reading.seconds / per_epoch if reading.how == "source" else 0.0  # of a batch, which is read beside a step
    step_seconds = max(long - short, own * _TIMED_STEPS, 0.0) / _TIMED_STEPS
    total = training.steps or (training.epochs or 0) * per_epoch
    epochs = max(1, round(total / per_epoch))
    asked = _guided(task, training) or training.targets == "teacher"
    teaching = (
        _evaluation_seconds(task.teacher, task) * len(task.train) / len(task.validation) if asked and task.teacher else 0.0
    )
    return total * step_seconds + epochs * _evaluation_seconds(model, task) + teaching, total


def _guided(task: Task, training: Training) -> bool:
    """Whether the training uses, and so caches, the outputs of the teacher."""
    return task.teacher is not None and (training.objective or default_objective(task)).needs_teacher


def _small(task: Task, training: Training) -> Task:
    """The task with only as many samples as the timed optimizer steps need."""
    count = (_WARM_STEPS + _TIMED_STEPS) * training.batch_size
    return task.replace(train=task.train.drawn(count, 0), validation=task.validation.drawn(2, 0))


def _evaluation_seconds(model: nn.Module, task: Task) -> float:
    few: Samples = task.validation.drawn(_TIMED_SAMPLES, 0)
    evaluate(model, task.validation.drawn(2, 0), task)
    begin = time.perf_counter()
    evaluate(model, few, task)
    return (time.perf_counter() - begin) * len(task.validation) / len(few)


def _profiles(
    start: tuple[nn.Module, Files], end: tuple[nn.Module, Files], task: Task, timed: Conditions
) -> tuple[Profile, Profile, Ratio]:
    """Measure both models, without the metric."""
    first, last = (timed.load(form.onnx) for _, form in (start, end))
    *latencies, ratio = time_side_by_side(first, last, timed.inputs, batch=timed.batch, seconds=_LATENCY_SECONDS)
    profiles = []
    for (model, files), latency in zip((start, end), latencies, strict=True):
        total, nonzero = count_parameters(model)
        macs = multiply_accumulates(model, task.example())
        profiles.append(Profile(total, nonzero, macs, sizes(model, files), latency_ms=latency))
    return profiles[0], profiles[1], ratio


def _checkpoint_bytes(part: _Trained) -> int:
    """The size of a checkpoint: weights, best weights and optimizer state."""
    weights = length_of_tensors(tensors_of_module(part.model))
    return weights * (2 + _STATE[part.training.optimizer])


def _disk_bytes(models: Sequence[nn.Module], trainings: Sequence[_Trained], after: Files, task: Task) -> int:
    kept = sum(length_of_tensors(tensors_of_module(model)) for model in models)
    # A new checkpoint is written before the previous one is deleted. Outputs of the teacher are cached in float32.
    checkpoint = 2 * max(map(_checkpoint_bytes, trainings), default=0)
    cache = 0
    if task.teacher is not None and any(_guided(part.task, part.training) for part in trainings):
        outputs = outputs_of(task.teacher, task.validation.drawn(1, 0))[0]
        cache = len(task.train) * sum(part.numel() for part in parts_of(outputs)) * 4
    return kept + checkpoint + cache + len(after.onnx) + len(after.packed) + _REPORT_BYTES


def _peak_memory() -> int:
    """Peak memory of this process in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _emptied(model: nn.Module) -> list[str]:
    return [name for name, tensor in weights_of(model).items() if tensor.dim() > 1 and not bool(tensor.any())]


def _left_out(plan: JobPlan) -> list[str]:
    """A sentence on a last batch of one sample on which the model cannot be trained."""
    train = plan.task.train
    single = plan.trains and isinstance(train, Stream) and train.ends_with_one
    why = why_not_one_sample(plan.model, plan.task.example()) if single else None
    return [f"The last batch of each epoch has one sample and is left out of the training: {why}."] if why else []


def _remarks(found: Forecast, free_memory: int | None, free_disk: int | None) -> list[str]:
    remarks = [f"{name} would lose all its weights, so no information would pass through it." for name in found.emptied]
    if found.end.nonzero_parameters < 0.9 * found.end.parameters:
        remarks.append("Zeros inside dense tensors make the packed file smaller, but not the computation faster.")
    if found.latency.low > 1:
        remarks.append(f"The compressed model would be slower here: {found.latency.in_words()}.")
    elif found.latency.high >= 1:
        remarks.append(f"No gain in latency is to be expected here: {found.latency.in_words()}.")
    before, after = found.start.size_bytes, found.end.size_bytes
    if before.onnx is not None and after.onnx is not None and after.onnx > before.onnx:
        remarks.append("The ONNX file would grow: quantization adds more to the graph than it saves on the weights.")
    remarks += [f"The goal on {shortfall.name} would be missed: {shortfall}." for shortfall in found.shortfalls]
    if free_memory is not None and found.memory_bytes > free_memory:
        remarks.append(f"Memory may run out: about {found.memory_bytes / 1e9:.1f} GB needed, {free_memory / 1e9:.1f} GB free.")
    if free_disk is not None and found.disk_bytes > free_disk:
        remarks.append(f"The disk is too full: about {found.disk_bytes / 1e6:.0f} MB needed, {free_disk / 1e6:.0f} MB free.")
    return remarks


def folder_space(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    try:
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError("E151", f"{folder} cannot be used: {error.strerror}", "choose another --out") from error
