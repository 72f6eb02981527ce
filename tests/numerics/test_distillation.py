"""Formulas of distillation against NumPy in float64, written out sample by sample; their gradients, minima and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mirabelle.numerics import divergence, relations

Array = npt.NDArray[np.float64]
Formula = Callable[[Tensor, Tensor], Tensor]
BATCH, CLASSES = 7, 5
TARGETS = torch.tensor([0, 4, 2, 2, 1, 3, 0])
TEMPERATURE = 3.0


def drawn(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOGITS = drawn(BATCH, CLASSES, seed=0), drawn(BATCH, CLASSES, seed=1)
MAPS = drawn(6, 3, 8, 8, seed=2), drawn(6, 3, 8, 8, seed=3)
WIDER = drawn(6, 3, 4, 4, seed=4), drawn(6, 5, 4, 4, seed=5)
TOKENS = drawn(3, 4, 8, seed=6), drawn(3, 4, 12, seed=7)


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    powers = np.exp(logits / temperature)
    return powers / powers.sum()


def kl(p: Array, q: Array) -> float:
    return float(sum(p[k] * math.log(p[k] / q[k]) for k in range(len(p))))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def soft_targets(s: Array, t: Array) -> float:
    return TEMPERATURE**2 * float(
        np.mean([kl(softmax(b, TEMPERATURE), softmax(a, TEMPERATURE)) for a, b in zip(s, t, strict=True)])
    )


def reverse(s: Array, t: Array) -> float:
    return TEMPERATURE**2 * float(
        np.mean([kl(softmax(a, TEMPERATURE), softmax(b, TEMPERATURE)) for a, b in zip(s, t, strict=True)])
    )


def jensen_shannon(s: Array, t: Array) -> float:
    parts = []
    for a, b in zip(s, t, strict=True):
        q, p = softmax(a, TEMPERATURE), softmax(b, TEMPERATURE)
        m = 0.3 * p + 0.7 * q
        parts.append(0.3 * kl(p, m) + 0.7 * kl(q, m))
    return TEMPERATURE**2 * float(np.mean(parts))


def standardized(s: Array, t: Array) -> float:
    def z(row: Array) -> Array:
        return np.array((row - row.mean()) / row.std())

    return TEMPERATURE**2 * float(
        np.mean([kl(softmax(z(b), TEMPERATURE), softmax(z(a), TEMPERATURE)) for a, b in zip(s, t, strict=True)])
    )


def decoupled(s: Array, t: Array) -> float:
    parts = []
    for a, b, right in zip(s, t, TARGETS.tolist(), strict=True):
        q, p = softmax(a, TEMPERATURE), softmax(b, TEMPERATURE)
        others = [k for k in range(CLASSES) if k != right]
        binary = kl(np.array([p[right], 1 - p[right]]), np.array([q[right], 1 - q[right]]))
        rest = kl(p[others] / (1 - p[right]), q[others] / (1 - q[right]))
        parts.append(1.5 * binary + 8.0 * rest)
    return TEMPERATURE**2 * float(np.mean(parts))


def bernoulli(s: Array, t: Array) -> float:
    q, p = (1 / (1 + np.exp(-logits / TEMPERATURE)) for logits in (s, t))
    return TEMPERATURE**2 * float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


def multi_level(s: Array, t: Array) -> float:
    total = 0.0
    for temperature in (2.0, 4.0):
        q = np.array([softmax(row, temperature) for row in s])
        p = np.array([softmax(row, temperature) for row in t])
        total += temperature**2 * float(np.mean([kl(p[n], q[n]) for n in range(len(p))]))
        total += sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for i in range(BATCH) for j in range(BATCH)) / BATCH
        total += sum((q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 for i in range(CLASSES) for j in range(CLASSES)) / CLASSES
    return total


def correlation(s: Array, t: Array) -> float:
    q = np.array([softmax(row, TEMPERATURE) for row in s])
    p = np.array([softmax(row, TEMPERATURE) for row in t])
    between = np.mean([1 - np.corrcoef(q[n], p[n])[0, 1] for n in range(BATCH)])
    within = np.mean([1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(CLASSES)])
    return TEMPERATURE**2 * float(2.0 * between + 0.5 * within)


def attention(s: Array, t: Array) -> float:
    parts = []
    for a, b in zip(s, t, strict=True):
        maps = [(np.abs(f) ** 2).sum(0).ravel() for f in (a, b)]
        one, other = (m / np.sqrt((m**2).sum()) for m in maps)
        parts.append(((one - other) ** 2).mean())
    return float(np.mean(parts))


def feature(s: Array, t: Array) -> float:
    return TEMPERATURE**2 * float(
        np.mean([kl(softmax(b.ravel(), TEMPERATURE), softmax(a.ravel(), TEMPERATURE)) for a, b in zip(s, t, strict=True)])
    )


def similarity(s: Array, t: Array) -> float:
    grams = []
    for f in (s, t):
        flat = f.reshape(len(f), -1)
        gram = np.array([[row @ column for column in flat] for row in flat])
        grams.append(np.array([row / np.sqrt(row @ row) for row in gram]))
    return float(((grams[0] - grams[1]) ** 2).sum() / len(s) ** 2)


def distance(s: Array, t: Array) -> float:
    count = len(s)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    scaled = []
    for f in (s, t):
        found = {(i, j): float(np.linalg.norm(f[i].ravel() - f[j].ravel())) for i, j in pairs}
        mean = np.mean(list(found.values()))
        scaled.append({pair: value / mean for pair, value in found.items()})
    return float(np.mean([huber(scaled[0][pair] - scaled[1][pair]) for pair in pairs]))


def angle(s: Array, t: Array) -> float:
    count = len(s)

    def cosine(f: Array, i: int, j: int, k: int) -> float:
        one, other = f[i].ravel() - f[j].ravel(), f[k].ravel() - f[j].ravel()
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    triples = [(i, j, k) for i in range(count) for j in range(count) for k in range(count) if len({i, j, k}) == 3]
    return float(np.mean([huber(cosine(s, *triple) - cosine(t, *triple)) for triple in triples]))


def token_relations(s: Array, t: Array) -> float:
    parts = []
    for a, b in zip(s, t, strict=True):
        for head in range(2):
            one, other = (f[:, head * (f.shape[1] // 2) : (head + 1) * (f.shape[1] // 2)] for f in (a, b))
            for k in range(len(one)):
                q = softmax(one @ one[k] / math.sqrt(one.shape[1]))
                p = softmax(other @ other[k] / math.sqrt(other.shape[1]))
                parts.append(kl(p, q))
    return float(np.mean(parts))


def pyramid(s: Array, t: Array) -> float:
    def pooled(f: Array, side: int) -> Array:
        step = f.shape[2] // side
        return f.reshape(*f.shape[:2], side, step, side, step).mean((3, 5))

    levels = [(1.0, 8), (0.5, 4), (0.25, 2), (0.125, 1)]
    return float(sum(w * np.mean((pooled(s, side) - pooled(t, side)) ** 2) for w, side in levels) / sum(w for w, _ in levels))


def contrast(s: Array, t: Array) -> float:
    def h(u: float) -> float:
        return math.exp(u) / (math.exp(u) + (CLASSES - 1) / 50)

    return -float(np.mean([math.log(h(row[0])) + sum(math.log(1 - h(v)) for v in row[1:]) for row in (s + 0 * t)]))


def _standardized(s: Tensor, t: Tensor) -> Tensor:
    return divergence.soft_target_divergence(divergence.standardized(s), divergence.standardized(t), TEMPERATURE)


def _decoupled(s: Tensor, t: Tensor, targets: Tensor, weights: tuple[float, float]) -> Tensor:
    return divergence.decoupled_divergence(
        s, t, targets, temperature=TEMPERATURE, target_weight=weights[0], other_weight=weights[1]
    )


FAMILY: dict[str, tuple[Formula, Callable[[Array, Array], float], tuple[Tensor, Tensor]]] = {
    "soft targets": (lambda s, t: divergence.soft_target_divergence(s, t, TEMPERATURE), soft_targets, LOGITS),
    "standardized": (_standardized, standardized, LOGITS),
    "reverse": (lambda s, t: divergence.reverse_divergence(s, t, TEMPERATURE), reverse, LOGITS),
    "jensen-shannon": (lambda s, t: divergence.jensen_shannon_divergence(s, t, TEMPERATURE, 0.3), jensen_shannon, LOGITS),
    "decoupled": (lambda s, t: _decoupled(s, t, TARGETS, (1.5, 8.0)), decoupled, LOGITS),
    "bernoulli": (lambda s, t: divergence.bernoulli_divergence(s, t, TEMPERATURE), bernoulli, LOGITS),
    "multi-level": (lambda s, t: divergence.multi_level_divergence(s, t, (2.0, 4.0)), multi_level, LOGITS),
    "correlation": (lambda s, t: divergence.correlation_distance(s, t, TEMPERATURE, 2.0, 0.5), correlation, LOGITS),
    "attention": (relations.attention_distance, attention, WIDER),
    "feature divergence": (lambda s, t: relations.feature_divergence(s, t, TEMPERATURE), feature, MAPS),
    "similarity": (relations.similarity_distance, similarity, WIDER),
    "distance": (relations.distance_relation, distance, WIDER),
    "angle": (relations.angle_relation, angle, WIDER),
    "token relations": (lambda s, t: relations.relation_divergence((s, s), (t, t), 2), token_relations, TOKENS),
    "pyramid": (relations.pyramid_distance, pyramid, MAPS),
    "contrast": (lambda s, t: relations.contrastive_estimate(s[:, 0], (s + 0 * t)[:, 1:], 50), contrast, LOGITS),
}
MINIMAL = sorted(set(FAMILY) - {"contrast"})  # which has no pair that is equal


@pytest.mark.parametrize("name", FAMILY)
def test_the_formula_is_the_papers(name: str) -> None:
    formula, reference, (student, teacher) = FAMILY[name]
    due = reference(student.numpy(), teacher.numpy())
    assert float(formula(student, teacher)) == pytest.approx(due, abs=1e-9, rel=1e-9)
    assert due > 0.001


@pytest.mark.parametrize("name", FAMILY)
def test_the_gradient_is_that_of_the_formula(name: str) -> None:
    formula, _, (student, teacher) = FAMILY[name]
    assert gradcheck(lambda s: formula(s, teacher), (student.clone().requires_grad_(),), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", MINIMAL)
def test_nothing_is_left_to_learn_where_both_are_equal(name: str) -> None:
    formula, _, (_, teacher) = FAMILY[name]
    student = teacher.clone().requires_grad_()
    loss = formula(student, teacher)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("soft targets", lambda t: t + torch.arange(BATCH)[:, None]),
        ("decoupled", lambda t: t + torch.arange(BATCH)[:, None]),
        ("correlation", lambda t: t + torch.arange(BATCH)[:, None]),
        ("standardized", lambda t: 5 * t + torch.arange(BATCH)[:, None]),
        ("attention", lambda t: 3 * t),
        ("attention", lambda t: t.flip(1)),
        ("similarity", lambda t: 3 * t),
        ("similarity", lambda t: t.flip(1)),
        ("distance", lambda t: 3 * t + 1),
        ("angle", lambda t: 3 * t + 1),
        ("angle", lambda t: t.flip(1)),
        ("token relations", lambda t: -t),
    ],
)
def test_what_the_paper_leaves_out_does_not_matter(name: str, change: Callable[[Tensor], Tensor]) -> None:
    formula, _, (student, teacher) = FAMILY[name]
    assert float(formula(student, change(teacher))) == pytest.approx(float(formula(student, teacher)), rel=1e-9)


def test_the_weight_of_how_classes_relate_counts_that_part_alone() -> None:
    student, teacher = LOGITS
    none, once, twice = (float(divergence.multi_level_divergence(student, teacher, (2.0,), gamma)) for gamma in (0.0, 1.0, 2.0))
    q, p = (torch.softmax(logits / 2, -1) for logits in LOGITS)
    assert once - none == pytest.approx(float((q.T @ q - p.T @ p).square().sum()) / CLASSES, rel=1e-9)
    assert twice - once == pytest.approx(once - none, rel=1e-9)


def test_relations_of_padding_do_not_count() -> None:
    """Real tokens give what they give alone, whatever stands in the others; the mean is over all of them."""
    (student, teacher), counts = TOKENS, (4, 2, 3)
    real = torch.arange(4) < torch.tensor(counts)[:, None]
    student, teacher = (torch.where(real[..., None], part, 1e6 * torch.ones_like(part)) for part in (student, teacher))
    found = relations.relation_divergence((student, student), (teacher, teacher), 2, real)
    samples = zip(student.numpy(), teacher.numpy(), counts, strict=True)
    due = sum(count * token_relations(s[None, :count], t[None, :count]) for s, t, count in samples) / sum(counts)
    assert float(found) == pytest.approx(due, rel=1e-9)
    free = student.clone().requires_grad_()
    relations.relation_divergence((free, free), (teacher, teacher), 2, real).backward()  # type: ignore[no-untyped-call]
    assert free.grad is not None
    assert bool((free.grad[~real] == 0).all())
    assert bool((free.grad[real] != 0).any())
    assert gradcheck(
        lambda s: relations.relation_divergence((s, s), (teacher, teacher), 2, real),
        (torch.where(real[..., None], student, torch.zeros_like(student)).requires_grad_(),), atol=1e-6, rtol=1e-4,
    )  # fmt: skip


def test_decoupled_terms_add_up_to_soft_targets_with_the_weight_that_the_paper_finds_hidden_there() -> None:
    student, teacher = LOGITS[0][:1], LOGITS[1][:1]
    right = float(torch.softmax(teacher / TEMPERATURE, -1)[0, TARGETS[0]])
    found = _decoupled(student, teacher, TARGETS[:1], (1.0, 1 - right))
    assert float(found) == pytest.approx(float(divergence.soft_target_divergence(student, teacher, TEMPERATURE)), rel=1e-12)


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    student, teacher = 100 * LOGITS[0], 100 * LOGITS[1]
    one = divergence.jensen_shannon_divergence(student, teacher, 1.0)
    assert float(one) == pytest.approx(float(divergence.jensen_shannon_divergence(teacher, student, 1.0)), rel=1e-12)
    assert float(one) <= math.log(2) + 1e-12


def test_equal_logits_and_equal_samples_have_finite_gradients() -> None:
    flat = torch.ones(4, 3, requires_grad=True)
    loss = relations.distance_relation(flat, drawn(4, 3, seed=9).float()) + divergence.standardized(flat).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None
    assert bool(flat.grad.isfinite().all())


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = (logits.bfloat16() for logits in LOGITS)
    exact = float(divergence.soft_target_divergence(student.double(), teacher.double(), TEMPERATURE))
    assert float(divergence.soft_target_divergence(student, teacher, TEMPERATURE)) == pytest.approx(exact, rel=1e-5)
