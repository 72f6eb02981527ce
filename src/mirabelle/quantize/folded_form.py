"""A model whose layers of weights take batch norms in, to be changed, and then replaced by layers with codebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mirabelle.model.architecture import replace_module
from mirabelle.model.edits import put
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import copied
from mirabelle.model.ties import all_names
from mirabelle.quantize.batch_norm_folding import FoldedNorm, folded
from mirabelle.quantize.surroundings import Flow
from mirabelle.quantize.tied_weights import Selection, tie_codes
from mirabelle.run.run import Run
from mirabelle.task.task import Task


class FoldedForm:
    """A model, and its selected layers with the batch norms folded in that are the only users of their outputs.

    Args:
        given: the model; it is not changed.
        selection: of its layers.
        task: has the example with which the model is traced, if it has batch norms to fold.
        run: of the step.

    Attributes:
        names: of the selected layers, those that read a shared weight included.
        dense: the folded layer of each name.
    """

    def __init__(self, given: nn.Module, selection: Selection, task: Task, run: Run) -> None:
        self._given, self._selection = given, selection
        self.names = [*selection.layers, *selection.readers]
        around = Flow.of(given, task.example(), run).around(selection.layers)
        norms = {name: found.norm for name, found in around.consumers.items() if found.norm is not None}
        layers = [given.get_submodule(name) for name in self.names]
        self.dense = [
            folded(layer, given.get_submodule(norms[name])) if name in norms else layer
            for name, layer in zip(self.names, layers, strict=True)
        ]
        self._norms: dict[str, FoldedNorm] = {
            norm: FoldedNorm(given.get_submodule(norm), of=name, bias=given.get_submodule(name).bias is None)
            for name, norm in norms.items()
        }

    def with_layers(self, layers: Mapping[str, nn.Module]) -> nn.Module:
        """A copy of the model with modules in the places of its layers, without a record of them."""
        model = copied(self._given)
        for name, module in {**layers, **self._norms}.items():
            old = model.get_submodule(name)
            model = put(model, [other for other, same in model.named_modules(remove_duplicate=False) if same is old], module)
        return model

    def finished(self, changed: nn.Module, layer_of: Callable[[str, nn.Module], Replacement]) -> nn.Module:
        """A model with codebook layers, recorded in its architecture.

        Args:
            changed: the model, with any modules in the places of the layers.
            layer_of: (name, dense layer of the given model) -> the layer with a codebook.
        """
        model = copied(changed).eval()
        for name in self.names:
            model = replace_module(model, name, layer_of(name, self._given.get_submodule(name)))
        for name, norm in self._norms.items():
            model = replace_module(model, name, norm)
        return tie_codes(model, all_names(self._given), self._selection)
