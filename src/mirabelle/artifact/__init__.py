"""The artifacts of a run: a folder with the compressed model, and the packed file format .mira."""

from mirabelle.artifact.folder import load, save
from mirabelle.artifact.mira import pack, unpack

__all__ = ["load", "pack", "save", "unpack"]
