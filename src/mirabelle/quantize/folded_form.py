"""A model whose layers of weights take batch norms in, to be changed, and then replaced by layers with codebooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mirabelle.model.architecture import replace_module
from mirabelle.model.edits import put
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import copied
from mirabelle.model.ties import all_names
from mirabelle.quantize.batch_norm_folding import FoldedNorm, folded
from mirabelle.quantize.dense_layers import WEIGHTED, bias_of, weight_of
from mirabelle.quantize.idle_units import silenced
from mirabelle.quantize.surroundings import Flow
from mirabelle.quantize.tied_weights import Selection, tie_codes
from mirabelle.run.run import Run
from mirabelle.task.batch import Inputs
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

    @torch.no_grad()
    def silence(self, rounded: Mapping[str, tuple[Tensor, Tensor | None]], inputs: Inputs) -> dict[str, int]:
        """Find the weights and biases of idle units (`idle_units`).

        Args:
            rounded: (weight, bias) of each layer, with the outputs on the first axis; those of idle units become 0, in place.
            inputs: an example of the model's inputs.

        Returns:
            The numbers that have become zero in each tensor.
        """
        tensors = [tensor for _, tensor in self._given.named_parameters(remove_duplicate=False)]
        times = Counter(id(tensor) for tensor in tensors)
        own = [
            name
            for name in self._selection.layers
            if all(times[id(tensor)] == 1 for tensor in self._given.get_submodule(name).parameters())
        ]
        layers = {name: copied(layer) for name, layer in zip(self.names, self.dense, strict=True)}
        for name, (weight, bias) in rounded.items():
            own_weight = weight_of(layers[name], WEIGHTED)
            own_weight.copy_(weight)
            if bias is not None:
                layers[name].bias = nn.Parameter(bias.clone().to(own_weight.device))
        model = self.with_layers(layers).eval()
        found = silenced(model, own, inputs)
        for name in own:
            weight, bias = rounded[name]
            layer = model.get_submodule(name)
            weight.copy_(weight_of(layer, WEIGHTED))
            left = bias_of(layer)
            if bias is not None and left is not None:
                bias.copy_(left)
        return found

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
