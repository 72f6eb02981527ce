"""Parses the values of command-line options: shapes, example inputs and output files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirabelle.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.runtime.drawn_inputs import GivenInput
    from mirabelle.task.batch import Batch

_SAMPLES = 2  # batch size of example inputs
_SIZE = r"[1-9]\d*"
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


def given_of(texts: Sequence[str]) -> list[GivenInput]:
    """Parse the values of --input, `[NAME=]SIZES[:DTYPE]`.

    SIZES joined by "x" leave out the batch axis, "1x28x28"; sizes joined by "," are those of all axes, "4,1,28,28" or "4,".

    Raises:
        UserError: E110 for any other text.

    Example:
        >>> [(one.name, one.sizes, one.whole, one.dtype) for one in given_of(["1x28x28", "input.1=2,16:int64"])]
        [('', (1, 28, 28), False, ''), ('input.1', (2, 16), True, 'int64')]
    """
    from mirabelle.runtime.drawn_inputs import GivenInput

    found = []
    for text in texts:
        name, _, rest = text.rpartition("=")
        shape, _, dtype = rest.partition(":")
        if not re.fullmatch(rf"{_SIZE}(x{_SIZE})*|{_SIZE},|{_SIZE}(,{_SIZE})+", shape):
            message = f'--input must be sizes joined by "x" without the batch, or by "," with it; got "{rest}"'
            raise UserError("E110", message, "for example: --input 1x28x28, --input 8,1,28,28 or --input NAME=16:int64")
        if dtype and dtype not in (*_FLOATS, *_INTEGERS):
            raise UserError("E110", f'--input has unknown dtype "{dtype}"', did_you_mean(dtype, (*_FLOATS, *_INTEGERS)))
        sizes = tuple(int(size) for size in re.findall(r"\d+", shape))
        found.append(GivenInput(sizes, name, "," in shape, dtype))
    return found


def example_of(inputs: Sequence[str], samples: int = _SAMPLES) -> Batch | None:
    """A batch of example samples for a module, built from the values of --input, one value per model input; None without any.

    The values are those of `given_of`. Inputs with names are passed to the model as keyword arguments. Floating-point tensors
    are drawn from a normal distribution with a fixed seed. Integer and boolean tensors are filled with ones: 1 is a valid index
    in nearly every embedding table, and a mask of ones masks nothing. The first axis is the batch.

    Args:
        inputs: the values of --input; without a DTYPE they are float32.
        samples: batch size.

    Raises:
        UserError: E110 for any other text; E111 if only some inputs are named, two have the same name, or batch sizes differ.

    Example:
        >>> [(tensor.shape, tensor.dtype) for tensor in example_of(["16:int64", "4"]).inputs]
        [(torch.Size([2, 16]), torch.int64), (torch.Size([2, 4]), torch.float32)]
    """
    if not inputs:
        return None
    import torch

    from mirabelle.task.batch import Batch

    given = given_of(inputs)
    names = [one.name for one in given if one.name]
    if len(names) not in (0, len(inputs)) or len(set(names)) != len(names):
        raise UserError(
            "E111", f"name every --input, each differently, or none; got {', '.join(inputs)}", "write --input NAME=16:int64"
        )
    if len({one.sizes[0] for one in given if one.whole}) > 1:
        message = f"the first axis of every input is the batch, but its sizes differ: {', '.join(inputs)}"
        raise UserError("E111", message, "give sizes of one batch")
    tensors = [_example_tensor(one, samples, seed) for seed, one in enumerate(given)]
    if names:
        return Batch(dict(zip(names, tensors, strict=True)), torch.zeros(samples))
    return Batch(tensors[0] if len(tensors) == 1 else tuple(tensors), torch.zeros(samples))


def _example_tensor(one: GivenInput, samples: int, seed: int) -> Tensor:
    import torch

    from mirabelle.numerics.draws import generator_from

    sizes = one.sizes[1:] if one.whole else one.sizes
    dtype = getattr(torch, one.dtype or "float32")
    if one.dtype in _INTEGERS:
        return torch.ones(samples, *sizes, dtype=dtype)
    return torch.randn(samples, *sizes, generator=generator_from(seed)).to(dtype)


def check_inputs(module: nn.Module, example: Batch) -> None:
    """Run the model once on an example batch.

    Raises:
        UserError: E121 if the model fails, with the input shapes and the first line of its error.
    """
    import torch

    from mirabelle.errors import is_out_of_memory
    from mirabelle.task.batch import call, tensors_of

    shapes = ", ".join("x".join(map(str, tensor.shape[1:])) for tensor in tensors_of(example.inputs))
    try:
        with torch.no_grad():
            call(module, example.inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            "E121", f"the model fails on inputs of {shapes}: {reason}", "give the shape that the model expects"
        ) from error


def output_of(out: Path, suffixes: str | tuple[str, ...], source: Path) -> Path:
    """Check the path given as --out, so that no unrelated file is overwritten, and return it.

    Args:
        out: the path given.
        suffixes: the suffix it must have, such as ".onnx", or several of which it must have one.
        source: the file being read, which must not be overwritten.

    Raises:
        UserError: E143 if the suffix differs or `out` is `source` itself; E151 if `out` is a folder.
    """
    allowed = (suffixes,) if isinstance(suffixes, str) else suffixes
    if out.suffix not in allowed:
        rule = f"--out must end in {' or '.join(allowed)}; got {out}"
        raise UserError("E143", rule, f"write --out {out.with_suffix(allowed[0])}")
    if out.is_dir():
        raise UserError("E151", f"{out} is a folder", f"give the name of a file in it: {out / ('out' + allowed[0])}")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError("E143", f"--out is {source}, the input file itself", "give another file name")
    return out
