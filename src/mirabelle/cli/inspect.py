"""`mirabelle inspect`: lists the layers of a model, its groups of coupled channels, and how sensitive the loss is to each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from mirabelle.cli.options import (
    codec_option,
    data_dir_option,
    data_option,
    input_option,
    json_option,
    quiet_option,
    trust_option,
    verbose,
)
from mirabelle.errors import UserError
from mirabelle.sources.names import HUBS, PACKAGE, names_model_file

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.inspection import Layer, Sensitivity, Structure
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task

Result = TypeVar("Result")
_SHOWN = 3  # names of group members to print without --verbose


@click.command("inspect", short_help="Show layers, groups of channels, and sensitivity.")
@click.argument("model")
@input_option
@data_option
@data_dir_option
@click.option("--weights", type=click.Path(path_type=Path), help="Load the weights of the model from this .safetensors file.")
@click.option(
    "--groups",
    is_flag=True,
    help="List channels, neurons and heads that are removed together, and what cannot be removed and why.",
)
@click.option("--sensitivity", is_flag=True, help="Validation loss against sparsity, for each group and layer.")
@click.option("--bits", is_flag=True, help="What each tensor takes in the packed file, beside the entropy of its elements.")
@click.option("--samples", type=click.IntRange(min=1), help="Number of validation samples for --sensitivity; by default 512.")
@codec_option(read=True)
@trust_option
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
    bits: bool,
    samples: int | None,
    trust: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print the layers of MODEL with shape, parameters, MACs, sparsity and bytes; or its groups, or its sensitivity.

    MODEL is an .onnx, .mira, .keras or .h5 file, the folder of a run or of a transformers model, or a function that returns a
    model ("pkg.mod:function" or "./file.py:function"). --groups and --sensitivity accept all of these except .mira files. -v
    lists all members of a group.
    Code that the recipe of a run names is imported only with --trust; without it they look at the run's model.onnx.

    \b
    Example:
      mirabelle inspect ./net.py:net --input 1x8x8 --groups
      mirabelle inspect runs/digits/model.mira --bits
      mirabelle inspect ./net.py:net --weights trained.safetensors --data ./photos --sensitivity
    """
    if samples is not None and not sensitivity:
        raise UserError("E111", "--samples has an effect only with --sensitivity", "add --sensitivity")
    if shapes and data is not None:
        raise UserError("E111", "--input and --data both define the model's input", "give only one of them")
    if bits:
        from mirabelle.cli.tensor_table import print_costs

        return print_costs(model, as_json=as_json)
    if not groups and not sensitivity:
        return _print_layers(model, shapes, data, data_dir, weights, as_json=as_json)
    module, task, example = _module(model, shapes, data, data_dir, weights, needs_data=sensitivity, trust=trust)
    structure, curves = None, None
    if groups:
        from mirabelle.inspection import structure_of

        structure = _with_checked_inputs(module, example, lambda: structure_of(module, example))
    if sensitivity:
        assert task is not None, "--sensitivity requires data"
        from mirabelle.job.dry_run import with_model_outputs_as_targets

        labelled = with_model_outputs_as_targets(task, module)
        curves = _with_checked_inputs(
            module, example, lambda: _sensitivity(module, labelled, samples or 512, quiet=quiet, groups=groups)
        )
    _print(structure, curves, as_json=as_json)
    if structure is not None and curves is None:
        structure.check_any_group()  # raised only after the frozen dimensions are printed
    return 0


def _print(structure: Structure | None, curves: Sensitivity | None, *, as_json: bool) -> None:
    if as_json:
        data = {} if structure is None else structure.to_data()
        click.echo(json.dumps(data if curves is None else {**data, "sensitivity": curves.to_data()}, indent=2, allow_nan=False))
        return
    if structure is not None:
        _print_structure(structure)
    if structure is not None and curves is not None:
        click.echo("")
    if curves is not None:
        _print_sensitivity(curves)


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
    if not shapes and not known:
        click.echo("\nMACs depend on the input shape: give --input, for example --input 3x224x224")
    return 0


def _is_file(model: str) -> bool:
    return (Path(model).is_dir() and not _is_of_transformers(model)) or Path(model).suffix in (".onnx", ".mira")


def _is_of_transformers(model: str) -> bool:
    """Whether a model is a folder saved by transformers, and not that of a run; or one on a hub, or in a package."""
    return model.startswith((*HUBS, PACKAGE)) or (
        (Path(model) / "config.json").is_file() and not (Path(model) / "model.onnx").is_file()
    )


def _layers(model: str, shapes: Sequence[str], data: str | None, data_dir: Path | None, weights: Path | None) -> list[Layer]:
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.cli.arguments import example_of
    from mirabelle.inspection import layers_of_module, layers_of_onnx

    if _is_file(model):
        if data is not None or weights is not None:
            message = f"the layers of {model} are read from the file; --data and --weights do not apply"
            raise UserError("E111", message, "leave these options out, or give a function that returns the model")
        onnx = onnx_of(model)
        return layers_of_onnx(onnx, _drawn(onnx, shapes) if shapes else None)
    example = example_of(shapes)
    module = _built(model, weights)
    if data is not None:
        example = _task(data, data_dir, model).example()
    if example is None and (names_model_file(model) or _is_of_transformers(model)):
        example = _example_from_file(module)
    return _with_checked_inputs(module, example, lambda: layers_of_module(module, example))


def _drawn(onnx: bytes, shapes: Sequence[str]) -> Batch:
    """Random inputs of an ONNX model, of these sizes."""
    import torch

    from mirabelle.artifact.reading import model_of
    from mirabelle.cli.arguments import given_of
    from mirabelle.runtime.drawn_inputs import batch_of, drawn_inputs
    from mirabelle.runtime.signature import signature_of
    from mirabelle.task.batch import Batch

    inputs, _ = signature_of(model_of(onnx))
    feed = drawn_inputs(inputs, batch_of(inputs) or 1, given_of(shapes))
    return Batch({name: torch.from_numpy(array) for name, array in feed.items()}, torch.zeros(1))


def _module(
    model: str,
    shapes: Sequence[str],
    data: str | None,
    data_dir: Path | None,
    weights: Path | None,
    *,
    needs_data: bool,
    trust: bool,
) -> tuple[nn.Module, Task | None, Batch]:
    """The module, the task (None without data), and a batch of example inputs."""
    from mirabelle.cli.arguments import example_of

    path, example = Path(model), example_of(shapes)
    if path.suffix == ".mira":
        remedy = (
            'give the folder of its run or the function that builds it, "./file.py:function", or run `mirabelle unpack` first'
        )
        raise UserError("E143", f"{model} contains no torch module, which --groups and --sensitivity need", remedy)
    if needs_data and example is not None:
        raise UserError("E111", "--sensitivity needs data, not only a shape; got --input", "give --data instead")
    of_transformers = _is_of_transformers(model)
    if path.is_dir() and not of_transformers:
        return _of_run(path, data, data_dir, weights, example, trust=trust)
    if data is None and example is None and not ((names_model_file(model) or of_transformers) and not needs_data):
        what = "--data, for example ./photos" if needs_data else "its shape with --input, such as 1x28x28, or --data"
        raise UserError("E130", "the input of the model is unknown", f"give {what}")
    module = _built(model, weights)
    task = _task(data, data_dir, model) if data is not None else None
    return module, task, example or (_example_from_file(module) if task is None else task.example())


def _example_from_file(module: nn.Module) -> Batch:
    """Example inputs of the shapes that the model file declares.

    Raises:
        UserError: E130 if the file has dynamic axes besides the batch axis.
    """
    from mirabelle.sources.models.huggingface import HuggingFaceModel
    from mirabelle.sources.models.keras_model import KerasModule
    from mirabelle.sources.models.onnx_graph import OnnxModule

    example = module.example() if isinstance(module, (HuggingFaceModel, KerasModule, OnnxModule)) else None
    if example is None:
        raise UserError("E130", "the model does not fix the sizes of its inputs", "give --input, such as 1x28x28, or --data")
    return example


def _of_run(
    folder: Path, data: str | None, data_dir: Path | None, weights: Path | None, example: Batch | None, *, trust: bool
) -> tuple[nn.Module, Task | None, Batch]:
    from mirabelle.job.reopening import recipe_of_run

    if weights is not None:
        raise UserError("E111", "the folder of a run has its own weights; got --weights", "leave --weights out")
    file = recipe_of_run(folder, trust=trust)
    module = _torch_model(folder, trust=trust)
    if example is not None:
        return module, None, example
    task = _task(data, data_dir, "") if data is not None else file.build_task(data_dir)
    return module, task, task.example()


def _torch_model(folder: Path, *, trust: bool) -> nn.Module:
    """The torch model of a run; that of its ONNX file if the recipe names code, and the folder is not trusted."""
    from mirabelle.cli.display import warn
    from mirabelle.job.reopening import model_of_run
    from mirabelle.records.trust import NOT_TRUSTED

    try:
        return model_of_run(folder, trust=trust)
    except UserError as error:
        if error.code != NOT_TRUSTED:
            raise
        warn(f"{error.message}; the layers are those of its model.onnx; {error.remedy}")
    return _built(str(folder / "model.onnx"), None)


def _built(model: str, weights: Path | None) -> nn.Module:
    """Build the model with a fixed random seed, in eval mode, and load weights if given."""
    from mirabelle.sources import load_weights, model_from

    module = model_from(str(Path(model).absolute()) if Path(model).is_dir() else model, {}, Path()).eval()
    if weights is not None:
        load_weights(module, weights)
    return module


def _task(data: str, data_dir: Path | None, model: str) -> Task:
    from mirabelle.sources import task_from
    from mirabelle.sources.first_arguments import text_arguments

    return task_from(data, text_arguments(model, data) or {}, data_folder=data_dir, folder=Path())


def _with_checked_inputs(module: nn.Module, example: Batch | None, work: Callable[[], Result]) -> Result:
    """Call `work`. If it fails, and the model itself fails on these inputs, report the failure of the model instead."""
    from mirabelle.cli.arguments import check_inputs

    try:
        return work()
    except Exception as error:
        if example is not None and getattr(error, "code", "E121") == "E121":
            check_inputs(module.eval(), example)
        raise


def _sensitivity(module: nn.Module, task: Task, samples: int, *, quiet: bool, groups: bool) -> Sensitivity:
    """Sensitivity of groups and layers. If the model cannot be traced and --groups is not set: a warning, and layers only."""
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
            warn(f"{error.message}; only layers are shown")
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
        print_table(("group", "kind", "members", "units", "parameters/unit", "MACs/unit"), lines, numbers_from=3)
        click.echo("")
    print_table(("frozen", "elements", "why"), list(_frozen(structure)), numbers_from=9)
    if structure.unknown:
        names = ", ".join(f"{name} ({count}×)" for name, count in structure.unknown.items())
        click.echo(f"\noperators without a rule; the dimensions they touch are frozen: {names}")


def _frozen(structure: Structure) -> Iterator[tuple[str, str, str]]:
    """The rows of the table of frozen dimensions; dimensions with equal entries share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for fixed in structure.fixed:
        elements = f"{fixed.elements:,} of {fixed.size:,}"
        rows.setdefault((elements, "; ".join(fixed.reasons)), []).append(f"{fixed.name}:{fixed.dimension}")
    for (elements, why), names in rows.items():
        yield _members(names), elements, why


def _members(names: Sequence[str]) -> str:
    shown = list(names) if verbose() else list(names[:_SHOWN])
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _print_sensitivity(sensitivity: Sensitivity) -> None:
    from mirabelle.cli.display import print_table

    points = sensitivity.curves[0].points
    middle = len(points) // 2
    titles = ["part", "name", "kind", "units", *(f"{point.sparsity:.0%}" for point in points)]
    lines = [
        (
            curve.part,
            curve.name,
            curve.kind,
            f"{curve.size:,}",
            *(f"{point.loss:.4f}" for point in curve.points),
            f"{curve.points[middle].metric:.4f}",
        )
        for curve in sensitivity.curves
    ]
    print_table([*titles, f"{sensitivity.metric_name} at {points[middle].sparsity:.0%}"], lines, numbers_from=3)
    click.echo(
        f"\nloss on {sensitivity.samples:,} validation samples after removing that fraction of one part, "
        "least important first, without training; "
        f"with nothing removed: loss {sensitivity.loss:.4f}, {sensitivity.metric_name} {sensitivity.metric:.4f}"
    )
