"""`mirabelle inspect`: a model layer by layer, what of it is cut together, and what each part is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from mirabelle.cli.options import data_dir_option, data_option, json_option, quiet_option, verbose
from mirabelle.errors import UserError
from mirabelle.sources.names import names_model_file

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.inspection import Layer, Sensitivity, Structure
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task

Found = TypeVar("Found")
_SHOWN = 3  # names of members, unless all are asked for


@click.command("inspect")
@click.argument("model")
@click.option(
    "--input",
    "shapes",
    multiple=True,
    help='Shape of one input without its batch axis, such as "1x28x28" or "16:int64"; once for each input, or NAME=16:int64.',
)
@data_option
@data_dir_option
@click.option("--weights", type=click.Path(path_type=Path), help="A .safetensors file with the weights of a factory's model.")
@click.option("--groups", is_flag=True, help="What is cut together: channels, neurons, heads; and what is frozen, and why.")
@click.option("--sensitivity", is_flag=True, help="Loss on validation data against sparsity, by group and by layer.")
@click.option("--samples", type=click.IntRange(min=1), help="Validation samples for --sensitivity; by default 512.")
@json_option
@quiet_option
def command(
    *,
    model: str,
    shapes: tuple[str, ...],
    data: str | None,
    data_dir: Path | None,
    weights: Path | None,
    groups: bool,
    sensitivity: bool,
    samples: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print the layers of MODEL: shape, parameters, MACs, sparsity, bytes; or its groups, or what it loses without each part.

    MODEL is an .onnx, .mira, .keras or .h5 file, the folder of a run, or a factory ("pkg.mod:function", "./file.py:function").
    --groups and --sensitivity need a module in torch: all of these but a .mira file. -v names every member of a group.

    \b
    Example:
      mirabelle inspect ./net.py:net --input 1x8x8 --groups
      mirabelle inspect ./net.py:net --weights trained.safetensors --data ./photos --sensitivity
    """
    if samples is not None and not sensitivity:
        raise UserError("E111", "--samples says on how many samples --sensitivity measures", "add --sensitivity")
    if shapes and data is not None:
        raise UserError("E111", "--input and --data both say what goes in", "give one of them")
    if not groups and not sensitivity:
        return _print_layers(model, shapes, data, data_dir, weights, as_json=as_json)
    module, task, example = _module(model, shapes, data, data_dir, weights, judged=sensitivity)
    structure, found = None, None
    if groups:
        from mirabelle.inspection import structure_of

        structure = _held(module, example, lambda: structure_of(module, example))
    if sensitivity:
        assert task is not None, "data were asked for"
        from mirabelle.job.dry_run import with_model_outputs_as_targets

        judged = with_model_outputs_as_targets(task, module)
        found = _held(module, example, lambda: _sensitivity(module, judged, samples or 512, quiet=quiet, groups=groups))
    _print(structure, found, as_json=as_json)
    if structure is not None and found is None:
        structure.check_any_group()  # told after what is frozen, and why
    return 0


def _print(structure: Structure | None, found: Sensitivity | None, *, as_json: bool) -> None:
    if as_json:
        told = {} if structure is None else structure.to_data()
        click.echo(json.dumps(told if found is None else {**told, "sensitivity": found.to_data()}, indent=2, allow_nan=False))
        return
    if structure is not None:
        _print_structure(structure)
    if structure is not None and found is not None:
        click.echo("")
    if found is not None:
        _print_sensitivity(found)


def _print_layers(
    model: str, shapes: Sequence[str], data: str | None, data_dir: Path | None, weights: Path | None, *, as_json: bool
) -> int:
    layers = _layers(model, shapes, data, data_dir, weights)
    if as_json:
        click.echo(json.dumps([layer.to_data() for layer in layers], indent=2))
        return 0
    from mirabelle.cli.display import print_table

    lines = [
        (
            layer.name,
            layer.kind,
            "×".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            "–" if layer.macs is None else f"{layer.macs:,}",
            f"{layer.sparsity:.1%}",
            f"{layer.size_bytes:,}",
        )
        for layer in layers
    ]
    known = [layer.macs for layer in layers if layer.macs is not None]
    total = sum(layer.parameters for layer in layers)
    macs = f"{sum(known):,}" if known else "–"
    lines.append(("total", "", "", f"{total:,}", macs, "", f"{sum(layer.size_bytes for layer in layers):,}"))
    print_table(("layer", "kind", "shape", "parameters", "MACs", "sparsity", "bytes"), lines)
    if not shapes and not known and not _is_file(model):
        click.echo("\nMACs depend on the input: --input 3x224x224, say, counts them")
    return 0


def _is_file(model: str) -> bool:
    return Path(model).is_dir() or Path(model).suffix in (".onnx", ".mira")


def _layers(model: str, shapes: Sequence[str], data: str | None, data_dir: Path | None, weights: Path | None) -> list[Layer]:
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.inspection import layers_of_module, layers_of_onnx

    if _is_file(model):
        if data is not None or weights is not None:
            message = f"the layers of {model} are read from its file, without --data and --weights"
            raise UserError("E111", message, "leave them out, or name a factory")
        return layers_of_onnx(onnx_of(model))
    from mirabelle.cli.arguments import example_of

    example = example_of(shapes)
    module = _made(model, weights)
    if data is not None:
        example = _task(data, data_dir).example()
    if example is None and names_model_file(model):
        example = _told_by(module)
    return _held(module, example, lambda: layers_of_module(module, example))


def _module(
    model: str, shapes: Sequence[str], data: str | None, data_dir: Path | None, weights: Path | None, *, judged: bool
) -> tuple[nn.Module, Task | None, Batch]:
    """The module, the task where there is one, and example inputs."""
    from mirabelle.cli.arguments import example_of

    path, example = Path(model), example_of(shapes)
    if path.suffix == ".mira":
        remedy = 'give its factory, "./file.py:function", the folder of its run, or `mirabelle unpack` it first'
        raise UserError("E143", f"{model} holds no torch module, which --groups and --sensitivity look at", remedy)
    if judged and example is not None:
        raise UserError("E111", "--sensitivity measures on data; got --input", "give --data instead")
    if path.is_dir():
        return _of_run(path, data, data_dir, weights, example)
    if data is None and example is None and not (names_model_file(model) and not judged):
        what = "--data, a built-in set or ./photos, say" if judged else "--input with its shape, such as 1x28x28, or --data"
        raise UserError("E130", "what goes into the model is not known", f"give {what}")
    module = _made(model, weights)
    task = _task(data, data_dir) if data is not None else None
    return module, task, example or (_told_by(module) if task is None else task.example())


def _told_by(module: nn.Module) -> Batch:
    """Inputs as the file of a model tells them.

    Raises:
        UserError: E130 when it leaves sizes open.
    """
    from mirabelle.sources.models.keras_model import KerasModule
    from mirabelle.sources.models.onnx_graph import OnnxModule

    example = module.example() if isinstance(module, (KerasModule, OnnxModule)) else None
    if example is None:
        raise UserError("E130", "the file leaves sizes of its inputs open", "give --input, such as 1x28x28, or --data")
    return example


def _of_run(
    folder: Path, data: str | None, data_dir: Path | None, weights: Path | None, example: Batch | None
) -> tuple[nn.Module, Task | None, Batch]:
    from mirabelle.job.reopening import model_of_run, recipe_of_run

    if weights is not None:
        raise UserError("E111", "the folder of a run brings its own; got --weights", "leave that out")
    file = recipe_of_run(folder)
    module = model_of_run(folder)
    if example is not None:
        return module, None, example
    task = _task(data, data_dir) if data is not None else file.build_task(data_dir)
    return module, task, task.example()


def _made(model: str, weights: Path | None) -> nn.Module:
    """What a factory makes, the same each time."""
    import torch

    from mirabelle.sources import load_weights, model_from

    torch.manual_seed(0)
    module = model_from(model, {}, Path()).eval()
    if weights is not None:
        load_weights(module, weights)
    return module


def _task(data: str, data_dir: Path | None) -> Task:
    from mirabelle.sources import task_from

    return task_from(data, {}, data_folder=data_dir, folder=Path())


def _held(module: nn.Module, example: Batch | None, work: Callable[[], Found]) -> Found:
    """The work; where it fails and the model fails on these inputs by itself, that is what is told."""
    from mirabelle.cli.arguments import check_inputs

    try:
        return work()
    except Exception as error:
        if example is not None and getattr(error, "code", "E121") == "E121":
            check_inputs(module.eval(), example)
        raise


def _sensitivity(module: nn.Module, task: Task, samples: int, *, quiet: bool, groups: bool) -> Sensitivity:
    """Of groups and layers; of layers alone, with a warning, where the model cannot be traced and groups are not asked for."""
    from contextlib import closing

    from mirabelle.cli.display import Watcher, warn
    from mirabelle.inspection import sensitivity_of

    began = time.monotonic()
    with closing(Watcher(quiet=quiet)) as watcher:

        def progress(done: int, total: int, text: str) -> None:
            left = (time.monotonic() - began) / done * (total - done) if done else 0.0
            watcher({"event": "progress", "where": "inspect", "done": done, "total": total, "seconds_left": left, "text": text})

        try:
            return sensitivity_of(module, task, samples=samples, progress=progress)
        except UserError as error:
            if groups or not error.message.startswith("the model cannot be traced"):
                raise
            warn(f"{error.message}; so layers alone are shown")
            return sensitivity_of(module, task, samples=samples, groups=False, progress=progress)


def _print_structure(structure: Structure) -> None:
    from mirabelle.cli.display import print_table

    lines = [
        (
            group.cost.name,
            group.kind,
            _members(group.cost.members),
            f"{group.cost.units:,}",
            f"{group.cost.parameters:,}",
            f"{group.cost.macs:,}",
        )
        for group in structure.groups
    ]
    if lines:
        print_table(("group", "its units", "tied together", "units", "parameters/unit", "MACs/unit"), lines, numbers_from=3)
        click.echo("")
    print_table(("frozen", "elements", "why"), list(_frozen(structure)), numbers_from=9)
    if structure.unknown:
        names = ", ".join(f"{name} ({count}×)" for name, count in structure.unknown.items())
        click.echo(f"\noperators that are not understood, so that what they touch stays whole: {names}")


def _frozen(structure: Structure) -> Iterator[tuple[str, str, str]]:
    """Dimensions that are alike in a line."""
    alike: dict[tuple[str, str], list[str]] = {}
    for fixed in structure.fixed:
        elements = f"{fixed.elements:,} of {fixed.size:,}"
        alike.setdefault((elements, "; ".join(fixed.reasons)), []).append(f"{fixed.name}:{fixed.dimension}")
    for (elements, why), names in alike.items():
        yield _members(names), elements, why


def _members(names: Sequence[str]) -> str:
    shown = list(names) if verbose() else list(names[:_SHOWN])
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _print_sensitivity(found: Sensitivity) -> None:
    from mirabelle.cli.display import print_table

    points = found.curves[0].points
    middle = len(points) // 2
    titles = ["part", "name", "removed alone", "of", *(f"{point.sparsity:.0%}" for point in points)]
    lines = [
        (
            curve.part,
            curve.name,
            curve.kind,
            f"{curve.size:,}",
            *(f"{point.loss:.4f}" for point in curve.points),
            f"{curve.points[middle].metric:.4f}",
        )
        for curve in found.curves
    ]
    print_table([*titles, f"{found.metric_name} at {points[middle].sparsity:.0%}"], lines, numbers_from=3)
    click.echo(
        f"\nloss on {found.samples:,} validation samples with that share removed and all else kept, what costs least first; "
        f"with nothing removed {found.loss:.4f}, {found.metric_name} {found.metric:.4f}; nothing is trained in between"
    )
