"""Load a model by name: from a Python factory, a file of another framework, or a hub."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.numerics.draws import all_global_draws
from mirabelle.sources.checks import check_model
from mirabelle.sources.models.factory import made_by
from mirabelle.sources.models.keras_model.library import as_in_a_new_process
from mirabelle.sources.names import HUBS, ONNX, SENTENCES, is_trained, names_model_folder, path_of


def model_from(name: str, arguments: Mapping[str, Any], folder: Path, seed: int = 0) -> nn.Module:
    """Load a model by name as a PyTorch module.

    The names and the weights of a new model depend on its code and on the seed alone: the global generators of torch, NumPy,
    Python and Keras are seeded for it, and Keras numbers its layers from the start. Afterwards all are as they were.

    Args:
        name: "pkg.mod:function" or "./file.py:function" for a function that returns a module or a Keras model; the path of an
            .onnx, .keras or .h5 file, or of a folder saved by transformers; "package:name/folder" for such a folder in an
            installed package; "hf:organisation/model@revision" for the Hugging Face Hub, "ms:…" for ModelScope.
        arguments: keyword arguments of the function; for transformers those of `Head`; for an ONNX file `outputs`, the names of
            the values that the module returns; Keras files have none.
        folder: relative paths refer to it.
        seed: of weights that are drawn.

    Raises:
        UserError: E120 if the function is not found or raises an exception, E130 if a file does not exist, E141 if it cannot be
            read, E121 if a function returns no module or an operator is not supported, E111 if a file is given arguments, E112
            if a graph has no value of a name in `outputs`, E160 if a required package is not installed.
    """
    with all_global_draws(seed), as_in_a_new_process():
        return _model_from(name, arguments, folder)


def _model_from(name: str, arguments: Mapping[str, Any], folder: Path) -> nn.Module:
    check_model(name, folder)
    if not is_trained(name):
        return in_torch(made_by(name, arguments, folder))
    if name.startswith(HUBS) or names_model_folder(name):
        from mirabelle.sources.models.huggingface import Head, module_from_huggingface

        model = module_from_huggingface(name, folder, records.build(Head, arguments, "model.arguments"))
        modules = model.origin / SENTENCES if model.origin is not None and not arguments else None
        if modules is None or not modules.is_file():
            return model
        from mirabelle.sources.models.sentence_vectors import with_pooling

        return with_pooling(model, modules)
    outputs = arguments.get("outputs", ()) if name.lower().endswith(ONNX) else ()
    if set(arguments) - ({"outputs"} if outputs else set()) or not _are_names(outputs):
        remedy = "leave them out; an ONNX file accepts only outputs = [names of values]"
        raise UserError("E111", f"{name} is a file, which has no arguments; got {sorted(arguments)}", remedy)
    if name.lower().endswith(ONNX):
        from mirabelle.sources.models.onnx_graph import module_from_onnx

        return module_from_onnx(path_of(name, folder), outputs)
    from mirabelle.sources.models.keras_model import module_from_keras

    return module_from_keras(path_of(name, folder))


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def in_torch(model: nn.Module) -> nn.Module:
    """The model itself, or for a Keras model the module with PyTorch layers that computes the same.

    Raises:
        UserError: E121 if a Keras model has no known graph, or computes other values in PyTorch; for a TorchScript module,
            whose layers cannot be changed.
    """
    if isinstance(model, torch.jit.ScriptModule):
        remedy = "give the nn.Module that it was made from, with weights by load_state_dict(scripted.state_dict())"
        raise UserError("E121", "the model is a TorchScript module, whose layers cannot be changed", remedy)
    keras = sys.modules.get("keras")  # if it is not imported, this cannot be a Keras model
    if keras is None or not isinstance(model, getattr(keras, "Model", ())):
        return model
    from mirabelle.sources.models.keras_model import module_from_keras

    return module_from_keras(model)
