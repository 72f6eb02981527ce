"""What static quantization makes of a model: which layers and values become integers over which ranges, and their modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mirabelle.calibration.ranges import Range
from mirabelle.errors import UserError
from mirabelle.model.architecture import replace_module
from mirabelle.model.call_results import with_call_results
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import copied
from mirabelle.model.ties import all_names
from mirabelle.quantize.batch_norm_folding import FoldedNorm, folded
from mirabelle.quantize.layers import RoundedValue, StaticLayer, WeightLayer, least_scale_of
from mirabelle.quantize.reading import read_but_not_called
from mirabelle.quantize.surroundings import Consumer, Flow, Surroundings
from mirabelle.quantize.tied_weights import Selection, tie_codes
from mirabelle.task.batch import Batch

Observe = Callable[[nn.Module, Iterable[str]], dict[str, Range]]


@dataclass(frozen=True)
class Plan:
    """The layers and values of a model that become integers.

    Args:
        selection: the layers that run, and those that read their codes.
        around: what stands around them.
        outputs: name of each layer whose output is rounded, and of the place of each rounded result of a call -> name of this
            value among the ranges.
        ranges: range of the inputs of each layer, by its name, and of each rounded value.
        bits: of the weights of each layer.
        per_tensor: whether a weight has one scale instead of one for each output.
    """

    selection: Selection
    around: Surroundings
    outputs: Mapping[str, str]
    ranges: Mapping[str, Range]
    bits: Mapping[str, int]
    per_tensor: bool = False

    @property
    def coded(self) -> tuple[str, ...]:
        """The names of the layers whose weights get codes."""
        return (*self.selection.layers, *self.selection.readers)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all that becomes integers: of layers, and of the places of values."""
        return (*self.coded, *self.around.places)

    def form(self, name: str, model: nn.Module) -> dict[str, Replacement]:
        """The integer form of a part of a model: name of each module that it replaces -> what stands there then.

        Args:
            name: of the part.
            model: the dense one, with modules at the places.
        """
        if name in self.around.places:
            return {name: RoundedValue.quantized(model.get_submodule(name), self.ranges[self.outputs[name]])}
        limits = {other: self._least_scale(other) for other in self.selection.group_of(name)}
        least = self.selection.largest(limits, name)
        if name in self.selection.readers:
            return {name: WeightLayer.quantized(self.selection.readers[name], self.bits[name], least_scale=least)}
        dense, after = self.selection.layers[name], self.around.consumers.get(name, Consumer())
        norm = None if after.norm is None else model.get_submodule(after.norm)
        layer = StaticLayer.quantized(
            dense if norm is None else folded(dense, norm),
            self.ranges[name],
            self.ranges[self.outputs[name]] if name in self.outputs else None,
            least_scale=least,
            weight_bits=self.bits[name],
            per_tensor=self.per_tensor,
            bias=dense.bias is None and norm is not None,
            output=after.output if name in self.outputs else "",
            reads=self.around.inputs.get(name, ""),
        )
        if norm is None or after.norm is None:
            return {name: layer}
        return {name: layer, after.norm: FoldedNorm(norm, of=name, bias=dense.bias is None)}

    def _least_scale(self, name: str) -> Tensor | None:
        dense = self.selection.layers.get(name)
        return None if dense is None else least_scale_of(dense, self.ranges[name])


Make = Callable[[Plan], nn.Module]


class Planner:
    """Plans what becomes integers, all of it or all but some parts.

    Args:
        model: in eval mode; is not changed.
        selection: of the layers.
        flow: of the model.
        observe: (model, names as in `calibration.ranges.activation_ranges`) -> their ranges on calibration data.
        example: inputs of the model.
        bits: of all weights; other ones are given by `dataclasses.replace` of a plan.
        per_tensor: as in `Plan`.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        flow: Flow,
        observe: Observe,
        example: Batch,
        *,
        bits: int = 8,
        per_tensor: bool = False,
    ) -> None:
        self._selection, self._flow, self._observe, self._example = selection, flow, observe, example
        self._given, self._bits, self._per_tensor = model, bits, per_tensor
        self.dense = _with_places(model, flow.around(selection.layers))  # with modules at all results that may be rounded
        self._ranges: dict[str, Range] = {}
        self._seen: set[str] = set()

    def plan(self, floating: Collection[str] = ()) -> Plan:
        """Everything that becomes integers, but for the parts with these names.

        Raises:
            UserError: E121 if a layer did not run on the calibration data; E112 if no layer is left.
        """
        selection = self._selection.without(floating)
        if not selection.layers:
            raise UserError("E112", "no layer is left to quantize", "raise max_damage, widen `include`, or shorten `exclude`")
        around = self._flow.around(selection.layers, floating)
        outputs = {
            name: found.output_of(name) for name, found in around.consumers.items() if found.rounds_for(selection.layers)
        }
        outputs |= {place: f"{place}:output" for place in around.places}
        ranges = self._ranges_of([*selection.layers, *outputs.values()])
        ranges |= {name: ranges[outputs[read]] for name, read in around.inputs.items() if name in ranges}
        running = selection.running(ranges)
        silent = selection.layers.keys() - running.layers.keys() - running.readers.keys()
        unused = sorted(silent - read_but_not_called(self._given, silent, self._example))
        if unused:
            raise UserError("E121", f'layer "{unused[0]}" never ran on the calibration data', f'exclude = ["{unused[0]}"]')
        bits = dict.fromkeys([*running.layers, *running.readers], self._bits)
        return Plan(running, around, outputs, ranges, bits, self._per_tensor)

    def observe_all(self) -> None:
        """Find in one pass the ranges of all values that any plan may round."""
        around = self._flow.around(self._selection.layers)
        outputs = [found.output_of(name) for name, found in around.consumers.items() if found.output]
        self._ranges_of([*self._selection.layers, *outputs, *(f"{place}:output" for place in around.places)])

    def _ranges_of(self, names: Iterable[str]) -> dict[str, Range]:
        new = [name for name in dict.fromkeys(names) if name not in self._seen]
        if new:
            self._ranges |= self._observe(self.dense, new)
            self._seen.update(new)
        return dict(self._ranges)

    def converted(self, plan: Plan) -> nn.Module:
        """A copy of the model in which everything that a plan names is integers, with the record of what was replaced."""
        model = _with_places(self._given, plan.around)
        names = all_names(model)
        for part in plan.parts:
            for name, module in plan.form(part, self.dense).items():
                model = replace_module(model, name, module)
        return tie_codes(model, names, plan.selection)


def _with_places(model: nn.Module, around: Surroundings) -> nn.Module:
    """A copy of a model with modules at the results of calls that are rounded."""
    model = copied(model)
    return with_call_results(model, around.calls, around.rounded) if around.rounded else model
