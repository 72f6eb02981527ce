"""The bound form of MiniLM's loss: relations between tokens, computed from the projections of attention layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.taps import features_of
from mirabelle.numerics.relations import relation_divergence
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.projection import mask_of
from mirabelle.task.batch import Batch

_PARTS = {
    "query": ("query", "q_proj", "q_lin", "q"),
    "key": ("key", "k_proj", "k_lin", "k"),
    "value": ("value", "v_proj", "v_lin", "v"),
}
_OPERANDS = {"attention": ("query", "key"), "query": ("query", "query"), "key": ("key", "key"), "value": ("value", "value")}


class Relations(nn.Module):
    """The sum of the KL divergences of several token relations, for one layer of the student and one of the teacher.

    The formula is in the docstring of `objectives.TokenRelations`.

    Args:
        model: the student.
        teacher: the teacher.
        example: a batch on which both models are run once.
        relations: the relations to compare: "attention", "query", "key", "value".
        heads: number of relation heads into which the projections are split.
        layers: names of the student's and the teacher's layer; None for the last layer that has query, key and value
            projections.

    Raises:
        UserError: E112 if a layer has no such projections, E111 if a width is not divisible by `heads`.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        example: Batch,
        *,
        relations: Sequence[str],
        heads: int,
        layers: tuple[str | None, str | None] = (None, None),
    ) -> None:
        super().__init__()
        self.relations, self.heads = tuple(relations), heads
        needed = sorted({part for kind in relations for part in _OPERANDS[kind]})
        self.names = []
        for one, layer in zip((model, teacher), layers, strict=True):
            features = features_of(one, example)
            projections = _projections(one, layer, features)
            self.names.append({part: projections[part] for part in needed})
            widths = {projections[part]: features[projections[part]].shape[-1] for part in needed}
            for name, width in widths.items():
                if width % heads:
                    message = f'the width of "{name}", {width}, is not divisible by heads = {heads}'
                    raise UserError("E111", message, "use a number of heads that divides both widths")
            if "attention" in relations and len({widths[projections[part]] for part in ("query", "key")}) > 1:
                message = f"the query and key projections of the layer differ in width: {widths}"
                raise UserError("E111", message, 'leave out the relation "attention": in this layer several heads share keys')
        self.student_layers, self.teacher_layers = (tuple(names.values()) for names in self.names)

    def forward(self, forward: Forward) -> Tensor:
        assert forward.teacher is not None, "Objective.bind refuses a task without teacher"
        sides = (forward.features, self.names[0]), (forward.teacher.features, self.names[1])
        parts = []
        for kind in self.relations:
            one, other = _OPERANDS[kind]
            student, teacher = ((features[names[one]].float(), features[names[other]].float()) for features, names in sides)
            real = mask_of(student[0], forward.batch.inputs)
            parts.append(relation_divergence(student, teacher, self.heads, real))
        total: Tensor = sum(parts[1:], parts[0])
        return total


def _projections(model: nn.Module, layer: str | None, features: dict[str, Tensor]) -> dict[str, str]:
    """The names of the projections by "query", "key" and "value", in a layer or else in the last layer that has all three."""
    modules = dict(model.named_modules())
    if layer is not None and layer not in modules:
        raise UserError("E112", f'the model has no layer "{layer}"', did_you_mean(layer, modules))
    found: dict[str, dict[str, str]] = {}
    for name in features:
        place, _, last = name.rpartition(".")
        if layer is None or place == layer or place.startswith(f"{layer}."):
            for part, words in _PARTS.items():
                if last in words:
                    found.setdefault(place, {})[part] = name
    whole = [parts for parts in found.values() if len(parts) == len(_PARTS)]
    if not whole:
        place = f'layer "{layer}"' if layer else type(model).__name__
        raise UserError("E112", f"{place} has no query, key and value projections", "name a layer that has them")
    return whole[-1]
