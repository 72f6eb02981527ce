"""Symbols to bytes and back, lossless: one file a codec, constriction underneath."""

from mirabelle.artifact.codecs.codec import Codec
from mirabelle.artifact.codecs.deflate import Deflate
from mirabelle.artifact.codecs.histogram import Histogram
from mirabelle.artifact.codecs.planes import Planes
from mirabelle.artifact.codecs.sparse import Sparse

__all__ = ["Codec", "Deflate", "Histogram", "Planes", "Sparse"]
