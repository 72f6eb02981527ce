"""Raw inputs to model inputs, and the text that says how."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

from mirabelle.errors import UserError
from mirabelle.task.preprocessing import Image, Table, from_json, to_json
from mirabelle.task.preprocessing.image import mean_and_deviation, white_of
from mirabelle.task.preprocessing.pictures import Resizing, header_of, pixels
from mirabelle.task.preprocessing.scaling import settled
from mirabelle.task.preprocessing.table import read_rows


def test_an_image_becomes_what_the_formula_says(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Picture.fromarray(values).save(tmp_path / "a.png")
    image = Image(size=(4, 5), mode="RGB", mean=(0.1, 0.2, 0.3), deviation=(0.5, 1.0, 2.0))
    given_input = image(tmp_path / "a.png")
    assert given_input.shape == image.shape == (3, 4, 5)
    assert given_input.dtype == np.float32
    due = (values / 255 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(given_input, due.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)  # float32 against float64


def test_images_of_other_sizes_are_scaled_by_pillow(tmp_path: Path) -> None:
    picture = Picture.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8))
    picture.save(tmp_path / "a.png")
    due = np.asarray(picture.resize((4, 3), Picture.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png", Resizing((3, 4)), "L")[..., 0], due)


def test_images_of_every_mode_are_read_without_a_warning(tmp_path: Path) -> None:
    grey = Picture.fromarray(np.full((2, 2), 100, np.uint8))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        grey.convert(mode).save(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pixels(path, Resizing((2, 2)), "RGB").shape == (2, 2, 3)
    Picture.fromarray(np.full((2, 2), 100 * 256 + 7, np.uint16)).save(tmp_path / "deep.png")
    assert (pixels(tmp_path / "deep.png", Resizing((2, 2)), "L") == 100 * 256 + 7).all()


def test_a_photo_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    exif = Picture.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Picture.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    header = header_of(tmp_path / "a.jpg")
    assert (header.size, header.mode, header.deep) == ((8, 4), "RGB", False)


def save_colours_of_16_bits(path: Path, values: np.ndarray, kind: int) -> None:
    """Write a .png file of 16 bits for each channel, filtered by differences, which Pillow cannot write."""
    height, width, channels = values.shape
    rows = values.astype(">u2").tobytes()
    step, length = 2 * channels, 2 * channels * width
    lines = []
    for k in range(height):
        row = np.frombuffer(rows[k * length : (k + 1) * length], np.uint8)
        lines.append(b"\1" + (row - np.concatenate([np.zeros(step, np.uint8), row[:-step]])).tobytes())
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(lines))),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(("channels", "kind"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_colours_of_16_bits_keep_all_of_them(tmp_path: Path, channels: int, kind: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    save_colours_of_16_bits(tmp_path / "a.png", values, kind)
    colours = 3 if channels > 2 else 1
    found = pixels(tmp_path / "a.png", Resizing((5, 7)), "RGB" if colours == 3 else "L")
    np.testing.assert_array_equal(found, values[..., :colours])
    header = header_of(tmp_path / "a.png")
    assert (header.deep, header.transparent, header.mode) == (True, channels in (2, 4), "RGB" if colours == 3 else "L")
    if colours == 3:
        grey = pixels(tmp_path / "a.png", Resizing((5, 7)), "L")[..., 0]
        np.testing.assert_allclose(grey, values[..., :3] @ [0.299, 0.587, 0.114], rtol=1e-5)  # float32


def test_deep_greys_keep_their_levels_in_every_format(tmp_path: Path) -> None:
    ramp = np.arange(4096).reshape(64, 64)
    Picture.fromarray(ramp.astype(np.uint16)).save(tmp_path / "a.png")
    Picture.fromarray(ramp.astype(np.uint16)).save(tmp_path / "a.tif")
    Picture.fromarray(ramp.astype(np.int32)).save(tmp_path / "b.tif")
    Picture.fromarray((ramp / 4096).astype(np.float32)).save(tmp_path / "c.tif")
    for name, scale in (("a.png", 1), ("a.tif", 1), ("b.tif", 1), ("c.tif", 4096)):
        np.testing.assert_array_equal(pixels(tmp_path / name, Resizing((64, 64)), "L")[..., 0] * scale, ramp)
        assert pixels(tmp_path / name, Resizing((16, 16)), "RGB").shape == (16, 16, 3)
    (tmp_path / "d.pgm").write_bytes(b"P5 64 64 4095\n" + ramp.astype(">u2").tobytes())
    np.testing.assert_allclose(pixels(tmp_path / "d.pgm", Resizing((64, 64)), "L")[..., 0] / 65535, ramp / 4095, atol=1e-5)
    Picture.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "e.tif")
    with pytest.raises(UserError, match=r"E131.*NaN or infinite"):
        pixels(tmp_path / "e.tif", Resizing((2, 2)), "L")
    assert [white_of(largest) for largest in (0.0, 0.5, 200.0, 256.0, 4000.0, 65535.0, 12.5)] == [
        1,
        1,
        255,
        511,
        4095,
        65535,
        12.5,
    ]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"E131.*a\.png cannot be read as an image"):
        Image(size=(2, 2))(tmp_path / "a.png")
    with pytest.raises(UserError, match="E130"):
        Image(size=(2, 2))(tmp_path / "absent.png")


def test_every_truncation_of_an_image_is_an_error_of_ours(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".tif"):
        Picture.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"whole{suffix}")
        content = (tmp_path / f"whole{suffix}").read_bytes()
        path = tmp_path / f"part{suffix}"
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            with contextlib.suppress(UserError):
                assert pixels(path, Resizing((8, 8)), "L").shape == (8, 8, 1)


def test_mean_and_deviation_are_those_of_the_pixels() -> None:
    values = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    values[..., 2] = 51
    mean, deviation = mean_and_deviation(values)
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(deviation[:2], values.std((0, 1, 2))[:2] / 255)
    assert deviation[2] == 1.0


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e6))
def test_stored_numbers_are_few_digits_near_enough_and_settle_at_once(mean: float, deviation: float) -> None:
    (small,), (width,) = settled((mean,), (deviation,), 1, "columns")
    assert settled((small,), (width,), 1, "columns") == ((small,), (width,))
    assert abs(small - mean) <= 1e-5 * deviation
    assert abs(width - deviation) <= 1e-5 * deviation


@pytest.mark.parametrize(
    ("preprocessing", "text"),
    [
        (Image(size=(8, 8)), '{"size":[8,8]}'),
        (Image(size=(8, 8), white=4095), '{"size":[8,8],"white":4095}'),
        (
            Image(size=(28, 30), mode="RGB", mean=(0.0, 0.5, 1.0), deviation=(0.123456789, 2.0, 1.0)),
            '{"size":[28,30],"mode":"RGB","mean":[0,0.5,1],"deviation":[0.123457,2,1]}',
        ),
        (Table(columns=("größe", "b"), mean=(1.5, 0.0)), '{"columns":["größe","b"],"mean":[1.5,0]}'),
    ],
)
def test_preprocessing_is_stored_in_these_very_bytes(preprocessing: Image | Table, text: str) -> None:
    assert to_json(preprocessing) == text
    assert from_json(text) == preprocessing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "7",
        "[]",
        "{}",
        '{"size":[8,8],"columns":["a"]}',
        '{"size":[8]}',
        '{"size":[8,8,8]}',
        '{"size":[0,8]}',
        '{"size":[16385,1]}',
        '{"size":[16384,16384]}',
        '{"size":[8,"8"]}',
        '{"size":[8,8],"mode":"CMYK"}',
        '{"size":[8,8],"path":"/etc/passwd"}',
        '{"size":[8,8],"mean":[0,0]}',
        '{"size":[8,8],"mean":[NaN]}',
        '{"size":[8,8],"deviation":[0]}',
        '{"size":[8,8],"deviation":[1' + "0" * 400 + "]}",
        '{"columns":[]}',
        '{"columns":["a","a"]}',
        '{"columns":["a"],"mean":["x"]}',
    ],
)
def test_damaged_preprocessing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"error\[E141\]: the stored preprocessing is damaged"):
        from_json(text)


def test_a_table_takes_its_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeffb, name ,a\n1,"x, y",10\n\n3,z,-2.5e1\n', "utf-8")
    rows = read_rows(tmp_path / "a.csv")
    assert list(rows.lines) == [2, 4]
    assert rows.texts("name") == ["x, y", "z"]
    table = Table(columns=("a", "b"), mean=(5.0, 1.0), deviation=(5.0, 2.0))
    np.testing.assert_array_equal(table(rows), np.array([[1, 0], [-6, 1]], np.float32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,x\n", r'E131.*a\.csv, line 2, column "b": "x" is not a finite number'),
        ("a,b\n1,2\n\n1,\n", r'E131.*line 4, column "b": the cell is empty'),
        ("a,b\n1,nan\n", r'"nan" is not a finite number'),
        ("a,b\n1\n", "E131.*line 2: the row has 1 cells, the header 2"),
        ("a,c\n1,2\n", r'E131.*lacks columns "b"'),
        ("a,\n1,2\n", "E131.*column 2 has no name"),
        ("a,b,a\n1,2,3\n", 'E131.*two columns named "a"'),
        ("a,b\n", "E130.*no row"),
        ("", "E130.*is empty"),
        ("a,b\n\0\xff", "E131"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_its_place(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        Table(columns=("a", "b"))(read_rows(tmp_path / "a.csv"))


def test_numbers_beyond_float32_stay_finite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(Table(columns=("a",), deviation=(1e-3,)).scaled(np.array([[1.7e308], [-1.7e308]]))).all()
