"""Terms for transformers that compare hidden states, attention maps, and relations between tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.objectives.forward import Kind, MeanOver
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
    """Hidden states: mean (r(s) − t)² over all elements ("mse"), or mean 1 − cos(r(s), t) over the tokens ("cosine").

    s and t are the hidden states of a layer of the student and of the teacher; r is a learned linear map if their widths
    differ, else the identity. Tokens with 0 in the inputs' "attention_mask" are left out. A student of m layers is compared
    with every (n / m)-th of the teacher's n layers, the last with the last; one that has lost layers (`prune.Layers`) with
    those of the same names.

    Args:
        layers: patterns of the student's layers; by default all of its longest list of layers.
        teacher_layers: patterns of the teacher's layers.
        distance: "mse" or "cosine".

    Raises:
        UserError: E112 if a pattern matches no layer, E111 if layers cannot be paired or compared.

    Example:
        >>> HiddenStates(distance="cosine").needs_teacher
        True

    Source: Jiao et al. 2020, "TinyBERT", arXiv:1909.10351 (mse, maps, even mapping); Sanh, Debut, Chaumond, Wolf 2019,
    arXiv:1910.01108 (cosine).
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("tokens",)
    real_tokens: ClassVar[bool] = True
    mean_over: ClassVar[MeanOver] = "tokens"
    projects: ClassVar[bool] = True

    distance: Literal["mse", "cosine"] = "mse"

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        import torch
        import torch.nn.functional as F

        from mirabelle.numerics.selections import mean_of

        if self.distance == "mse":
            return mean_of(F.mse_loss, student, teacher)
        return mean_of(torch.mean, 1 - F.cosine_similarity(student, teacher, dim=-1))


@record
class AttentionMaps(FeatureTerm):
    """Attention maps: mean (A_s − A_t)², A the attention probabilities of a layer, (batch, heads, tokens, tokens).

    If the numbers of heads differ, A is averaged over the heads first. Rows of tokens with 0 in the inputs' "attention_mask"
    are left out. The layers must return their attention probabilities as an additional output: for transformers, load the model
    with `attn_implementation="eager"`. The paper compares the scores before the softmax, which layers do not return.

    Args:
        layers: patterns of the student's attention outputs, such as "name[1]"; by default all that are returned.
        teacher_layers: patterns of the teacher's attention outputs.

    Raises:
        UserError: E112 if a pattern matches no layer, or a model returns no attention; E111 if layers cannot be compared.

    Example:
        >>> AttentionMaps().needs_teacher
        True

    Source: Jiao et al. 2020, "TinyBERT", arXiv:1909.10351.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("attention",)
    resizes: ClassVar[bool] = False
    real_tokens: ClassVar[bool] = True
    mean_over: ClassVar[MeanOver] = "tokens"

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        import torch.nn.functional as F

        from mirabelle.numerics.selections import mean_of

        if student.shape[1] != teacher.shape[1]:
            student, teacher = student.mean(1), teacher.mean(1)
        return mean_of(F.mse_loss, student, teacher)


@record
class TokenRelations(Term):
    """Self-attention relations (MiniLM): Σ over relations of KL(softmax(tᵢ·tⱼᵀ / √d) ‖ softmax(sᵢ·sⱼᵀ / √d)), for one layer.

    t and s are projections in the teacher's and the student's layer, split into relation heads of width d; the mean is taken
    over samples, relation heads and tokens. i and j are "value" and "value" for the relation "value", "query" and "key" for
    "attention"; "query" and "key" relate each projection with itself. Widths and numbers of attention heads may differ. Tokens
    with 0 in the inputs' "attention_mask" are left out.

    Args:
        relations: the relations to compare; ("attention", "value") in MiniLM, ("query", "key", "value") in MiniLMv2.
        heads: number of relation heads; must divide both widths.
        layer: of the student; its projections are submodules named "query", "key" and "value", or "q_proj", "q_lin", "q" and so
            on. By default the last layer that has them.
        teacher_layer: of the teacher; by default the last. MiniLMv2 uses an upper-middle layer for large teachers.

    Raises:
        UserError: E112 if a layer has no such projections, E111 if a width is not divisible by `heads`.

    Example:
        >>> TokenRelations(heads=12).relations
        ('attention', 'value')

    Source: Wang, Wei, Dong, Bao, Yang, Zhou 2020, "MiniLM", arXiv:2002.10957; Wang, Bao, Huang, Dong, Wei 2021,
    arXiv:2012.15828.
    """

    needs_teacher = True
    mean_over: ClassVar[MeanOver] = "tokens"

    relations: Kinds = ("attention", "value")
    heads: Count = 12
    layer: str | None = None
    teacher_layer: str | None = None

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.token_relations import Relations

        assert task.teacher is not None, "Objective.bind refuses a task without teacher"
        layers = self.layer, self.teacher_layer
        return Relations(model, task.teacher, example, relations=self.relations, heads=self.heads, layers=layers)
