"""`mirabelle export`: exports a torch model to ONNX or to a program of torch, and checks the result before writing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mirabelle.cli.options import data_dir_option, data_option, input_option, json_option, trust_option

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.runtime.gates import Gate
    from mirabelle.task.batch import Batch, Inputs

_SAMPLES = 16  # random samples on which torch and ONNX are compared


class _Export(NamedTuple):
    """A model and its ONNX file.

    Args:
        module: the torch module.
        example: inputs for it.
        batches: on which its forms are compared.
        onnx: bytes of the file.
        gates: what was compared, by name.
    """

    module: nn.Module
    example: Inputs
    batches: list[Batch]
    onnx: bytes
    gates: dict[str, Gate]


@click.command("export", short_help="Export a model to ONNX or .pt2 and check it.")
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .onnx or .pt2 file to write.")
@input_option
@data_option
@data_dir_option
@click.option("--weights", type=click.Path(path_type=Path), help="Load the weights of the model from this .safetensors file.")
@click.option("--label", "labels", multiple=True, help="Class name to store in the file; repeat for each class, in order.")
@trust_option
@click.option("--largest-batch", type=int, help="Largest batch of a .pt2 file; ExecuTorch plans memory for it.")
@json_option
def command(
    *,
    model: str,
    out: Path,
    shapes: tuple[str, ...],
    data: str | None,
    data_dir: Path | None,
    weights: Path | None,
    labels: tuple[str, ...],
    trust: bool,
    largest_batch: int | None,
    as_json: bool,
) -> int:
    """Export MODEL to ONNX with a dynamic batch axis and compare its outputs with those of torch.

    MODEL is a function that returns a model ("pkg.mod:function" or "./file.py:function"), for which --input or --data must be
    given, or the folder of a run. Nothing is written if the outputs differ. With --out in .pt2, the file is a program of
    torch.export, which the converters of other runtimes read; its outputs are compared with those of the ONNX file. Code that
    the recipe of a run names is imported only with --trust; without it the model.onnx of such a run is written, if its packed
    form gives the same bytes.

    \b
    Examples:
      mirabelle export ./net.py:net --input 1x8x8 --out net.onnx
      mirabelle export runs/digits --out digits.pt2
    """
    from mirabelle.cli.arguments import output_of
    from mirabelle.errors import UserError
    from mirabelle.run import files

    output_of(out, (".onnx", ".pt2"), weights or out.parent)
    if largest_batch is not None and out.suffix != ".pt2":
        raise UserError("E111", "--largest-batch is for a .pt2 file; an .onnx file takes any batch", "leave it out")
    if Path(model).is_dir():
        options = [("--input", shapes), ("--weights", weights), ("--label", labels)]
        if superfluous := [name for name, value in options if value]:
            message = f"the folder of a run defines these itself; got {', '.join(superfluous)}"
            raise UserError("E111", message, "leave these options out")
        content, gates = _of_run(Path(model), data, data_dir, out.suffix, largest_batch, trust=trust)
    else:
        made = _of_factory(model, shapes=shapes, data=data, data_dir=data_dir, weights=weights, labels=labels)
        content, gates = _content(made, out.suffix, largest_batch)
    for name, gate in gates.items():
        if not gate.passed:
            raise UserError(
                "E302", f"{model}: gate {name} failed: {gate.detail}", "nothing was written; check the layer that is named"
            )
    files.write(out, content)
    if as_json:
        kind, compared = out.suffix[1:], {name: gate.to_data() for name, gate in gates.items()}
        click.echo(json.dumps({kind: str(out), f"{kind}_bytes": len(content), "gates": compared}, indent=2))
        return 0
    click.echo(f"{out}: {len(content):,} bytes")
    for name, gate in gates.items():
        click.echo(f"gate {name}: passed ({gate.detail})")
    return 0


def _of_run(
    folder: Path, data: str | None, data_dir: Path | None, suffix: str, largest_batch: int | None, *, trust: bool
) -> tuple[bytes, dict[str, Gate]]:
    """Export the final model of a run; where that takes code which is not trusted, the ONNX file is that of the folder."""
    from mirabelle.cli.display import warn
    from mirabelle.errors import UserError
    from mirabelle.records.trust import NOT_TRUSTED

    try:
        return _content(_exported_again(folder, data, data_dir, trust=trust), suffix, largest_batch)
    except UserError as error:
        if error.code != NOT_TRUSTED or suffix != ".onnx":
            raise
        warn(f"{error.message}; so torch and ONNX are not compared, and the model.onnx of the run is written; {error.remedy}")
    return _as_stored(folder)


def _as_stored(folder: Path) -> tuple[bytes, dict[str, Gate]]:
    """The model.onnx of a run, compared with its packed form."""
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.runtime.gates import same_bytes

    onnx = onnx_of(folder)
    return onnx, {"packed_unpacked": same_bytes(onnx, onnx_of(folder / "model.mira"))}


def _exported_again(folder: Path, data: str | None, data_dir: Path | None, *, trust: bool) -> _Export:
    """Export the final model of a run again; the result must equal its model.onnx byte for byte."""
    from mirabelle.inspection.measure import exported
    from mirabelle.job.reopening import model_of_run, recipe_of_run
    from mirabelle.runtime.gates import batches_to_compare, same_bytes
    from mirabelle.sources import task_from

    file = recipe_of_run(folder, trust=trust)
    task = task_from(data, {}, data_folder=data_dir, folder=Path()) if data else file.build_task(data_dir)
    module = model_of_run(folder, trust=trust)
    onnx, batches = exported(module, task).onnx, batches_to_compare(task.validation)
    gates = {"torch_onnx": _compared(module, onnx, batches)}
    if (folder / "model.onnx").is_file():
        gates["as_in_the_run"] = same_bytes((folder / "model.onnx").read_bytes(), onnx)
    return _Export(module, task.example().inputs, batches, onnx, gates)


def _of_factory(
    name: str, *, shapes: Sequence[str], data: str | None, data_dir: Path | None, weights: Path | None, labels: Sequence[str]
) -> _Export:
    """Export the model that a function returns; compared with torch on random inputs of these shapes or on the data."""
    import torch

    from mirabelle.cli.arguments import check_inputs, example_of
    from mirabelle.errors import UserError
    from mirabelle.runtime.export import export
    from mirabelle.runtime.gates import batches_to_compare
    from mirabelle.sources import load_weights, model_from, task_from

    if shapes and data is not None:
        raise UserError("E111", "--input and --data both define the model's input", "give only one of them")
    torch.manual_seed(0)
    module = model_from(name, {}, Path()).eval()
    if weights is not None:
        load_weights(module, weights)
    if data is not None:
        task = task_from(data, {}, data_folder=data_dir, folder=Path())
        batches, labels = batches_to_compare(task.validation), labels or task.labels
        example = task.example()
    elif (drawn := example_of(shapes)) is not None and (compared := example_of(shapes, _SAMPLES)) is not None:
        batches, example = [compared], drawn
    else:
        raise UserError(
            "E130", "the input of the model is unknown", "give its shape with --input, such as 1x28x28, or give --data"
        )
    check_inputs(module, example)
    onnx = export(module, example, tuple(labels))
    return _Export(module, example.inputs, batches, onnx, {"torch_onnx": _compared(module, onnx, batches)})


def _content(made: _Export, suffix: str, largest_batch: int | None) -> tuple[bytes, dict[str, Gate]]:
    """The bytes of the file to write, and what was compared."""
    return (_program(made, largest_batch) if suffix == ".pt2" else made.onnx), made.gates


def _program(made: _Export, largest_batch: int | None) -> bytes:
    """The bytes of the model's .pt2 file, which are read back and compared with the ONNX file."""
    from mirabelle.model.architecture import rounds
    from mirabelle.runtime.gates import torch_equals_onnx
    from mirabelle.runtime.program import LoadedProgram, exported_program, program_bytes
    from mirabelle.task.samples import Samples

    content = program_bytes(exported_program(made.module, made.example, largest_batch=largest_batch))
    batches = made.batches
    if largest_batch is not None:
        batches = [part for batch in batches for part in Samples(batch.inputs, batch.targets).batches(largest_batch)]
    program, quantized = LoadedProgram(content), rounds(made.module)
    made.gates["pt2_onnx"] = torch_equals_onnx(program, made.onnx, batches, quantized=quantized)
    return content


def _compared(module: nn.Module, onnx: bytes, batches: list[Batch]) -> Gate:
    from mirabelle.model.architecture import rounds
    from mirabelle.runtime.gates import torch_equals_onnx

    return torch_equals_onnx(module, onnx, batches, quantized=rounds(module))
