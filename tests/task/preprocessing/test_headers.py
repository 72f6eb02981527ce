"""Headers of PNG files are read without their pixels, unless EXIF data may turn the image."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from mirabelle.task.preprocessing.pictures import Resizing, header_of, pixels

HEIGHT, WIDTH = 5, 9
TURNED = 6  # the value of EXIF's orientation for a quarter of a turn
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif() -> bytes:
    data = PIL.Image.Exif()
    data[0x112] = TURNED
    return data.tobytes().removeprefix(b"Exif\0\0")


def with_chunk(place: str, *chunks: bytes) -> bytes:
    """A PNG file with more chunks before or behind its pixels."""
    picture = PIL.Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH))
    data = io.BytesIO()
    picture.save(data, "PNG")
    whole = data.getvalue()
    at = whole.index(b"IDAT" if place == "before" else b"IEND") - 4
    return whole[:at] + b"".join(chunks) + whole[at:]


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    ("kind", "data", "turned"),
    [(b"eXIf", exif(), True), (b"iTXt", XMP, True), (b"tEXt", b"Software\0x", False), (b"tIME", b"1234567", False)],
)
def test_the_size_is_that_of_the_image_turned_upright(
    kind: bytes, data: bytes, turned: bool, place: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk(place, chunk(kind, data)))
    due = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
    assert header_of(path).size == due
    upright = pixels(path, Resizing(due), "L")[..., 0]  # at its own size, so that nothing is interpolated
    plain = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    assert (upright == (np.rot90(plain, -1) if turned else plain)).all()


def test_pixels_are_not_decoded_for_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk("before", chunk(b"tEXt", b"Software\0x")))
    loaded: list[str] = []
    load = PIL.PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", lambda self: loaded.append("") or load(self))
    assert header_of(path).size == (HEIGHT, WIDTH)
    assert not loaded
    for cut in (60, 70, 75):  # a file that ends inside of its pixels has a header, too
        path.write_bytes(with_chunk("before")[:cut])
        assert header_of(path).size == (HEIGHT, WIDTH)
    assert not loaded
    path.write_bytes(with_chunk("behind", chunk(b"eXIf", exif())))
    header_of(path)
    assert loaded
