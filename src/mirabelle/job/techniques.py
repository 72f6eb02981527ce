"""Compression techniques by name, as recipes of which one amount is left open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mirabelle.errors import UserError
from mirabelle.recipe.comparison import LimitKind, techniques_in
from mirabelle.step import Step
from mirabelle.training.settings import Training

_ONLY_BYTES = "only the file becomes smaller by it"
_MOST_BITS, _LEAST_BITS = 8, 2
_SHARED_BITS = 5  # of a codebook after pruning, as in Deep Compression
_NARROWEST, _SPARSEST, _NARROWEST_CUT, _LOWEST = 0.98, 0.995, 0.95, 0.98  # what amount 1 takes away


@dataclass(frozen=True)
class OpenRecipe:
    """A recipe of which one amount is left open.

    Args:
        name: of the candidate.
        steps: the steps for an amount in [0, 1]: 0 compresses least, 1 most.
        fixed: whether the steps are the same for every amount.
    """

    name: str
    steps: Callable[[float], Sequence[Step]]
    fixed: bool = False


def recipe_of_techniques(name: str, model: nn.Module, limit: LimitKind, training: Training, *, guides: bool) -> OpenRecipe:
    """The recipe of a technique, or of several in one: "prune", "prune + share", "distill + prune".

    "distill" alone trains a student of the same kind with fewer units, from random weights, under the teacher. With other
    techniques it means that their trainings are guided by the teacher; without it their loss is that of the task, unless the
    training has an objective of its own. The open amount is the width of the student, the rank of a factorization, the sparsity
    of pruning, or else the bits of the weights. For bytes, "prune" removes single weights; for operations and milliseconds,
    channels. After pruning or factorization, "share" has 32 values for each layer, and "quantize" 8 bits.

    Args:
        name: techniques, joined by "+".
        model: to which it is applied.
        limit: what is limited.
        training: of each step; a comparison divides its budget among them.
        guides: whether a teacher can guide: the outputs of the task are class scores.

    Raises:
        UserError: E106 for a technique that is not known; E111 for one that does not change what is limited, or needs a
            teacher where none can guide; E112 if the model has no layers to factorize.
    """
    asked = set(techniques_in(name))
    if "distill" in asked and not guides:
        raise UserError(
            "E111", '"distill" needs a task whose outputs are class scores', "leave it out, or give candidates with steps"
        )
    if asked != {"distill"} and asked <= {"distill", "quantize", "share"} and limit == "macs":
        raise UserError("E111", f'"{name}" does not change the number of operations', "limit the size or the latency")
    if "share" in asked and limit == "latency":
        raise UserError("E111", f'"share" does not change the latency: {_ONLY_BYTES}', "limit the size, or leave it out")
    if asked == {"distill"}:
        return OpenRecipe(name, lambda amount: [_student(amount, training)])
    from mirabelle.objectives import TaskLoss

    if "distill" not in asked and training.objective is None:
        training = dataclasses.replace(training, objective=1.0 * TaskLoss())
    makers = {part: _MAKERS[part] for part in _MAKERS if part in asked}  # in the order of the stages
    alone = not {"factorize", "prune"} & asked
    context = _Context(model, limit, training, alone=alone)
    if asked - {"distill"} == {"quantize"} and limit == "latency":
        return OpenRecipe(name, lambda amount: _quantized(amount, context), fixed=True)
    return OpenRecipe(name, lambda amount: [step for maker in makers.values() for step in maker(amount, context)])


@dataclass(frozen=True)
class _Context:
    """What the steps of a technique depend on; `alone`: nothing removes weights before they are quantized."""

    model: nn.Module
    limit: LimitKind
    training: Training
    alone: bool

    @property
    def fine_tuning(self) -> Training:
        """The training after a quantization, whose learning rate is a tenth: its layers begin at what they had learned."""
        return dataclasses.replace(self.training, lr=self.training.lr / 10)


def _student(amount: float, training: Training) -> Step:
    from mirabelle.distill import Student

    return Student(width=1 - _NARROWEST * amount, start="random", train=training)


def _factorized(amount: float, context: _Context) -> list[Step]:
    from mirabelle import factorize

    ratio = 1 - _LOWEST * amount
    kinds = [type(module) for module in context.model.modules()]
    large = [m for m in context.model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 and m.groups == 1]
    steps: list[Step] = []
    if large:
        steps.append(factorize.Conv(ratio=ratio, keep="smaller", multiple=1, train=context.training))
    if nn.Linear in kinds:
        steps.append(factorize.Linear(ratio=ratio, keep="smaller", multiple=1, train=context.training))
    if not steps:
        raise UserError("E112", "the model has no linear layers or convolutions to factorize", 'leave out "factorize"')
    return steps


def _pruned(amount: float, context: _Context) -> list[Step]:
    from mirabelle import prune

    if context.limit == "size":
        return [prune.Weights(sparsity=_SPARSEST * amount, schedule="cubic", train=context.training)]
    return [prune.Channels(sparsity=_NARROWEST_CUT * amount, train=context.training)]


def _quantized(amount: float, context: _Context) -> list[Step]:
    from mirabelle import quantize

    if context.limit == "latency":
        return [quantize.Aware(train=context.fine_tuning)]
    bits = _bits(amount) if context.alone else _MOST_BITS
    return [quantize.Aware(weight_bits=bits, activations="float", train=context.fine_tuning)]


def _shared(amount: float, context: _Context) -> list[Step]:
    from mirabelle import quantize

    return [quantize.Codebook(bits=_bits(amount) if context.alone else _SHARED_BITS, train=context.fine_tuning)]


def _bits(amount: float) -> int:
    return round(_MOST_BITS - (_MOST_BITS - _LEAST_BITS) * amount)


_MAKERS: Mapping[str, Callable[[float, _Context], list[Step]]] = {
    "factorize": _factorized,
    "prune": _pruned,
    "quantize": _quantized,
    "share": _shared,
}
