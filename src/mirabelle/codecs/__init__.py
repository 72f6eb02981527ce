"""Symbols to bytes and back, lossless: one file a codec, constriction underneath."""

from mirabelle.codecs.codec import Codec
from mirabelle.codecs.deflate import Deflate
from mirabelle.codecs.histogram import Histogram
from mirabelle.codecs.planes import Planes
from mirabelle.codecs.sparse import Sparse

__all__ = ["Codec", "Deflate", "Histogram", "Planes", "Sparse"]
