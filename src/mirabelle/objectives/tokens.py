"""What a transformer teacher gives inside: terms over hidden states, attention and the relations of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.objectives.forward import Kind
from mirabelle.objectives.hidden import FeatureTerm
from mirabelle.objectives.objective import Term
from mirabelle.records.record import Count, record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task

Kinds = Annotated[tuple[Literal["attention", "query", "key", "value"], ...], Field(min_length=1)]


@record
class HiddenStates(FeatureTerm):
    """Every layer of the student gives what a layer of the teacher gives, through a learned linear map where widths differ.

    "mse" is mean (r(s) − t)² over all elements, "cosine" mean 1 − cos(r(s), t) over the tokens; tokens that an "attention_mask"
    among the inputs hides are left out. A student of m layers looks at every (n / m)-th of a teacher's n, the last at the last.

    Args:
        layers: patterns of the student's layers; by default all of its longest list of layers.
        teacher_layers: patterns of the teacher's.
        distance: of the states.

    Raises:
        UserError: E112 a pattern that matches nothing, E111 layers that cannot be paired or compared.

    Example:
        >>> HiddenStates(distance="cosine").needs_teacher
        True

    Source: Jiao et al. 2020, "TinyBERT", arXiv:1909.10351 (mse, maps, even mapping); Sanh, Debut, Chaumond, Wolf 2019,
    arXiv:1910.01108 (cosine).
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("tokens",)
    real_tokens: ClassVar[bool] = True
    projects: ClassVar[bool] = True

    distance: Literal["mse", "cosine"] = "mse"

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        import torch.nn.functional as F

        if self.distance == "mse":
            return F.mse_loss(student, teacher)
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


@record
class AttentionMaps(FeatureTerm):
    """mean (A_s − A_t)²: tokens of the student attend to the tokens that those of the teacher attend to.

    A is what an attention layer gives beside its states, (batch, heads, tokens, tokens), averaged over the heads where their
    numbers differ; rows of tokens that an "attention_mask" among the inputs hides are left out. The models must give it:
    `attn_implementation="eager"` for those of transformers. The paper compares the scores before the softmax, which layers do
    not give.

    Args:
        layers: patterns of the student's attention, "name[1]"; by default all that the layers give.
        teacher_layers: patterns of the teacher's.

    Raises:
        UserError: E112 a pattern that matches nothing, or models that give no attention; E111 layers that cannot be compared.

    Example:
        >>> AttentionMaps().needs_teacher
        True

    Source: Jiao et al. 2020, "TinyBERT", arXiv:1909.10351.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("attention",)
    resizes: ClassVar[bool] = False
    real_tokens: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        import torch.nn.functional as F

        if student.shape[1] != teacher.shape[1]:
            student, teacher = student.mean(1), teacher.mean(1)
        return F.mse_loss(student, teacher)


@record
class TokenRelations(Term):
    """Self-attention relations of one layer: KL of how the teacher's tokens relate against how the student's do.

    Σ over kinds of KL(softmax(tᵢ·tⱼᵀ / √d) ‖ softmax(sᵢ·sⱼᵀ / √d)), mean over samples, relation heads and tokens. "value"
    relates values with values, "attention" queries with keys, "query" and "key" each with itself. Widths and numbers of heads
    may differ, since both sides are cut anew into relation heads. Tokens that an "attention_mask" among the inputs hides are
    left out.

    Args:
        relations: kinds that count; the first MiniLM has ("attention", "value"), the second ("query", "key", "value").
        heads: of relations; a divisor of both widths.
        layer: of the student, whose projections are its parts "query", "key" and "value" or names like them ("q_proj", "q_lin",
            "q"); by default the last that has such.
        teacher_layer: of the teacher; by default its last. MiniLM takes one above the middle for large teachers.

    Raises:
        UserError: E112 a layer without projections, E111 widths that the heads do not divide.

    Example:
        >>> TokenRelations(heads=12).relations
        ('attention', 'value')

    Source: Wang, Wei, Dong, Bao, Yang, Zhou 2020, "MiniLM", arXiv:2002.10957; Wang, Bao, Huang, Dong, Wei 2021,
    arXiv:2012.15828.
    """

    needs_teacher = True

    relations: Kinds = ("attention", "value")
    heads: Count = 12
    layer: str | None = None
    teacher_layer: str | None = None

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.token_relations import Relations

        assert task.teacher is not None, "Objective.bind refuses a task without teacher"
        layers = self.layer, self.teacher_layer
        return Relations(model, task.teacher, example, relations=self.relations, heads=self.heads, layers=layers)
