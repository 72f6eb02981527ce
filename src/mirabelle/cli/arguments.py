"""Parses the values of command-line options: shapes, example inputs and output files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirabelle.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.task.batch import Batch

_SAMPLES = 2  # batch size of example inputs
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


def sizes_of(shape: str | None) -> tuple[int, ...] | None:
    """Parse a shape such as "1x28x28" into a tuple of sizes; None stays None.

    Raises:
        UserError: E110 for any other text.

    Example:
        >>> sizes_of("1x28x28")
        (1, 28, 28)
    """
    if shape is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError("E110", f'--input must be sizes joined by "x"; got "{shape}"', "for example: --input 1x28x28")
    return tuple(int(size) for size in shape.split("x"))


def example_of(inputs: Sequence[str]) -> Batch | None:
    """A batch of two example samples built from the values of --input, one value per model input; None if there are none.

    Each value is `[NAME=]SIZES[:DTYPE]`. SIZES leaves out the batch axis; DTYPE is float32 by default. Examples: "3x32x32",
    "16:int64", or "input_ids=16:int64", which is passed to the model as a keyword argument. Floating-point tensors are drawn
    from a normal distribution with a fixed seed. Integer and boolean tensors are filled with ones: 1 is a valid index in
    nearly every embedding table, and a mask of ones masks nothing.

    Raises:
        UserError: E110 for any other text; E111 if only some inputs are named or two have the same name.

    Example:
        >>> [(tensor.shape, tensor.dtype) for tensor in example_of(["16:int64", "4"]).inputs]
        [(torch.Size([2, 16]), torch.int64), (torch.Size([2, 4]), torch.float32)]
    """
    if not inputs:
        return None
    import torch

    from mirabelle.task.batch import Batch

    specs = [(name if is_named else "", spec) for name, is_named, spec in (_split_name(text) for text in inputs)]
    tensors = [_example_tensor(spec, seed) for seed, (_, spec) in enumerate(specs)]
    names = [name for name, _ in specs if name]
    if len(names) not in (0, len(inputs)) or len(set(names)) != len(names):
        raise UserError(
            "E111", f"name every --input, each differently, or none; got {', '.join(inputs)}", "write --input NAME=16:int64"
        )
    if names:
        return Batch(dict(zip(names, tensors, strict=True)), torch.zeros(_SAMPLES))
    return Batch(tensors[0] if len(tensors) == 1 else tuple(tensors), torch.zeros(_SAMPLES))


def _split_name(text: str) -> tuple[str, bool, str]:
    name, equals, rest = text.partition("=")
    return (name, True, rest) if equals and name.isidentifier() else ("", False, text)


def _example_tensor(text: str, seed: int) -> Tensor:
    import torch

    from mirabelle.numerics.draws import generator_from

    shape, _, name = text.partition(":")
    sizes, name = sizes_of(shape), name or "float32"
    if name not in (*_FLOATS, *_INTEGERS):
        raise UserError("E110", f'--input has unknown dtype "{name}"', did_you_mean(name, (*_FLOATS, *_INTEGERS)))
    assert sizes is not None, "a shape was given"
    dtype = getattr(torch, name)
    if name in _INTEGERS:
        return torch.ones(_SAMPLES, *sizes, dtype=dtype)
    return torch.randn(_SAMPLES, *sizes, generator=generator_from(seed)).to(dtype)


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
