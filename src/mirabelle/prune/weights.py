"""Unstructured pruning of single weights, by a sparsity, a threshold or a multiple of each tensor's standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.errors import UserError
from mirabelle.records.record import Count, Fraction, Patterns, Positive, Share, record
from mirabelle.records.schedules import Gradual, ScheduleField
from mirabelle.scores import Magnitude, Movement
from mirabelle.scores.score import LayerScore, ScoreField
from mirabelle.step import Preview, Stage
from mirabelle.training import Training
from mirabelle.training.contracts import Control, Prepared

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.prune.weight_masks import RemovedWeights
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

_RULES: tuple[Literal["sparsity", "threshold", "quality", "pattern"], ...] = ("sparsity", "threshold", "quality", "pattern")
_CALIBRATED = 128  # number of samples for a score of layers without a number of its own
_ADDED_UP = {"gradient"}  # what scores may need that are added up over a training
_PREVIEWED = 16  # number of samples for the score in a preview


@record
class Weights:
    """Unstructured pruning: sets the weights of lowest score to zero; they stay zero in all later trainings.

    One of four amounts is given:
        sparsity s      prunes the floor(s · n) lowest of the n weights of each tensor, or of all tensors (`scope =
        "global"`); threshold t     prunes all weights with score ≤ t; quality q       prunes all weights with score ≤ q · σ,
        where σ is the standard deviation of the tensor before pruning
                        (Han 2015);
        pattern "n:m"   keeps the n highest of each m neighbouring weights of a row, for kernels of hardware, such as "2:4".

    With the scores `Wanda` and `SparseGPT`, layers are pruned one-shot in the order in which they run, each by the inputs
    that the pruned layers before it give; `SparseGPT` also changes the weights that are kept. Both need no labels and no
    training.

    Args:
        sparsity: fraction removed, in [0, 1).
        threshold: weights with scores up to this value are pruned, > 0.
        quality: threshold as a multiple of the standard deviation, > 0.
        pattern: "n:m", 0 < n < m.
        scope: how a sparsity is divided. "layer": the same for each tensor; "global": one ranking over all selected tensors;
            "erk", Erdős–Rényi: a tensor with sizes dᵢ keeps ε · Σ dᵢ weights, so that narrow layers lose less; "lamp": one
            ranking of s² / Σ of the squares of all scores of the tensor that are not smaller, which divides by the error that
            each layer makes.
        floor: with scope = "global", a tensor of n weights keeps at least ⌈floor · (1 − s) · n⌉, so that no layer is emptied;
            the others lose more instead. 1 is the same sparsity for all, 0 no floor.
        include: patterns of parameter names; by default the parameters to which the score applies: for most scores, all with
            two or more dimensions (no biases, no norms).
        exclude: patterns of names of parameters that are not pruned.
        schedule: "one-shot" prunes before the training; "constant", "linear", "cubic" or a table `{begin, end, initial,
            power, frequency}` prune during the training (Zhu & Gupta 2017; see `Gradual`).
        block: (rows, columns): with a sparsity, whole blocks of each weight as a matrix of its first axis and all others are
            kept or pruned, by their mean score, such as (1, 4) or (8, 8). The sparsity is then the fraction of the blocks,
            floor(s · blocks), and those at the ends may be smaller.
        revive: with a gradual schedule, pruned weights keep learning until it ends, and return where their score is among the
            highest again (dynamic network surgery). Made for weights that are pruned before they have learned, as in the
            fine-tuning of a pre-trained model; on a trained LeNet-300-100 it changed nothing at 98 to 99 %.
        rounds: iterative pruning: so many rounds, each of which prunes the same share of the weights that are left, and trains
            with the whole `train`, whose learning rate begins anew (learning-rate rewinding).
        rewind: with which weights the trainings of the rounds begin: "learning-rate" with those that the training before has
            left; "weights" with the given ones, as far as they are not pruned. What is pruned is then found by training the
            given model first. Made for networks that have trained little: with `[baseline] train = {epochs = 1}` it finds
            lottery tickets.
        score: importance of weights; magnitude by default. A score that needs data is computed once and requires "one-shot";
            with `revive`, scores that need the gradient are added up over the training instead (`Movement`).
        train: training during or after pruning (fine-tuning); None for no training.

    Raises:
        UserError: E110 for a value out of range; E111 for rounds without a sparsity or a training, or with a gradual schedule;
            E131 if inputs of a layer are NaN or infinite (`Wanda`, `SparseGPT`); E111
            if not exactly one amount is given, or for a gradual schedule without a training, with one that divides weights
            (`shard`), or with a score that needs data;
            E112 if a pattern matches nothing, or a parameter to which the score does not apply.

    Example:
        >>> import mirabelle, torch
        >>> layer = torch.nn.Linear(4, 2)
        >>> x, y = torch.randn(20, 4), torch.zeros(20).long()
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> pruned = Weights(sparsity=0.75)(layer, task, mirabelle.Run("runs/example"))
        >>> int((pruned.weight == 0).sum()), int((layer.weight == 0).sum())
        (6, 0)

    Source: Han, Pool, Tran, Dally 2015, arXiv:1506.02626; Zhu & Gupta 2017, arXiv:1710.01878;
    Evci et al. 2020, arXiv:1911.11134 (Erdős–Rényi); Lee et al. 2021, arXiv:2010.07611 (LAMP);
    Gupta et al. 2022, arXiv:2209.14624 (a floor of each layer); Zhou et al. 2021, arXiv:2102.04010 (patterns); Guo, Yao, Chen
    2016, arXiv:1608.04493 (weights that return); Lagunas et al. 2021, arXiv:2109.04838 (blocks); Renda, Frankle, Carbin 2020,
    arXiv:2003.02389 (rewinding).
    """

    stage: ClassVar[Stage] = "thin"

    sparsity: Fraction | None = None
    threshold: Positive | None = None
    quality: Positive | None = None
    pattern: str | None = None
    scope: Literal["layer", "global", "erk", "lamp"] = "layer"
    floor: Share = 0.1
    include: Patterns = ()
    exclude: Patterns = ()
    block: tuple[Count, Count] | None = None
    revive: bool = False
    schedule: ScheduleField = "one-shot"
    rounds: Count = 1
    rewind: Literal["learning-rate", "weights"] = "learning-rate"
    score: ScoreField = Magnitude()
    train: Training | None = None

    def __post_init__(self) -> None:
        given = [name for name in _RULES if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(
                "E111",
                f"give one of sparsity, threshold, quality and pattern; got {', '.join(given) or 'none'}",
                "give, for example, sparsity = 0.9 alone",
            )
        if self.scope != "layer" and self.sparsity is None:
            raise UserError(
                "E111",
                f'scope = "{self.scope}" ranks weights, but {given[0]} does not rank',
                "leave scope out, or give sparsity",
                path=("scope",),
            )
        if self._iterative and (self.sparsity is None or self.train is None or self.needs_training):
            wrong = "a gradual schedule" if self.needs_training else "no training" if self.train is None else given[0]
            message = f"rounds prune a share of what is left and then train; got {wrong}"
            raise UserError("E111", message, 'give sparsity and train, and schedule = "one-shot"', path=("rounds",))
        self.of_each  # noqa: B018 (checks the pattern)
        if self.pattern is not None and self.needs_training:
            raise UserError(
                "E111", "a pattern is set at once, and a gradual schedule is not", 'schedule = "one-shot"', path=("schedule",)
            )
        if isinstance(self.score, LayerScore) and (self.scope != "layer" or {"threshold", "quality"} & set(given)):
            raise UserError(
                "E111",
                f"{type(self.score).__name__} prunes layer by layer, by a sparsity or a pattern; got "
                + (f"{given[0]}" if self.scope == "layer" else f'scope = "{self.scope}"'),
                'give sparsity, and leave scope out, or score = "ActivationNorm"',
                path=("score",),
            )
        if self.block is not None and (self.sparsity is None or isinstance(self.score, LayerScore)):
            by = given[0] if self.sparsity is None else type(self.score).__name__
            message = f"blocks are ranked by their mean score, and {by} ranks nothing but weights"
            raise UserError("E111", message, "give sparsity and another score, or leave block out", path=("block",))
        if isinstance(self.score, Movement) and (self.sparsity is None or self.scope == "lamp"):
            by = given[0] if self.sparsity is None else 'scope = "lamp"'
            message = f"the scores of Movement have both signs, so they can be ranked, and {by} does not rank them"
            raise UserError("E111", message, "give sparsity, with another scope", path=("score",))
        if self.revive and not self.needs_training:
            message = "weights return during a gradual schedule, and one-shot pruning has none"
            raise UserError("E111", message, 'for example schedule = "cubic"', path=("revive",))
        if self.needs_training:
            self._check_gradual()

    def _check_gradual(self) -> None:
        if self.score.needs - (_ADDED_UP if self.revive else set()):
            raise UserError(
                "E111",
                f"{type(self.score).__name__} needs data and is computed once, but a gradual schedule ranks weights repeatedly",
                'schedule = "one-shot", or score = "Magnitude"',
                path=("score",),
            )
        if self.train is not None and self.train.shard:
            message = "a gradual schedule changes whole weights between optimizer steps, and shard divides them"
            raise UserError("E111", message, 'schedule = "one-shot", or leave shard out', path=("schedule",))

    @property
    def of_each(self) -> tuple[int, int] | None:
        """(n, m) of the pattern "n:m"."""
        if self.pattern is None:
            return None
        parts = self.pattern.split(":")
        numbers = tuple(int(part) for part in parts if part.isdecimal())
        if len(parts) != 2 or len(numbers) != 2 or not 0 < numbers[0] < numbers[1]:  # noqa: PLR2004 (n and m)
            raise UserError(
                "E110", f'pattern must be "n:m" with 0 < n < m; got "{self.pattern}"', 'for example "2:4"', path=("pattern",)
            )
        return numbers[0], numbers[1]

    @property
    def needs_training(self) -> bool:
        """Whether the step needs a training: true for gradual schedules."""
        return self.schedule != "one-shot"

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self._iterative:
            return self._in_rounds(model, task, run)
        if self.train is not None:
            return train_together((self,), self.train, model, task, run)
        if self.needs_training:
            raise UserError("E111", "a gradual schedule needs a training", 'give `train`, or schedule = "one-shot"')
        prepared = self.prepare(model, task, run)
        return prepared.finish(prepared.model)

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        from mirabelle.model.plain_weights import with_plain_weights
        from mirabelle.model.state import copied
        from mirabelle.prune.collapse import told_of_collapse
        from mirabelle.prune.reviving import without_hidden_weights

        model = with_plain_weights(model, run)
        self._told(model, task, run)

        def finish(trained: nn.Module) -> nn.Module:
            return told_of_collapse(run, model, without_hidden_weights(trained) if self.revive else trained, task.train)

        if self.needs_training:
            return Prepared(copied(model), controls=self._controls, finish=finish)
        return Prepared(self._pruned(model, task, run), finish=finish)

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        from mirabelle.model.plain_weights import with_plain_weights

        model = with_plain_weights(model)
        pruned = self._pruned(model, task, run, most_samples=_PREVIEWED)
        training = self.train
        if training is not None and self._iterative:
            epochs, steps = (None if one is None else self.trainings * one for one in (training.epochs, training.steps))
            training = replace(training, epochs=epochs, steps=steps)
        return Preview(pruned, _removals(pruned) + self._told(model, task, run), training)

    @property
    def trainings(self) -> int:
        """How many times the step runs its training."""
        from mirabelle.prune.rounds import number_of_trainings

        return number_of_trainings(self.rounds, self.rewind)

    @property
    def _iterative(self) -> bool:
        return self.rounds > 1 or self.rewind == "weights"

    def _in_rounds(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.model.plain_weights import with_plain_weights
        from mirabelle.prune.collapse import told_of_collapse
        from mirabelle.prune.rounds import Rounds

        assert self.sparsity is not None, "checked when the record was made"
        assert self.train is not None, "checked when the record was made"
        model = with_plain_weights(model, run)
        self._told(model, task, run)

        def pruned(trained: nn.Module, sparsity: float, part: Run) -> nn.Module:
            return replace(self, sparsity=sparsity, rounds=1, rewind="learning-rate")._pruned(trained, task, part)

        settings = {**self._removed().settings(), "rounds": self.rounds, "rewind": self.rewind}
        rounds = Rounds(self.sparsity, self.rounds, self.rewind, pruned, self.train, settings)
        return told_of_collapse(run, model, rounds(model, task, run), task.train)

    def _told(self, model: nn.Module, task: Task, run: Run) -> tuple[str, ...]:
        """Record which parameters stay as they are, and why; the same as sentences."""
        from mirabelle.model.left_alone import tell_left_alone
        from mirabelle.prune.weight_masks import why_not_pruned

        return tell_left_alone(run, model, task.example(), why_not_pruned(self._removed(), model))

    def _pruned(self, model: nn.Module, task: Task, run: Run, most_samples: int | None = None) -> nn.Module:
        """A copy of the model with the full amount pruned at once."""
        from mirabelle.model.state import copied
        from mirabelle.prune.weight_masks import WeightMasks, weights_to_prune
        from mirabelle.scores.evidence import evidence_for

        model = copied(model)
        removed = self._removed()
        names = weights_to_prune(removed, model)
        if isinstance(self.score, LayerScore):
            self._prune_in_order(model, names, task, run, most_samples)
            return model
        evidence = evidence_for(self.score, model, task, names, most_samples=most_samples, seed=run.seed_for("score"))
        WeightMasks(removed, model, evidence).prune(model, removed.amount)
        return model

    def _prune_in_order(
        self, model: nn.Module, names: Mapping[str, nn.Parameter], task: Task, run: Run, most_samples: int | None
    ) -> None:
        """Prune the parameters by a score of layers, in place."""
        from mirabelle.calibration.samples import CalibrationSamples
        from mirabelle.model.architecture import architecture_of, attach
        from mirabelle.model.device import at_work
        from mirabelle.prune.layers_in_order import prune_alone, prune_in_order
        from mirabelle.scores.evidence import evidence_for

        assert isinstance(self.score, LayerScore), "other scores rank weights"
        assert self.sparsity is not None or self.of_each is not None, "checked when the record was made"
        amount = self.of_each or float(self.sparsity or 0)
        seed, count = run.seed_for("score"), int(getattr(self.score, "samples", _CALIBRATED))
        count = count if most_samples is None else min(count, most_samples)
        with at_work(model):
            batches = CalibrationSamples.drawn(task.train, count, seed).for_model(model, pass_for_each_layer=True)
            left = prune_in_order(model, names, self.score, batches, amount)
        if left:
            evidence = evidence_for(self.score, model, task, left, most_samples=count, seed=seed)
            prune_alone(names, evidence, self.score, amount)
        attach(model, architecture_of(model).with_pruned(list(names)))
        if most_samples is None:
            run.event("pruned in order", layers=[name for name in names if name not in left], afterwards=left)

    def _controls(self, model: nn.Module) -> Sequence[Control]:
        from mirabelle.prune.reviving import RevivingMasks, with_hidden_weights
        from mirabelle.prune.weight_masks import WeightMasks

        if self.revive:
            return (RevivingMasks(self._removed(), with_hidden_weights(model, self._removed())),)
        return (WeightMasks(self._removed(), model),)

    def _removed(self) -> RemovedWeights:
        from mirabelle.prune.weight_masks import RemovedWeights

        rule, amount = next((name, value) for name in _RULES if (value := getattr(self, name)) is not None)
        of_each = self.of_each
        return RemovedWeights(
            rule=rule,
            amount=1 - of_each[0] / of_each[1] if of_each else float(amount),
            of_each=of_each,
            score=self.score,
            include=self.include,
            exclude=self.exclude,
            together=self.scope == "global",
            budget=self.scope if self.scope in ("erk", "lamp") else "",
            floor=self.floor,
            block=self.block,
            schedule=Gradual.named("constant") if self.schedule == "one-shot" else Gradual.of(self.schedule),
        )


def _removals(pruned: nn.Module) -> tuple[str, ...]:
    """Sentences on the numbers of pruned weights, in total and per tensor."""
    from mirabelle.model.architecture import architecture_of

    parameters = dict(pruned.named_parameters())
    tensors = {name: parameters[name] for name in architecture_of(pruned).pruned if name in parameters}
    zeros = {name: tensor.numel() - int(tensor.count_nonzero()) for name, tensor in tensors.items()}
    total = sum(tensor.numel() for tensor in tensors.values())
    shares = (f"{name} {zeros[name] / tensor.numel():.1%} of {tensor.numel():,}" for name, tensor in tensors.items())
    return (f"{sum(zeros.values()):,} of {total:,} weights become zero", *shares)
