"""Select the layers to quantize, and report which stay in floating point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mirabelle.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from mirabelle.quantize.layers import WeightLayer
    from mirabelle.quantize.tied_weights import Selection
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


def layers_for(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], include: tuple[str, ...], exclude: tuple[str, ...]
) -> dict[str, nn.Module]:
    """Select the layers of these classes whose names match `include` (all, if it is empty) and not `exclude`.

    Raises:
        UserError: E112 if a pattern matches nothing, or no layer is selected; E121 if the model is a rewritten program, which
            has no layers.
    """
    from mirabelle.model.architecture import architecture_of, replaced_module_names
    from mirabelle.model.left_alone import few
    from mirabelle.records.patterns import selected_modules

    why = architecture_of(model).rewritten
    if why and not any(type(module) in kinds for module in model.modules()):
        raise UserError(
            "E121",
            f"the model was replaced by a rewritten program without layers, so there is nothing to quantize ({why})",
            'restrict prune.Channels to widths that the code adapts to, for example include = ["*.conv1"] in residual blocks',
        )
    coded_before = replaced_module_names(model)
    if coded_before and not any(type(module) in kinds for module in model.modules()):
        raise UserError(
            "E112",
            f"no {', '.join(kind.__name__ for kind in kinds)} is left to quantize; replaced before: {few(coded_before)}",
            "remove this step",
        )
    return selected_modules(model, kinds, include, exclude)


def weighted_kinds() -> tuple[type[nn.Module], ...]:
    """The classes of layers with a weight that steps for weights alone quantize."""
    from mirabelle.model.turned_linear import turned_linear
    from mirabelle.quantize.dense_layers import WEIGHTED

    return (*WEIGHTED, *turned_linear())


def selected(model: nn.Module, step: Quantizes) -> Selection:
    """The layers with plain settings that a step selects, with those that share their weights.

    Raises:
        UserError: as `layers_for`, and E112 if no layer is left.
    """
    from mirabelle.quantize.tied_weights import is_plain, with_ties

    chosen = layers_for(model, step.layers(), step.include, step.exclude)
    chosen = {name: dense for name, dense in chosen.items() if is_plain(dense)}
    return with_ties(model, chosen, step.layers(), step.exclude)


def coded(model: nn.Module, selection: Selection, kind: Callable[[str], type[WeightLayer]], weight_bits: int) -> nn.Module:
    """Replace the chosen layers by layers with integer weights, of a class by name, in place; ties stay ties."""
    from mirabelle.model.architecture import replace_module
    from mirabelle.model.ties import all_names
    from mirabelle.quantize.layers import WeightLayer
    from mirabelle.quantize.tied_weights import tie_codes

    names = all_names(model)
    for name, dense in selection.layers.items():
        model = replace_module(model, name, kind(name).quantized(dense, weight_bits, rows=selection.has_readers(name)))
    for name, dense in selection.readers.items():
        model = replace_module(model, name, WeightLayer.quantized(dense, weight_bits))
    return tie_codes(model, names, selection)


def opened(model: nn.Module, step: Quantizes, run: Run | None = None) -> nn.Module:
    """A model in the form that a step quantizes: with plain weights, and with attention that calls its layers.

    Args:
        model: is not changed.
        step: only attention that its patterns select is opened.
        run: records what became plain; None for a preview.
    """
    from mirabelle.model.plain_attention import with_plain_attention
    from mirabelle.model.plain_weights import with_plain_weights

    return with_plain_attention(with_plain_weights(model, run), step.include, step.exclude)


def told(
    given: nn.Module, model: nn.Module, step: Quantizes, task: Task, run: Run, *, floating: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Record which layers a step quantized and what stays in floating point and why; the same as sentences.

    Args:
        given: the model before the step.
        model: the result.
        step: its settings `include` and `exclude` and its kinds of layers say why something was left.
        task: gives example inputs.
        run: of the step.
        floating: name of each layer and value that the step measured and left in floating point -> why.
    """
    from mirabelle.model.architecture import replaced_module_names, replaced_modules
    from mirabelle.model.left_alone import tell_left_alone
    from mirabelle.quantize.reading import read_but_not_called
    from mirabelle.quantize.tied_weights import groups_of_codes, left_with_ties, separated

    before = replaced_module_names(given)
    replaced = [name for name, module in replaced_modules(model).items() if name not in before and hasattr(module, "codes")]
    candidates = [name for name, module in model.named_modules() if type(module) in step.layers()]
    read = read_but_not_called(model, candidates, task.example())
    known = dict.fromkeys(read, "the model reads its weight without calling it")
    known |= left_with_ties(model, step.layers(), step.exclude)
    known |= floating or {}
    reasons = why_in_floating_point(model, step.layers(), step.include, step.exclude, known)
    modules = dict(model.named_modules())
    reasons |= {name: why for name, why in (floating or {}).items() if name not in modules}  # values between layers
    left = tell_left_alone(run, model, task.example(), reasons, "products of activations stay in floating point")
    tied = [f"{', '.join(names)} share one table of codes" for names in groups_of_codes(model, given)]
    tied += separated(model, given)
    run.event("quantized", modules=replaced, ties=tied)
    return (f"{len(replaced)} layers are quantized: {', '.join(replaced)}", *tied, *left)


class Quantizes(Protocol):
    """A step of the family, with the classes of layers that it quantizes."""

    @property
    def include(self) -> tuple[str, ...]: ...
    @property
    def exclude(self) -> tuple[str, ...]: ...
    def layers(self) -> tuple[type[nn.Module], ...]: ...


def why_in_floating_point(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    known: Mapping[str, str],
) -> dict[str, str]:
    """Name of each parameter with two or more dimensions that was not quantized -> why; a tied one has its first name.

    Args:
        known: name of a module -> why; it goes before other reasons.
    """
    from torch import nn

    from mirabelle.model.architecture import replaced_module_names
    from mirabelle.model.left_alone import reasons_of_weights
    from mirabelle.records.patterns import matches

    attention = tuple(name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))

    def why(name: str, module: nn.Module) -> str:
        if matches(name, attention):
            return "torch.nn.MultiheadAttention reads the weights of its layers without calling them"
        return _why_of_class(module, kinds)

    return reasons_of_weights(model, set(replaced_module_names(model)), include, exclude, known=known, otherwise=why)


def _why_of_class(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str:
    """Why a module that no pattern leaves out was not quantized."""
    from mirabelle.model.turned_linear import turned_linear

    kind = type(module).__name__
    if isinstance(module, kinds) and type(module) not in kinds:
        return f"{kind} is a class of its own, whose code may differ"
    if isinstance(module, kinds):
        return f"a {kind} with these settings has no quantized form"
    named = ", ".join(one.__name__ for one in kinds if one not in turned_linear())
    return f"this step quantizes {named}; these are weights of {kind}"
