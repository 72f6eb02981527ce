"""Which layers are quantized, and what stays in floating point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mirabelle.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from mirabelle.quantize.layers import WeightLayer
    from mirabelle.run.run import Run

Bits = Annotated[int, Field(ge=2, le=8)]


def layers_for(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], include: tuple[str, ...], exclude: tuple[str, ...]
) -> dict[str, nn.Module]:
    """The layers of these kinds whose names match a pattern of `include` (all, if there are none) and none of `exclude`.

    Raises:
        UserError: as `selected_modules`; E121 where a program without layers stands for the model.
    """
    from mirabelle.model.architecture import architecture_of
    from mirabelle.records.patterns import selected_modules

    why = architecture_of(model).rewritten
    if why and not any(type(module) in kinds for module in model.modules()):
        raise UserError(
            "E121",
            f"a rewritten program without layers stands for the model, so there is nothing to quantize ({why})",
            'let prune.Channels cut what the code follows, include = ["*.conv1"] within residual blocks, say',
        )
    return selected_modules(model, kinds, include, exclude)


def coded(model: nn.Module, chosen: Mapping[str, nn.Module], kind: type[WeightLayer], weight_bits: int, run: Run) -> nn.Module:
    """The model with integer weights in the chosen layers, each one of `kind` now; the run is told."""
    from mirabelle.model.architecture import replace_module

    for name, dense in chosen.items():
        model = replace_module(model, name, kind.quantized(dense, weight_bits))
    run.event("quantized", modules=list(chosen), left_alone=left_in_floating_point(model))
    return model


def left_in_floating_point(model: nn.Module) -> list[str]:
    """Modules with weights of two or more dimensions that no quantized layer replaced."""
    from mirabelle.model.architecture import replaced_module_names

    replaced = replaced_module_names(model)
    return sorted(
        name
        for name, module in model.named_modules()
        if name not in replaced and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    )


def quantized_in_words(given: nn.Module, model: nn.Module) -> tuple[str, ...]:
    """Which layers of the given model became integers, and which did not."""
    from mirabelle.model.architecture import replaced_module_names

    before, alone = replaced_module_names(given), left_in_floating_point(model)
    replaced = [name for name in replaced_module_names(model) if name not in before]
    return (f"{len(replaced)} layers become integers: {', '.join(replaced)}",) + (
        (f"left in floating point: {', '.join(alone)}",) if alone else ()
    )
