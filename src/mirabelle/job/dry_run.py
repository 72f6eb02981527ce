"""Try model, loss, metric, trainings and steps on one batch before a run begins, so that mistakes are found at once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, at_path, gathered, is_out_of_memory, raise_all
from mirabelle.job.class_order import check_class_order
from mirabelle.job.metric_trial import (
    LOSS_OF_PROBABILITIES,
    check_axis_of_classes,
    check_broadcast,
    check_ending,
    check_targets,
    try_metrics,
)
from mirabelle.model.device import CPU, at_work, device_of_job, home
from mirabelle.model.fast_path import check_fast_path
from mirabelle.model.state import copied
from mirabelle.numerics.draws import global_draws
from mirabelle.numerics.target_shapes import unlabelled
from mirabelle.recipe.recipe import Recipe
from mirabelle.run.run import Run
from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.sources.models.onnx_graph import OnnxModule
from mirabelle.step import Preview, folder_of
from mirabelle.task.batch import Batch, Inputs, Outputs, call, in_float32, map_tensors, parts_of, tensors_of
from mirabelle.task.class_targets import check_one_hot
from mirabelle.task.goal import Goal
from mirabelle.task.loss import cross_entropy
from mirabelle.task.outputs import Form
from mirabelle.task.preprocessing.raw_inputs import Preprocessing
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.preprocessing.text import TOKENIZER, Text, vocabulary_of
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training import Training, default_objective, outputs_of, with_replaced_model_as_teacher
from mirabelle.training.sharded import check_can_be_sharded
from mirabelle.training.shared import training_of
from mirabelle.training.single_samples import only_single_samples
from mirabelle.training.teacher_targets import with_answer

_TOKENS_AT_ONCE = 4096  # texts
_FEW = 5  # number of labels shown in a message, and of samples of a loss


@dataclass(frozen=True)
class JobPlan:
    """The arguments of `compress` that determine its result."""

    model: nn.Module
    task: Task
    recipe: Recipe
    goal: Goal
    baseline: Training | None = None
    teacher: nn.Module | None = None
    teacher_train: Training | None = None

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        steps = (getattr(step, "train", None) for step in self.recipe.steps)
        return any(training is not None for training in (self.baseline, self.teacher_train, *steps))


def with_model_outputs_as_targets(task: Task, model: nn.Module) -> Task:
    """Use the outputs of a model as targets of a task without labels; a task with labels is returned unchanged.

    Args:
        task: with or without labels.
        model: the teacher, by default the model before compression; later models are compared with its outputs.

    Raises:
        UserError: E121 if the model fails on the data, or returns values that are not finite.
    """

    def outputs(data: Samples) -> Outputs:
        given = outputs_of(model, data)[0]
        _check_finite(model, given)
        return given

    if task.labelled:
        return task
    with at_path("model", "from"):
        _outputs(model, task.example())
        return task.against(outputs)


def try_one_batch(model: nn.Module, task: Task, name: str = "model") -> Outputs:
    """Check that a model fits a task: run it, the loss and the metric on one batch.

    Args:
        model: it is not changed.
        task: provides the batch.
        name: table of the recipe to which errors refer.

    Returns:
        The outputs of the model.

    Raises:
        UserError: E121 if the model fails on the data, does not return tensors, or returns values that are not finite; E131 if
            the loss or the metric fails on its outputs, or the data do not fit the inputs of an ONNX graph; E132 if a label is
            not a class of the model.
    """
    with at_path(name, "from"):
        return _tried(model, task)


def _tried(model: nn.Module, task: Task) -> Outputs:
    _check_tokens(model, task)
    if isinstance(model, HuggingFaceModel) and isinstance(task.preprocessing, Text):
        classifies = "classify" if task.labels else None
        model.check_use("answer" if task.preprocessing.answers else task.preprocessing.use or classifies)
    batch = task.example()
    outputs = _outputs(model, batch, task.preprocessing)
    if isinstance(outputs, tuple) and task.outputs.takes_one_output:
        remedy = "wrap it so that it returns its scores, or name a loss and a metric that take a tuple of outputs"
        raise UserError("E121", "the model returns a tuple, not a tensor, and the loss takes one output", remedy)
    axis = task.outputs.classes_axis
    classes = outputs.shape[axis] if task.outputs.form is Form.CLASSES and axis is not None and outputs.dim() > 1 else None
    if classes is not None and task.labels and classes != len(task.labels):
        raise UserError(
            "E132",
            f"the model has {classes} outputs, the data have {len(task.labels)} classes: {_named(task.labels)}",
            f"give the model {len(task.labels)} outputs, one for each class"
            + (', or name the loss "binary_cross_entropy" for one output of yes or no' if classes == 1 else ""),
        )
    check_class_order(model, task)
    if task.outputs.form is Form.LABELS:
        _check_scores(model, task)
    _judge(model, task, outputs, batch)
    check_fast_path(model, batch)
    return outputs


@dataclass(frozen=True)
class TriedStep:
    """What a step will do, and the seconds that its preview took."""

    preview: Preview
    seconds: float


def try_steps(plan: JobPlan) -> list[TriedStep]:
    """Try all trainings and steps on one batch: patterns must match, and the losses must fit teacher and model.

    Raises:
        UserError: the errors that the trainings and steps would raise at their beginning, with their paths in the recipe.
    """
    alone, guided = plan.task.with_teacher(None), plan.task.with_teacher(plan.teacher or plan.model)
    mistakes: list[UserError] = []
    tried: list[TriedStep] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        with gathered(mistakes, "goal"):
            plan.goal.check(plan.task.metric.name, plan.task.metric.highest)
        if plan.teacher is not None:
            with gathered(mistakes, "teacher"):
                _tried(plan.teacher, plan.task)
                _try_training(plan.teacher, alone, plan.teacher_train)
        for name, training in (("baseline", plan.baseline), ("teacher", plan.teacher_train)):
            with gathered(mistakes, name, "train"):
                if training is not None and not plan.task.labelled:
                    message = "the data have no labels, so the model cannot be trained on them"
                    raise UserError("E111", message, "start from trained weights, and leave `train` out")
        with gathered(mistakes, "baseline"):
            _try_training(plan.model, alone, plan.baseline)
        model = plan.model
        for position, step in enumerate(plan.recipe.steps):
            known = len(mistakes)
            with gathered(mistakes, "step", position):
                begin = time.perf_counter()
                preview = step.preview(model, guided, run.within(folder_of(position + 1, step)))
                tried.append(TriedStep(preview, time.perf_counter() - begin))
                under = with_replaced_model_as_teacher([step], model, guided)
                model = preview.model
                if step.stage == "replace":
                    _tried(model, plan.task)
                _try_training(preview.trained, under, training_of(preview, under))
            if step.stage == "replace" and len(mistakes) > known:
                break  # nothing can be said of steps that change a model which does not work
    raise_all(mistakes)
    return tried


def _try_training(model: nn.Module, task: Task, training: Training | None) -> None:
    """Run the model in training mode and its loss on one batch of the size of the training."""
    if training is None:
        return
    for one in (model, task.teacher):
        _check_scores(one, task)
    size = task.train.batch_size(training.batch_size)
    batch = _example(task, size)
    if size == 1:
        batch = Batch(map_tensors(batch.inputs, lambda tensor: tensor[:1]), batch.targets[:1], torch.arange(1))
    if training.targets == "teacher":
        with at_path("train"):
            batch = with_answer(task, batch)
    _train_mode(model, batch)
    objective = training.objective or default_objective(task)
    check_can_be_sharded(training, objective)
    with torch.no_grad(), global_draws():
        loss = objective.bind(model, task, batch)
        teacher = None if task.teacher is None else copied(task.teacher).eval()
        value = loss(loss.seen(copied(model).eval(), batch, teacher))
    if not bool(torch.isfinite(value)):
        message = f"the loss is {float(value)} on the first batch, before anything is trained"
        remedy = "find the term that is not finite: try `objective` with one term at a time"
        raise UserError("E121", message, remedy, path=("train",))


def _check_scores(model: nn.Module | None, task: Task) -> None:
    """Raise E131 if a model ends in a softmax or sigmoid, although the loss expects scores (logits)."""
    if model is None:
        return
    kind = task.outputs.activation
    scores = model.scores_before(kind) if isinstance(model, OnnxModule) and kind is not None else None
    if scores is not None:
        message = f"the ONNX graph ends in {kind}, but the loss takes scores, not probabilities"
        remedy = f'end it before: give the model arguments = {{ outputs = ["{scores}"] }}'
        remedy += f", or use {LOSS_OF_PROBABILITIES}" if kind == "Sigmoid" else ""
        raise UserError("E131", message, remedy, path=("train",))
    check_ending(model, task, task.example())


def _example(task: Task, count: int) -> Batch:
    """The first training samples; if there are samples without labels, one of them is included."""
    if not isinstance(task.train, Samples) or not task.outputs.classifies:
        return task.example(count)
    unknown = unlabelled(task.train.targets).nonzero().flatten()[:1]
    first = torch.arange(min(max(count, 2), len(task.train)))
    return task.train.at(torch.cat([first[: len(first) - len(unknown)], unknown]))


def _train_mode(model: nn.Module, batch: Batch) -> None:
    try:
        with torch.no_grad(), global_draws():
            call(copied(model).train(), batch.inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise only_single_samples(str(error).partition("\n")[0]) from error
        message = f"the model fails in training mode on a batch of {len(batch)}: {error}"
        remedy = "change the model or the batch size, so that it can be trained on such a batch"
        raise UserError("E121", message.splitlines()[0], remedy, path=("train",)) from error


def _outputs(model: nn.Module, batch: Batch, preprocessing: Preprocessing | None = None) -> Outputs:
    given = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors_of(batch.inputs))
    if isinstance(model, (HuggingFaceModel, OnnxModule)):
        model.check(batch.inputs)
    tried = copied(model).eval()
    device = device_of_job(tried)
    try:
        with torch.no_grad(), at_work(tried):
            outputs = home(call(tried, batch.inputs))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if isinstance(preprocessing, Table) and "shapes cannot be multiplied" in str(error):
            message = f"the model does not take the {preprocessing.shape[0]} features of each row of the table"
            raise UserError("E121", message, f"give it this width. {preprocessing.sentence}") from error
        if device != CPU and _runs(model, batch.inputs):
            message = f"the model computes on the CPU, but not on {device}: {error}"
            remedy = "make tensors that it keeps buffers (self.register_buffer), or give --device cpu"
            raise UserError("E121", message.splitlines()[0], remedy) from error
        message = f"the model fails on inputs of {given}: {error}"
        remedy = "check that shapes and dtypes fit the model; [task] arguments determine how data are read from files"
        if _runs(model, map_tensors(batch.inputs, Tensor.float)):
            remedy = "give floating-point numbers, scaled as in the training of the model, such as x.float() / 255 for images"
        raise UserError("E121", message.splitlines()[0], remedy) from error
    other = next((type(part).__name__ for part in parts_of(outputs) if not isinstance(part, Tensor)), None)
    if other is not None:
        returned = f"a tuple that contains {other}" if isinstance(outputs, tuple) else other
        remedy = "wrap it so that it returns its scores, one tensor or a tuple of tensors"
        raise UserError("E121", f"the model returns {returned}, not a tensor", remedy)
    for k, part in enumerate(parts_of(outputs)):
        if isinstance(outputs, tuple) and part.shape[:1] != (len(batch),):
            message = f"output {k} of the model has shape {tuple(part.shape)} for {len(batch)} samples"
            raise UserError("E121", message, "the first dimension of every output must be the batch")
    _check_finite(model, outputs)
    return outputs


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model computes these inputs."""
    try:
        with torch.no_grad():
            call(copied(model).eval(), inputs)
    except Exception:  # noqa: BLE001 (whatever the user's model raises)
        return False
    return True


def _check_finite(model: nn.Module, outputs: Outputs) -> None:
    if not all(bool(torch.isfinite(part).all()) for part in parts_of(outputs)):
        # −inf alone may be the mask of an attention
        where = next((name for name, tensor in model.state_dict().items() if (tensor.isnan() | tensor.isposinf()).any()), None)
        because = f'; its tensor "{where}" is not finite either' if where else ""
        masked = all(bool((part.isfinite() | part.isneginf()).all()) for part in parts_of(outputs))
        remedy = "mask scores with a large negative number, such as -1e4" if masked else "start from weights that work"
        raise UserError("E121", f"the model returns {'-inf' if masked else 'NaN or infinite values'}{because}", remedy)


def _judge(model: nn.Module, task: Task, outputs: Outputs, batch: Batch) -> None:
    try:
        if task.outputs.form is Form.CLASSES:
            check_one_hot(outputs, batch.targets)
            if task.loss_is_default and task.loss is cross_entropy:
                check_axis_of_classes(outputs, batch.targets)
        task.loss(in_float32(outputs), batch.targets)
        check_targets(outputs, task)
        few = task.example(_FEW)
        check_broadcast(task, _outputs(model, few), few.targets)
        try_metrics(model, task)
    except UserError:
        raise
    except Exception as error:
        one = isinstance(outputs, Tensor)
        if isinstance(error, IndexError):
            check_targets(outputs, task)
        targets = f"{batch.targets.dtype} {tuple(batch.targets.shape)}"
        shapes = " and ".join(str(tuple(part.shape)) for part in parts_of(outputs))
        message = f"the loss or the metric fails on outputs of {shapes} and targets of {targets}: {error}"
        remedy = "give class indices as int64, other targets as float32"
        if one and task.outputs.classes_axis == 1 and outputs.dim() > batch.targets.dim() > 1:
            remedy += ', or name the loss "token_cross_entropy" if the last axis has the classes'
        if not one:
            remedy = "name a loss and a metric that take a tuple of outputs"
        raise UserError("E131", message.splitlines()[0], remedy) from error


def _check_tokens(model: nn.Module, task: Task) -> None:
    """Raise E132 if the texts or the tokenizer contain tokens for which a transformers model has no embedding."""
    inputs = task.validation.first(1).inputs
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        return
    embedding = _embedding_of(model)
    if embedding is None:
        return
    parts = [part for part in (task.train, task.validation, task.test) if isinstance(part, Samples)]
    highest = max(int(batch.inputs["input_ids"].max()) for part in parts for batch in part.batches(_TOKENS_AT_ONCE))
    if highest >= embedding.num_embeddings:
        message = (
            f"the texts contain token {highest}, the model has {embedding.num_embeddings} tokens: "
            "the tokenizer is that of another model"
        )
        raise UserError("E132", message, "set `tokenizer` to that of the model")
    known = vocabulary_of(task.extra_files[TOKENIZER]) if TOKENIZER in task.extra_files else 0
    if known > embedding.num_embeddings:
        message = f"the tokenizer has {known} tokens, the model {embedding.num_embeddings}: it is that of another model"
        raise UserError("E132", message, "set `tokenizer` to that of the model")


def _embedding_of(model: nn.Module) -> nn.Embedding | None:
    """The table of tokens of a transformers model, if it says which one that is."""
    try:
        found = getattr(getattr(model, "model", None), "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # of architectures that do not say it
        return None
    return found if isinstance(found, nn.Embedding) else None


def _named(labels: Sequence[str]) -> str:
    few = ", ".join(labels[:_FEW])
    return few if len(labels) <= _FEW else f"{few}, …"
