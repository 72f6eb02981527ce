"""Trained weights from a file that holds data alone."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mirabelle import files
from mirabelle.sources.held import held_weights
from mirabelle.state import load_tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a safetensors file into the model.

    Raises:
        UserError: E143 for a pickle, E130, E140 and E141 as the file fails.
    """
    held_weights(path)
    load_tensors(model, files.read_tensors(path)[0], source=str(path))
