"""What a person writes after an option, read: shapes, example inputs, files to write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirabelle.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mirabelle.task.batch import Batch

_SAMPLES = 2  # of an example
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_WHOLE = ("int64", "int32", "int16", "int8", "uint8", "bool")


def sizes_of(shape: str | None) -> tuple[int, ...] | None:
    """The sizes that "1x28x28" names; None where nothing was said.

    Raises:
        UserError: E110 for anything else.

    Example:
        >>> sizes_of("1x28x28")
        (1, 28, 28)
    """
    if shape is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError("E110", f'--input must be sizes joined by "x"; got "{shape}"', "write --input 1x28x28, say")
    return tuple(int(size) for size in shape.split("x"))


def example_of(inputs: Sequence[str]) -> Batch | None:
    """Two samples of inputs as --input names them, once for each input of the model; None where nothing was said.

    Each is `[NAME=]SIZES[:TYPE]`, sizes without the batch axis, float32 by default: "3x32x32", "16:int64", or
    "input_ids=16:int64", which is passed by name. Floating numbers are drawn with a fixed seed; whole ones are 1, a row that
    every table has, and a mask that hides nothing.

    Raises:
        UserError: E110 for anything else, E111 where only some have a name or two have one.

    Example:
        >>> [(tensor.shape, tensor.dtype) for tensor in example_of(["16:int64", "4"]).inputs]
        [(torch.Size([2, 16]), torch.int64), (torch.Size([2, 4]), torch.float32)]
    """
    if not inputs:
        return None
    import torch

    from mirabelle.task.batch import Batch

    read = [(name if is_named else "", rest) for name, is_named, rest in (_named(text) for text in inputs)]
    tensors = [_example_tensor(rest, seed) for seed, (_, rest) in enumerate(read)]
    names = [name for name, _ in read if name]
    if len(names) not in (0, len(inputs)) or len(set(names)) != len(names):
        raise UserError(
            "E111", f"every --input has a name of its own, or none has; got {', '.join(inputs)}", "write --input NAME=16:int64"
        )
    if names:
        return Batch(dict(zip(names, tensors, strict=True)), torch.zeros(_SAMPLES))
    return Batch(tensors[0] if len(tensors) == 1 else tuple(tensors), torch.zeros(_SAMPLES))


def _named(text: str) -> tuple[str, bool, str]:
    name, equals, rest = text.partition("=")
    return (name, True, rest) if equals and name.isidentifier() else ("", False, text)


def _example_tensor(text: str, seed: int) -> Tensor:
    import torch

    shape, _, kind = text.partition(":")
    sizes, kind = sizes_of(shape), kind or "float32"
    if kind not in (*_FLOATS, *_WHOLE):
        raise UserError("E110", f'--input knows no type "{kind}"', did_you_mean(kind, (*_FLOATS, *_WHOLE)))
    assert sizes is not None, "a shape was given"
    dtype = getattr(torch, kind)
    if kind in _WHOLE:
        return torch.ones(_SAMPLES, *sizes, dtype=dtype)
    return torch.randn(_SAMPLES, *sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check_inputs(module: nn.Module, example: Batch) -> None:
    """Run the model once on an example.

    Raises:
        UserError: E121 when it fails, with the shapes and what it said.
    """
    import torch

    from mirabelle.errors import is_out_of_memory
    from mirabelle.task.batch import call, tensors_of

    given = ", ".join("x".join(map(str, tensor.shape[1:])) for tensor in tensors_of(example.inputs))
    try:
        with torch.no_grad():
            call(module, example.inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError("E121", f"the model fails on inputs of {given}: {reason}", "give the shape that it takes") from error


def output_of(out: Path, suffix: str, source: Path) -> Path:
    """The file that --out names, held to its kind, so that nobody's other file is written over.

    Raises:
        UserError: E143 another ending, or the very file that is read; E151 a folder.
    """
    if out.suffix != suffix:
        raise UserError("E143", f"--out must end in {suffix}; got {out}", f"write --out {out.with_suffix(suffix)}")
    if out.is_dir():
        raise UserError("E151", f"{out} is a folder", f"name a file in it: {out / ('out' + suffix)}")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError("E143", f"--out is {source} itself, which is being read", "name another file")
    return out
