"""Measure a model: parameters, multiply-accumulate operations, file sizes and metrics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from mirabelle.artifact.mira import pack
from mirabelle.codecs import Codec
from mirabelle.model.architecture import replaced_modules
from mirabelle.model.counting import macs_of
from mirabelle.model.device import check_device
from mirabelle.model.replacement import stored_tensors_of
from mirabelle.model.state import in_eval_mode, memory_of, tensors_of_module
from mirabelle.numerics.gzip_length import gzip_length
from mirabelle.numerics.statistics import Scores
from mirabelle.run.files import length_of_tensors
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import Session
from mirabelle.task.batch import Batch, call
from mirabelle.task.outputs import Form
from mirabelle.task.profile import Profile, SizeBytes
from mirabelle.task.samples import Samples, Stream
from mirabelle.task.task import Task
from mirabelle.training.evaluation import evaluation


@dataclass(frozen=True)
class Files:
    """The files of a model for deployment.

    Args:
        onnx: the canonical ONNX file.
        packed: the packed file (.mira).
    """

    onnx: bytes
    packed: bytes

    @cached_property
    def lengths(self) -> tuple[int, int, int]:
        """Bytes of the ONNX file, of the ONNX file after gzip, and of the packed file."""
        return len(self.onnx), gzip_length(self.onnx), len(self.packed)

    def without_packed(self) -> Files:
        """The same files, of whose packed one only the length is kept."""
        files = Files(self.onnx, b"")
        files.__dict__["lengths"] = self.lengths
        return files


def exported(model: nn.Module, task: Task, codecs: Sequence[Codec] = ()) -> Files:
    """Export a model to ONNX and pack it.

    Args:
        model: the model.
        task: gives example inputs, labels and preprocessing.
        codecs: codecs of the user to try in addition to those of Mirabelle.
    """
    onnx = onnx_file(model, task)
    return Files(onnx, pack(onnx, codecs))


def onnx_file(model: nn.Module, task: Task) -> bytes:
    """The canonical ONNX file of a model, with what the task says of its inputs and outputs."""
    labels = () if task.outputs.form is Form.NUMBERS else task.labels
    return export(model, task.example(), labels, task.preprocessing, outputs=task.outputs)


def measure(
    model: nn.Module, task: Task, data: Samples | Stream, files: Files, *, session: Session | None = None
) -> tuple[Profile, Scores]:
    """The profile of a model without its latency, and the scores of the task's metric for every sample of `data`.

    Args:
        model: the model.
        task: the task.
        data: the data for the metrics.
        files: the model's files.
        session: a session of the model's ONNX file, to evaluate the metrics on its outputs; None evaluates them in torch.

    In torch, the model runs in evaluation mode; the mode of each of its modules is restored.

    Raises:
        UserError: E121 if the model has tensors without values, or a metric is not finite.
    """
    check_device(model)
    metrics = (task.metric, *task.extra_metrics)
    with torch.inference_mode(), in_eval_mode(model):
        found = evaluation(partial(call, model) if session is None else session, data, task, metrics)
    measured = [metric.measured(scores, found.not_finite) for metric, scores in zip(metrics, found.scores, strict=True)]
    total, nonzero = count_parameters(model)
    profile = Profile(
        parameters=total,
        nonzero_parameters=nonzero,
        macs=multiply_accumulates(model, task.example()),
        size_bytes=sizes(model, files),
        metric=measured[0],
        others=tuple(measured[1:]),
    )
    return profile, found.scores[0]


def sizes(model: nn.Module, files: Files) -> SizeBytes:
    """The sizes of the model's files in bytes."""
    onnx, zipped, packed = files.lengths
    return SizeBytes(torch=length_of_tensors(tensors_of_module(model)), onnx=onnx, onnx_gzip=zipped, packed=packed)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(number of all, number of non-zero) weights and biases; integer codes of quantized layers count as weights."""
    tensors = weights_of(model).values()
    return sum(tensor.numel() for tensor in tensors), sum(int(tensor.count_nonzero()) for tensor in tensors)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters, and the stored tensors of replaced modules that count as parameters, by name; tied ones once."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, module in replaced_modules(model).items():
        stored = module.stored_tensors() if hasattr(module, "stored_tensors") else stored_tensors_of(module)
        found |= {f"{name}.{key}".lstrip("."): tensor.detach() for key, tensor in stored.items()}
    once: dict[Hashable, str] = {}
    for name, tensor in found.items():
        once.setdefault(memory_of(tensor), name)
    return {name: found[name] for name in once.values()}


def multiply_accumulates(model: nn.Module, example: Batch) -> int:
    """The number of multiply-accumulate operations for one sample, as `model.products` defines them."""
    return macs_of(model, example).total
