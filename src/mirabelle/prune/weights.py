"""Pruning single weights: by sparsity, by threshold, or by a multiple of each layer's standard deviation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mirabelle.architecture import architecture_of, attach
from mirabelle.errors import UserError, require_between
from mirabelle.numerics.masks import keep_above, keep_highest, keep_highest_together
from mirabelle.objectives import Objective
from mirabelle.patterns import selected
from mirabelle.plain import record
from mirabelle.run import Run
from mirabelle.schedules import Gradual, ScheduleField
from mirabelle.scores import Evidence, Magnitude
from mirabelle.scores.score import ScoreField
from mirabelle.step import Control, Stage
from mirabelle.task import Task
from mirabelle.training import Training, train_together


@record
class Weights:
    """Removes the weights of lowest score; their positions stay zero in every later training.

    One of three amounts:
        sparsity s      the floor(s · n) lowest of each tensor, or of all together (`scope = "global"`);
        threshold t     every weight with score ≤ t;
        quality q       every weight with score ≤ q · σ, σ the standard deviation of its tensor before pruning (Han 2015).

    Args:
        sparsity: fraction removed, in [0, 1).
        threshold: score at or below which a weight goes, > 0.
        quality: factor of the standard deviation, > 0.
        scope: rank within each "layer", or "global" over all targets (sparsity only).
        targets: patterns of parameter names; by default all weights of two or more dimensions (no biases, no norms).
        ignore: patterns of parameter names that are left alone.
        schedule: "one-shot" prunes before training; "constant", "linear", "cubic" or a table `{begin, end, initial, power,
            frequency}` prune while it trains (Zhu & Gupta 2017; see `schedules.Gradual`).
        score: what matters least; magnitude by default.
        train: the training in which, or after which, the rest recovers; None prunes and leaves it at that.

    Raises:
        UserError: E110 out of range, E111 not exactly one amount or a schedule without training, E112 a pattern that
            matches nothing.

    Example:
        >>> import mirabelle, torch
        >>> layer = torch.nn.Linear(4, 2)
        >>> x, y = torch.randn(20, 4), torch.zeros(20).long()
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> pruned = Weights(sparsity=0.75)(layer, task, mirabelle.Run("unused"))
        >>> int((pruned.weight == 0).sum()), int((layer.weight == 0).sum())
        (6, 0)

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626; Zhu & Gupta 2017, arXiv:1710.01878.
    """

    stage: ClassVar[Stage] = "thin"

    sparsity: float | None = None
    threshold: float | None = None
    quality: float | None = None
    scope: Literal["layer", "global"] = "layer"
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    schedule: ScheduleField = "one-shot"
    score: ScoreField = Magnitude()
    train: Training | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("sparsity", "threshold", "quality") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(
                "E111", f"give one of sparsity, threshold and quality; got {', '.join(given) or 'none'}", "sparsity = 0.9, say"
            )
        if self.sparsity is not None:
            require_between(
                "sparsity", self.sparsity, 0, 1, high_open=True, remedy="to remove a layer altogether, change the model"
            )
        for name in ("threshold", "quality"):
            if getattr(self, name) is not None:
                require_between(name, getattr(self, name), 0, float("inf"), low_open=True)
        if self.scope == "global" and self.sparsity is None:
            raise UserError(
                "E111", f'scope = "global" ranks weights, but {given[0]} does not rank', "leave scope out, or give sparsity"
            )

    @property
    def needs_training(self) -> bool:
        """Whether the schedule is one that only a training can follow."""
        return self.schedule != "one-shot"

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        if self.train is not None:
            return train_together((self,), self.train, model, task, run)
        if self.needs_training:
            raise UserError("E111", "a gradual schedule needs a training", 'give `train`, or schedule = "one-shot"')
        return self.finish(self.prepare(model, task, run))

    def prepare(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        del task, run
        model = copy.deepcopy(model)
        if self.schedule == "one-shot":
            Pruning(self, model).prune(model, self.amount)
        return model

    def terms(self) -> Objective | None:
        return None

    def controls(self, model: nn.Module) -> Sequence[Control]:
        return () if self.schedule == "one-shot" else (Pruning(self, model),)

    def finish(self, model: nn.Module) -> nn.Module:
        return model

    @property
    def amount(self) -> float:
        """The one that was given of sparsity, threshold and quality."""
        return next(float(value) for value in (self.sparsity, self.threshold, self.quality) if value is not None)


class Pruning:
    """The control that removes weights as its step asks, more and more as the training progresses."""

    def __init__(self, step: Weights, model: nn.Module) -> None:
        self._step = step
        self._model = model
        self._schedule = Gradual.named("constant") if step.schedule == "one-shot" else Gradual.of(step.schedule)
        chosen = selected(model, step.targets, step.ignore)
        # A tensor of zeros alone, such as a fresh bias, has nothing to rank: it trains as ever.
        self._names = [name for name, parameter in chosen.items() if bool(parameter.any())]
        self._deviations = {name: float(chosen[name].detach().std(correction=0)) for name in self._names}
        self._calls = 0
        self._last = 0.0
        self._prunings = 0
        self._finished = False

    def __call__(self, model: nn.Module, progress: float) -> bool:
        self._calls += 1
        schedule = self._schedule
        first_at_final = self.settled(progress) and not self._finished
        if not (first_at_final or schedule.due(self._calls, progress, self._last)):
            return False
        self._last = progress
        self._finished = self.settled(progress)
        self.prune(model, schedule.at(progress, self._step.amount))
        return True

    def settled(self, progress: float) -> bool:
        return progress >= self._schedule.end

    @torch.no_grad()
    def prune(self, model: nn.Module, amount: float) -> None:
        """Zero the weights of lowest score and record their tensors as pruned."""
        parameters = dict(model.named_parameters())
        scores = [self._step.score(parameters[name], Evidence(name)) for name in self._names]
        for name, mask in zip(self._names, self._masks(scores, amount), strict=True):
            parameters[name].mul_(mask)
        attach(model, architecture_of(model).with_pruned(self._names))
        self._prunings += 1

    def state_dict(self) -> dict[str, int | float]:
        return {"calls": self._calls, "last": self._last, "prunings": self._prunings, "finished": int(self._finished)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._calls, self._last = state["calls"], state["last"]
        self._prunings, self._finished = state["prunings"], bool(state["finished"])
        if self._prunings:
            attach(self._model, architecture_of(self._model).with_pruned(self._names))

    def _masks(self, scores: list[Tensor], amount: float) -> list[Tensor]:
        step = self._step
        if step.threshold is not None:
            return [keep_above(score, amount) for score in scores]
        if step.quality is not None:
            pairs = zip(self._names, scores, strict=True)
            return [keep_above(score, amount * self._deviations[name]) for name, score in pairs]
        if step.scope == "global":
            return keep_highest_together(scores, amount)
        return [keep_highest(score, amount) for score in scores]
