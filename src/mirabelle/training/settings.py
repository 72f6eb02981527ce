"""Settings of a training: epochs, optimizer, learning rate, objective, early stopping."""

from __future__ import annotations

from typing import Literal

from mirabelle.errors import UserError
from mirabelle.objectives.objective import ObjectiveField
from mirabelle.records.record import Count, Finite, Fraction, NotNegative, Positive, record
from mirabelle.records.schedules import LearningRateSchedule

Precision = Literal["auto", "float32", "bfloat16", "float16"]
EXECUTIONS = tuple(
    f"{precision}{layout}{compiled}"
    for precision in ("float32", "bfloat16", "float16")
    for layout in ("", " channels_last")
    for compiled in ("", " compiled")
)  # what a training may decide


@record
class Training:
    """Settings of one training.

    Args:
        epochs: number of passes over the training data; give either epochs or steps.
        steps: number of optimizer steps.
        batch_size: number of samples in a batch.
        optimizer: "adamw", or "sgd" with `momentum`.
        lr: highest learning rate.
        lr_schedule: learning rate schedule: "constant", "linear", "cosine" or "one-cycle".
        warmup: fraction of the training over which the learning rate rises linearly, in [0, 1).
        momentum: momentum of SGD, in [0, 1).
        weight_decay: weight decay: decoupled for AdamW, added to the gradient (L2) for SGD.
        clip: gradient clipping: the largest norm of the gradient; None for no clipping.
        objective: the loss; by default that of the task, and for classification with a teacher
            0.9 · SoftTargets(T = 4) + 0.1 · TaskLoss.
        patience: early stopping: the number of epochs without a better validation metric; None for no early stopping.
        until: value of the validation metric at which training stops; None for no such value.
        keep: the weights to return: the "best" by the validation metric, or the "last".
        precision: precision of the forward pass; "auto" measures a few steps and uses the fastest of "float32" and "bfloat16",
            or of "float32" and "float16" on an accelerator without bfloat16. With "float16" losses are scaled, so that small
            gradients are not lost.
        targets: the training targets: those of the "data", or instead predictions of the "teacher": its classes, or the
            sequences that it generates, which is sequence-level distillation (Kim, Rush 2016, arXiv:1606.07947).
        teacher_cache: most bytes on disk for cached features of the teacher, for all views of the data together; if they need
            more, the teacher runs on every batch.

        group_by_length: texts of similar lengths share a batch, and batches end with their longest text; a training on short
            texts that were padded to one length takes half of the time or less. Models must not have outputs for each token.
        micro_batch: most samples in memory at once: a larger batch is taken in parts, whose gradients are added up. Batch
            norms, and terms that compare samples, see the parts. None takes whole batches; if memory does not suffice for the
            first one, parts are halved until it does.
        recompute: activation checkpointing: blocks keep their inputs alone and are computed again in the backward pass, which
            takes less memory and about a third more time, and gives the same weights.
        compile: whether the model compiled by torch.compile is measured, too, and taken where it is faster.
        sync_batch_norm: whether batch norms of several processes have common statistics, as if one process had the whole batch.
            Otherwise each normalizes by its own part, and the statistics of the first are kept.
        shard: whether weights, gradients and optimizer state are divided among several processes, for models that do not fit
            one device (torch's FSDP2); the result is the same up to rounding. "auto" then takes bfloat16 on accelerators that
            have it, unmeasured. Steps that act between optimizer steps, and terms that read weights, are refused. A single
            process trains as without it.

    Raises:
        UserError: E110 if a value is out of range, E111 if both or neither of epochs and steps are given, if both `compile` and
            `recompute` are, if `shard` is given with `compile` or float16, or texts cannot be grouped by length.

    Example:
        >>> Training(epochs=3, lr=2e-3).optimizer
        'adamw'
    """

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    lr_schedule: LearningRateSchedule = "cosine"
    warmup: Fraction = 0.0
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0
    clip: Positive | None = None
    objective: ObjectiveField | None = None
    patience: Count | None = None
    until: Finite | None = None
    keep: Literal["best", "last"] = "best"
    precision: Precision = "auto"
    targets: Literal["data", "teacher"] = "data"
    teacher_cache: Count = 512 * 1024**2
    group_by_length: bool = False
    micro_batch: Count | None = None
    recompute: bool = False
    compile: bool = False
    sync_batch_norm: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError(
                "E111",
                f"give either epochs or steps; got epochs={self.epochs}, steps={self.steps}",
                "for example: epochs = 5",
            )
        if self.compile and self.recompute:
            message = (
                "compile and recompute exclude each other: blocks that are computed again are compiled again at every step"
            )
            raise UserError("E111", message, "leave one of them out")
        if self.shard and self.compile:
            message = "shard and compile exclude each other: a model in shards is not compiled"
            raise UserError("E111", message, "leave one of them out", path=("shard",))
        if self.shard and self.precision == "float16":
            message = 'shard and precision = "float16" exclude each other: losses of a model in shards are not scaled'
            raise UserError("E111", message, 'write precision = "bfloat16" or "float32"', path=("shard",))
