"""What ships and what resumes: one file a format."""

from mirabelle.artifact.folder import load, save
from mirabelle.artifact.mira import pack, unpack

__all__ = ["load", "pack", "save", "unpack"]
