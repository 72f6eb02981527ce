"""How a model is trained: epochs, optimizer, learning rate, objective, when to stop."""

from __future__ import annotations

from typing import Literal

from mirabelle.errors import UserError
from mirabelle.objectives.objective import ObjectiveField
from mirabelle.records.record import Count, Finite, Fraction, NotNegative, Positive, record
from mirabelle.records.schedules import LearningRateSchedule

Precision = Literal["auto", "float32", "bfloat16"]
EXECUTIONS = ("float32", "float32 channels_last", "bfloat16", "bfloat16 channels_last")  # what "auto" may decide


@record
class Training:
    """Settings of one training.

    Args:
        epochs: passes over the training data (or give steps).
        steps: optimizer steps, where epochs are not given.
        batch_size: samples a step.
        optimizer: "adamw", or "sgd" with `momentum`.
        lr: the highest learning rate.
        lr_schedule: its course: "constant", "linear", "cosine" or "one-cycle".
        warmup: fraction of the training over which the learning rate rises linearly, in [0, 1).
        momentum: of SGD, in [0, 1).
        weight_decay: decoupled for AdamW, an L2 gradient for SGD.
        clip: largest norm of the gradient, or None.
        objective: the loss; by default the task's own, and classifying under a teacher
            0.9 · SoftTargets(T = 4) + 0.1 · TaskLoss.
        patience: epochs without a better validation metric after which training stops, or None.
        until: a value of the validation metric at which training stops, or None.
        keep: which weights come back: "best" on validation, or "last".
        precision: of the forward pass; "auto" measures a few steps and takes what is fastest.
        targets: what is learned: those of the "data", or the "teacher"'s answers in their place: the sequences that it writes,
            which is sequence-level distillation (Kim, Rush 2016, arXiv:1606.07947), or its decisions.
        teacher_cache: bytes that features of the teacher may take on disk, all views of the data together; where they would
            take more, the teacher runs with every batch.

    Raises:
        UserError: E110 out of range, E111 both or neither of epochs and steps.

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

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError(
                "E111", f"give epochs or steps, one of them; got epochs={self.epochs}, steps={self.steps}", "epochs = 5, say"
            )
