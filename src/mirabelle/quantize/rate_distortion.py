"""Rate-distortion quantization: after the training, without labels, with the levels and steps that need the fewest bits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.quantize.layer_selection import opened, selected, told, weighted_kinds
from mirabelle.records.record import Count, Patterns, Positive, record
from mirabelle.step import Preview, Stage
from mirabelle.task.goal import limit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from mirabelle.model.replacement import Replacement
    from mirabelle.quantize.folded_form import FoldedForm
    from mirabelle.quantize.level_search import Found, LevelSearch, Option
    from mirabelle.quantize.output_change import OutputChange
    from mirabelle.quantize.tied_weights import Selection
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

_COUNTED, _MEASURED = 32, 128  # samples: to count tokens, and to measure changes
_TRIES, _SAFELY = 4, 0.99  # choices until the limit is met by what was measured, each so much below what seems due
_CLOSE, _FURTHER = 0.8, 2.0  # of a change that is allowed: near enough to it; by how much a choice is relaxed at most
_FULL = 0.975  # of a size: less of it is not used well
_BITS, _BITS_OF_AN_OCTAVE, _MOST_OCTAVES = 8, 1.5, 0.5
_TINY = 1e-30
_ALL = 1.0  # the change of outputs that are the same for all samples
_PREVIEWED_BITS = 3.0
_FLOAT_BYTES = 4


@record
class RateDistortion:
    """Quantization after the training with bits in the rounding: small files, no labels, no gradients.

    Each layer has one step for its weight, ŵ = s · level. Levels are chosen column by column as in GPTQ, the columns that
    follow make up for the error of each, and the bits of a level count in the choice (`numerics.rate_distortion`). The steps
    of all layers are chosen together, as an integer program, so that the outputs of the model change least for the bytes, or
    the bytes are fewest for a change of the outputs. For this, each layer's change is measured once on the whole model. Mean
    errors of outputs are taken into the biases. A batch norm that is the only user of a layer's output is folded into the
    layer before. Pruned weights stay zero. Layers that share a weight, run more than once or look rows up are rounded without
    their inputs.

    The layers have codebooks afterwards (`CodebookLayer`): computed in floating point, small in `model.mira`. Typical are
    8 to 12 times fewer bytes than float32 at the accuracy of before; below that, train with `quantize.EntropyConstrained`.
    Layers without a bias keep their mean errors. `mirabelle check` shows 3 bits for each weight where `max_damage` is given.

    Args:
        size: most bytes of the coded weights of the layers, "400 kB", or "10%" of these in float32. The file has the graph,
            biases, and other tensors besides.
        max_damage: instead of a size, the most change of the outputs, Σ (y − ŷ)² / Σ (y − ȳ)², such as 0.005, measured on up to
            128 training samples; of several outputs the mean of their changes.
        samples: number of training samples for the moments of inputs; their labels are not used. By default as many as give
            the layers with 90 % of the weights 8 tokens, positions or samples for each of their columns, from 128 to 4,096;
            fewer, down to 32, of samples so large that 128 do not pass the model at once.
        damping: share of the mean of the moments' diagonal that is added to it, > 0.
        include: patterns of module names; by default all layers of the classes that `quantize.Codebook` takes.
        exclude: patterns of names of modules that stay as they are.

    Raises:
        UserError: E110 for a value out of range; E111 unless there is a size or a limit of the change; E112 if a pattern
            matches nothing, or no layer is selected; E113 for a size that cannot be read; E114 if the limit is not met by
            the coarsest or finest steps, or the outputs change more than by an answer that is always the same; E121 if a weight
            or an output is not finite, a weight is not float32, or for a rewritten program, which has no layers; E131 if inputs
            of a layer are NaN or infinite.

    Example:
        >>> RateDistortion(max_damage=0.005).stage
        'quantize'

    Source: see `numerics.rate_distortion`; budgets over layers: Young et al. 2021, arXiv:2012.02469.
    """

    stage: ClassVar[Stage] = "quantize"

    size: str | float | None = None
    max_damage: Annotated[float, Field(gt=0)] | None = None
    samples: Count | None = None
    damping: Positive = 0.01
    include: Patterns = ()
    exclude: Patterns = ()

    def __post_init__(self) -> None:
        if (self.size is None) == (self.max_damage is None):
            given = "neither" if self.size is None else "both"
            raise UserError("E111", f"give a size or max_damage; got {given}", "for example max_damage = 0.005")
        if self.size is not None:
            limit_of("size", self.size, 1.0, where="")

    def layers(self) -> tuple[type[nn.Module], ...]:
        return weighted_kinds()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        given = opened(model, self, run)
        selection, form = self._form(given, task, run)
        quantized = form.finished(given, _layer_of(self._found(selection, form, task, run), selection))
        told(given, quantized, self, task, run)
        return quantized

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        from mirabelle.quantize.rounded_layer import rounded_layers

        given = opened(model, self)
        _, form = self._form(given, task, run)
        bits = _PREVIEWED_BITS
        if self.size is not None:
            whole = _float_bytes(form.dense)
            bits = 32 * limit_of("size", self.size, whole, where="") / whole
        layers = dict(zip(form.names, rounded_layers(form.dense, bits), strict=True))
        shown = form.finished(given, lambda name, dense: layers[name].as_codebook(dense))
        return Preview(shown, told(given, shown, self, task, run))

    def _form(self, given: nn.Module, task: Task, run: Run) -> tuple[Selection, FoldedForm]:
        from mirabelle.quantize.folded_form import FoldedForm
        from mirabelle.quantize.tied_weights import check_finite

        selection = selected(given, self)
        check_finite(selection)
        return selection, FoldedForm(given, selection, task, run)

    def survey(
        self, model: nn.Module, task: Task, run: Run, shares: Sequence[float]
    ) -> tuple[dict[str, list[Option]], list[tuple[float, float]]]:
        """What a planner needs, which chooses among the options itself.

        Args:
            model: as of the step.
            task: as of the step.
            run: as of the step.
            shares: of the bytes of the weights in float32.

        Returns:
            For each layer the steps that are tried, with the bytes that they take and the change of the outputs; and, for each
            share that can be reached, the sum of the changes of the best options, and the change of the model that has them.
        """
        selection, form = self._form(opened(model, self), task, run)
        with self._searching(selection, form, task, run) as searching:
            options, pairs = searching.options(), []
            for share in shares:
                picked = dataclasses.replace(self, size=1.0, max_damage=None)._picked(options, share * _float_bytes(form.dense))
                if picked is not None:
                    changed = searching.change_with({name: one.step for name, one in picked.items()})
                    pairs.append((sum(one.change for one in picked.values()), changed))
            return options, pairs

    def _found(self, selection: Selection, form: FoldedForm, task: Task, run: Run) -> dict[str, Found]:
        """The levels of one layer for each weight."""
        with self._searching(selection, form, task, run) as searching:
            return self._within(searching, _float_bytes(form.dense), run)

    @contextmanager
    def _searching(self, selection: Selection, form: FoldedForm, task: Task, run: Run) -> Iterator[_Searching]:
        """The search, with the model at work; it computes with references to the memory of the model."""
        from mirabelle.model.device import at_work
        from mirabelle.model.state import copied

        plain = copied(form.with_layers(dict(zip(form.names, form.dense, strict=True)))).eval()
        with at_work(plain):
            yield self._search(plain, selection, form, task, run)

    def _search(self, plain: nn.Module, selection: Selection, form: FoldedForm, task: Task, run: Run) -> _Searching:
        from mirabelle.calibration.layer_moments import samples_needed
        from mirabelle.calibration.samples import CalibrationSamples
        from mirabelle.quantize.calibrated_codes import as_products
        from mirabelle.quantize.level_search import LevelSearch
        from mirabelle.quantize.output_change import OutputChange

        names = list(dict.fromkeys(selection.group_of(name)[0] for name in form.names))
        own = {name: plain.get_submodule(name) for name in names if len(selection.group_of(name)) == 1}
        few = CalibrationSamples.drawn(task.train, _COUNTED, run.seed_for("calibration")).for_model(plain)
        products, left = as_products(plain, own, few)
        count = self.samples or samples_needed(plain, few, products)
        drawn = CalibrationSamples.drawn(task.train, count, run.seed_for("calibration"))
        left |= {name: "it shares its weight" for name in names if name not in own}
        run.event("calibrated", method="rate-distortion", samples=len(drawn), without_inputs=left)
        batches = drawn.for_model(plain, pass_for_each_layer=True)
        search = LevelSearch(plain, names, products, batches, self.damping)
        change = OutputChange.drawn(plain, task.train, _MEASURED, run.seed_for("damage"))
        return _Searching(search, change, plain, run)

    def _within(self, searching: _Searching, whole: float, run: Run) -> dict[str, Found]:
        """The levels that meet the limit by what is measured of them; of a change, they use most of it."""
        from mirabelle.codecs.shortest import length_of_levels
        from mirabelle.model.state import copied

        search, change, plain = searching.search, searching.change, searching.plain
        options = searching.options()
        limit = self.max_damage if self.size is None else limit_of("size", self.size, whole, where="")
        assert limit is not None, "one of both is given"
        kind = "max_damage" if self.size is None else "size"
        due, steps = limit * _SAFELY, None
        best: tuple[dict[str, Found], dict[str, Any]] | None = None
        reached = sum(min(self._costs(each)[1]) for each in options.values())  # the least that is possible
        for _ in range(_TRIES):
            if steps is None:
                picked = self._picked(options, due)
                if picked is None:
                    break
                steps = {name: one.step for name, one in picked.items()}
            model = copied(plain)
            found = search.levels(model, steps)
            sizes = {name: length_of_levels(one.levels.flatten(1).numpy()) for name, one in found.items()}
            measured: dict[str, Any] = {"size": sum(sizes.values()), "max_damage": change.of(model), "layers": sizes}
            measured["estimated"] = sum(one.change for one in picked.values()) if picked is not None else None
            reached = measured[kind]
            if reached <= limit and (best is None or reached > best[1][kind]):
                best = found, measured
            if best is not None and not best[1][kind] < (_FULL if kind == "size" else _CLOSE) * limit:
                break
            if kind == "size" and best is not None:
                steps = _rescaled(found, options, limit * _SAFELY - reached)
            else:
                due, steps = due * min(_FURTHER, limit / max(reached, _TINY)) * _SAFELY, None
        if best is None:
            given, unit = (self.size, " bytes") if self.max_damage is None else (self.max_damage, "")
            message = f"{kind} = {given} cannot be met: the best of what was tried is {reached:,.4g}{unit}"
            raise UserError("E114", message, f"raise {kind}", path=(kind,))
        if not best[1]["max_damage"] < _ALL:
            message = f"the outputs change by {best[1]['max_damage']:.2g}, more than by an answer that is always the same"
            raise UserError("E114", message, f"raise {kind}, or train with quantize.EntropyConstrained", path=(kind,))
        run.event("levels", **best[1])
        return best[0]

    def _costs(self, options: Sequence[Option]) -> tuple[list[float], list[float]]:
        """(what is to be least, what is limited) of each option of a layer."""
        changes, sizes = [one.change for one in options], [one.size_bytes for one in options]
        return (changes, sizes) if self.max_damage is None else (sizes, changes)

    def _picked(self, options: Mapping[str, Sequence[Option]], due: float) -> dict[str, Option] | None:
        """An option for each layer: the least change within a size, or the fewest bytes within a change; None if none fits."""
        import numpy as np

        from mirabelle.allocation.knapsack import Constraint, Table, allocate

        costs = [self._costs(each) for each in options.values()]
        if sum(min(limited) for _, limited in costs) > due:
            return None
        tables: dict[tuple[int, ...], Table] = {(k,): np.array(limited) for k, (_, limited) in enumerate(costs)}
        chosen = allocate([least for least, _ in costs], [Constraint("limit", due, tables)]).choice
        return {name: each[k] for (name, each), k in zip(options.items(), chosen, strict=True)}


def _rescaled(found: Mapping[str, Found], options: Mapping[str, Sequence[Option]], more: float) -> dict[str, float]:
    """The steps that need about so many more bytes than the levels that were found, all in the same proportion.

    Half the step is one bit more for each level that is not 0, and half a bit for the zeros that turn into such levels.
    """
    active = sum(float((one.levels != 0).sum()) for one in found.values())
    octaves = min(max(_BITS * more / max(_BITS_OF_AN_OCTAVE * active, 1.0), -_MOST_OCTAVES), _MOST_OCTAVES)
    return {name: max(one.step * 2.0**-octaves, min(each.step for each in options[name])) for name, one in found.items()}


@dataclass(frozen=True)
class _Searching:
    """The search for levels of a model, and how its outputs are compared."""

    search: LevelSearch
    change: OutputChange
    plain: nn.Module
    run: Run

    def options(self) -> dict[str, list[Option]]:
        begin = time.monotonic()

        def tell(done: int, of: int) -> None:
            left = (time.monotonic() - begin) / done * (of - done)
            self.run.progress(done, of, seconds_left=left, text="bits of each layer")

        return self.search.options(self.change, tell)

    def change_with(self, steps: Mapping[str, float]) -> float:
        """The change of the outputs of the model whose weights have these steps."""
        from mirabelle.model.state import copied

        model = copied(self.plain)
        self.search.levels(model, steps)
        return self.change.of(model)


def _float_bytes(layers: Sequence[nn.Module]) -> float:
    """The bytes of the weights of layers in float32, each once."""
    from mirabelle.model.state import memory_of
    from mirabelle.quantize.dense_layers import WEIGHTED, weight_of

    weights = {memory_of(weight_of(layer, WEIGHTED)): weight_of(layer, WEIGHTED) for layer in layers}
    return float(_FLOAT_BYTES * sum(weight.numel() for weight in weights.values()))


def _layer_of(found: Mapping[str, Found], selection: Selection) -> Callable[[str, nn.Module], Replacement]:
    """(name, dense layer) -> the layer with the levels that were found for its weight."""
    import torch

    from mirabelle.quantize.codebook_layer import CodebookLayer
    from mirabelle.quantize.dense_layers import bias_of

    def layer(name: str, dense: nn.Module) -> Replacement:
        first = selection.group_of(name)[0]
        one = found[first]
        return CodebookLayer.of_levels(dense, one.levels, torch.tensor(one.step), one.bias if name == first else bias_of(dense))

    return layer
