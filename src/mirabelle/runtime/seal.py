"""The digest that an exported ONNX file carries in its metadata, so that a change of any byte is noticed wherever it lies.

The digest is that of the file's bytes with zeros in the place of the digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.run.files import digest_of_bytes

if TYPE_CHECKING:
    from onnx import ModelProto

SEAL = "mirabelle.digest"
ZEROS = b"0" * 16
_MARK = b"".join(  # as protobuf writes the entry: tags, lengths, key; the value follows
    [b"\x0a", bytes([len(SEAL)]), SEAL.encode(), b"\x12", bytes([len(ZEROS)])]
)


def sealed(model: ModelProto) -> bytes:
    """The bytes of a model with their digest, which is added to its metadata; the initializers are taken out of the model."""
    from mirabelle.runtime.skeleton import written

    model.metadata_props.add(key=SEAL, value=ZEROS.decode())
    out = written(model)
    data = out.getvalue()
    digest, begin = digest_of_bytes(data), data.rfind(_MARK) + len(_MARK)
    del data  # otherwise the next line copies it
    out.seek(begin)
    out.write(digest.encode())
    return out.getvalue()


def is_as_written(onnx: bytes) -> bool | None:
    """Whether an ONNX file has the digest with which Mirabelle wrote it; None if it carries none.

    Example:
        >>> import onnx
        >>> data = sealed(onnx.ModelProto(producer_name="mirabelle"))
        >>> is_as_written(data), is_as_written(data.replace(b"mirabelle", b"Mirabelle", 1)), is_as_written(b"")
        (True, False, None)
    """
    begin = onnx.rfind(_MARK) + len(_MARK)
    if begin < len(_MARK):
        return None
    end = begin + len(ZEROS)
    return onnx[begin:end] == digest_of_bytes(b"".join([onnx[:begin], ZEROS, onnx[end:]])).encode()
