"""What a planner knows of a model: how much each cut, rank and rounding changes its outputs, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mirabelle.allocation.knapsack import Table, tables_of
from mirabelle.graph.costs import Polynomial

Form = Literal["float", "dynamic", "static", "coded"]
FORMS: tuple[Form, ...] = ("float", "dynamic", "static", "coded")
NOT_CODED = "no size is limited"


@dataclass(frozen=True)
class Part:
    """A part of a model of which more or less can stay: units that are cut together, a layer's rank, or the step of its weight.

    Args:
        name: of a group of units, or of a layer.
        options: units that stay, or ranks (0: no factors), or steps of the weight; the last changes least.
        changes: for each option the change of the model's outputs if nothing else is changed, as `OutputChange`.
        sizes: what each option costs: the share of the units, the parameters of the layer, or its coded bytes.
    """

    name: str
    options: tuple[float, ...]
    changes: tuple[float, ...]
    sizes: tuple[float, ...]


@dataclass(frozen=True)
class FormMeasured:
    """The whole model in a form of numbers, uncut.

    Args:
        change: of the outputs.
        size: bytes of the packed file; in the form "coded" without the coded weights.
        onnx_size: bytes of the ONNX file.
        latency: milliseconds of a call.
        latency_when_cut: of the model that keeps the options `Measured.cut` of its units.
        why_not: why the model has no such form; "" if it has.
    """

    change: float = 0.0
    size: float = 0.0
    onnx_size: float = 0.0
    latency: float = 0.0
    latency_when_cut: float = 0.0
    why_not: str = ""


@dataclass(frozen=True)
class Measured:
    """All measurements of a model from which plans are made.

    Args:
        forms: the whole model in each form.
        parameters, macs, float_bytes: of the whole model; the bytes are those of its tensors in float32.
        units: groups of units that are cut together.
        ranks: layers that may become products of two.
        tables: names of those that are embeddings.
        codes: layers whose weights may be coded, in the order of their names.
        coded_together: (sum of the changes of the layers, change of the model in which all are coded), rising, from (0, 0) on.
        parameters_of: name of each parameter -> its elements, as a polynomial in the shares that the units keep.
        macs_of: multiply-accumulates for one sample, in the same shares.
        times: expected milliseconds in float, as tables over the options of units; empty if no latency was asked for.
        cut: an option of each group of units: the cut with which the forms were timed.
        rank_times: for each layer of `ranks` the expected milliseconds of each option.
        macs_of_ranks: for each layer of `ranks` the multiply-accumulates of each option.
        recovered: (sum of the changes of the groups in a cut, change of the cut model after the layers behind it are fitted),
            rising, from (0, 0) on.
        metrics: (change of the outputs, metric on the validation data), from 0 on.
        fewer_power: if n times fewer weights are coded than in the whole model, the changes that they make grow by n to this
            power: errors of weights are made up for by others with inputs that are alike, and a cut takes those away.
        notes: what was not measured and why.
        embeds: whether tables of embeddings are heavy, and get 8 bits where layers become integers.
    """

    forms: Mapping[Form, FormMeasured]
    parameters: float
    macs: float
    float_bytes: float
    units: Sequence[Part] = ()
    ranks: Sequence[Part] = ()
    tables: Sequence[str] = ()
    codes: Sequence[Part] = ()
    coded_together: Sequence[tuple[float, float]] = ((0.0, 0.0), (1.0, 1.0))
    parameters_of: Mapping[str, Polynomial] = field(default_factory=dict)
    macs_of: Polynomial = field(default_factory=dict)
    times: Mapping[tuple[int, ...], Table] = field(default_factory=dict)
    cut: Sequence[int] = ()
    rank_times: Sequence[Sequence[float]] = ()
    macs_of_ranks: Sequence[Sequence[float]] = ()
    recovered: Sequence[tuple[float, float]] = ((0.0, 0.0), (1.0, 1.0))
    metrics: Sequence[tuple[float, float]] = ()
    fewer_power: float = 1.0
    notes: Sequence[str] = ()
    embeds: bool = False

    def uncoded(self) -> Measured:
        """What is measured where no size is limited, so that weights need not be coded."""
        forms = {**self.forms, "coded": FormMeasured(why_not=NOT_CODED)}
        return replace(self, forms=forms, codes=(), coded_together=Measured.coded_together, fewer_power=Measured.fewer_power)

    @property
    def shares(self) -> list[Table]:
        """For each group of units, the share that each option keeps."""
        return [np.array(part.sizes) for part in self.units]

    def tables_of_parameters(self, name: str) -> dict[tuple[int, ...], Table]:
        """The number of elements of a parameter, as tables over the options of units."""
        return tables_of(self.parameters_of[name], self.shares)

    def after_fitting(self, change: float) -> float:
        """The change of a cut after the layers behind it are fitted, from the sum of the changes of its groups."""
        return _followed(self.recovered, change)

    def when_coded(self, change: float) -> float:
        """The change of a model whose layers are coded, from the sum of what each of them changes."""
        return _followed(self.coded_together, change)

    def metric_at(self, change: float) -> float:
        """The expected metric if the outputs change so much; that of the largest measured change beyond it."""
        changes, metrics = zip(*self.metrics, strict=True)
        return float(np.interp(change, changes, metrics))

    def change_at(self, metric: float) -> float:
        """The largest change of the outputs at which the metric is still expected to be at least this; 0 if there is none."""
        found = 0.0
        for (low, best), (high, worst) in zip(self.metrics, self.metrics[1:], strict=False):
            if worst >= metric:
                found = high
            elif best >= metric:
                return low + (high - low) * (best - metric) / max(best - worst, 1e-12)
            else:
                break
        return found

    def with_metric(self, change: float, metric: float) -> Measured:
        """These measurements with what was seen of a compressed model: the change of its outputs, and its metric.

        What was expected of changes that are larger and metrics that are higher is lowered to it, and the other way round.
        """
        kept = [(c, m) for c, m in self.metrics if c == 0 or (c < change and m > metric) or (c > change and m < metric)]
        return replace(self, metrics=tuple(sorted({**dict(kept), change: metric}.items())))

    def to_data(self) -> dict[str, Any]:
        """As plain data for a JSON file."""
        data = asdict(self)
        data["parameters_of"] = {name: _pairs(polynomial) for name, polynomial in self.parameters_of.items()}
        data["macs_of"] = _pairs(self.macs_of)
        data["times"] = [[list(key), table.tolist()] for key, table in self.times.items()]
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Measured:
        """From what `to_data` has made."""
        return cls(
            **{
                **data,
                "forms": {name: FormMeasured(**one) for name, one in data["forms"].items()},
                **{key: [_part(one) for one in data[key]] for key in ("units", "ranks", "codes")},
                "parameters_of": {name: _polynomial(pairs) for name, pairs in data["parameters_of"].items()},
                "macs_of": _polynomial(data["macs_of"]),
                "times": {tuple(key): np.array(table) for key, table in data["times"]},
                **{key: [tuple(pair) for pair in data[key]] for key in ("metrics", "recovered", "coded_together")},
            }
        )


def _followed(pairs: Sequence[tuple[float, float]], value: float) -> float:
    """The value between pairs, and in proportion beyond the last."""
    first, second = zip(*pairs, strict=True)
    if value <= first[-1]:
        return float(np.interp(value, first, second))
    return value * (second[-1] / first[-1] if first[-1] > 0 else 1.0)


def _pairs(polynomial: Polynomial) -> list[list[Any]]:
    return [[list(key), value] for key, value in polynomial.items()]


def _polynomial(pairs: Sequence[Any]) -> Polynomial:
    return {tuple(key): value for key, value in pairs}


def _part(one: Mapping[str, Any]) -> Part:
    return Part(one["name"], *(tuple(one[key]) for key in ("options", "changes", "sizes")))
