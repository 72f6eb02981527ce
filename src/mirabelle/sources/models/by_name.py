"""A model by name: a Python factory, or a file of another framework."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.sources.models.factory import made_by
from mirabelle.sources.names import HUBS, ONNX, is_trained, names_model_folder, path_of


def model_from(name: str, arguments: Mapping[str, Any], folder: Path) -> nn.Module:
    """The module that a name stands for.

    Args:
        name: "pkg.mod:function", "./file.py:function", which may return a Keras model, too; the path of an .onnx, .keras or
            .h5 file or of a folder of transformers, in an installed package "package:name/folder"; or
            "hf:organisation/model@revision", of ModelScope "ms:…".
        arguments: keywords of the factory; of transformers those of `Head`; an ONNX file takes `outputs`, names of the values
            that are wanted; Keras files none.
        folder: against which paths are read.

    Raises:
        UserError: E120 when the factory is not found or raises; E130 and E141 as a file fails; E121 when a factory returns no
            module, or a graph is not covered; E111 arguments for a file; E112 no such value in a graph; E160 without the
            package that reads it.
    """
    if not is_trained(name):
        return in_torch(made_by(name, arguments, folder))
    if name.startswith(HUBS) or names_model_folder(name):
        from mirabelle.sources.models.huggingface import Head, module_from_huggingface

        return module_from_huggingface(name, folder, records.build(Head, arguments, "model.arguments"))
    outputs = arguments.get("outputs", ()) if name.lower().endswith(ONNX) else ()
    if set(arguments) - ({"outputs"} if outputs else set()) or not _are_names(outputs):
        remedy = "leave them out; of an ONNX file outputs = [names of values] are taken"
        raise UserError("E111", f"{name} is a file, which takes no arguments; got {sorted(arguments)}", remedy)
    if name.lower().endswith(ONNX):
        from mirabelle.sources.models.onnx_graph import module_from_onnx

        return module_from_onnx(path_of(name, folder), outputs)
    from mirabelle.sources.models.keras_model import module_from_keras

    return module_from_keras(path_of(name, folder))


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def in_torch(model: nn.Module) -> nn.Module:
    """The model itself; of a Keras model, which is a module of torch without layers of torch, the module that has them.

    Raises:
        UserError: E121 for a Keras model whose graph is not known, or that is not covered.
    """
    keras = sys.modules.get("keras")  # a Keras model comes with the package imported
    if keras is None or not isinstance(model, getattr(keras, "Model", ())):
        return model
    from mirabelle.sources.models.keras_model import module_from_keras

    return module_from_keras(model)
