"""Files that are damaged, cut short, too large, too new, or not what they seem: each is named, and nothing is written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mirabelle.artifact.mira import MAGIC
from mirabelle.cli import main
from mirabelle.codecs.varint import write_varints

HEAD = len(MAGIC) + 1


def sealed(content: bytes, version: int = 0) -> bytes:
    """A packed file whose digest is right, whatever it holds."""
    return MAGIC + bytes([version]) + hashlib.blake2b(content, digest_size=16).digest() + content


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


FILES = {
    "empty.mira": (lambda onnx, packed: b"", "E143", "not a .mira file"),
    "text.mira": (lambda onnx, packed: b"MIRA cle of a text", "E142", "version 32"),
    "cut.mira": (lambda onnx, packed: packed[:-10], "E141", "digest does not match"),
    "flipped.mira": (lambda onnx, packed: flipped(packed, len(packed) // 2), "E141", "digest does not match"),
    "newer.mira": (lambda onnx, packed: packed[: HEAD - 1] + b"\x09" + packed[HEAD:], "E142", "version 9"),
    "huge.mira": (lambda onnx, packed: sealed(write_varints([1 << 40, 4, 4]) + b"0000"), "E141", "impossible"),
    "odd.mira": (lambda onnx, packed: sealed(write_varints([100, 4, 4]) + b"0000"), "E141", "graph cannot be read"),
    "longer.mira": (lambda onnx, packed: sealed(packed[HEAD + 16 :] + b"more", 1), "E141", "follow the last tensor"),
    "headless.mira": (lambda onnx, packed: sealed(b"\x04\x00abc", 1), "E141", "holds no ONNX model"),
    "short.mira": (lambda onnx, packed: sealed(packed[HEAD + 16 : -20], 1), "E141", "bytes expected"),
    "onnx.mira": (lambda onnx, packed: onnx, "E143", "not a .mira file"),
    "cut.onnx": (lambda onnx, packed: onnx[: len(onnx) // 2], "E141", "ONNX"),
    "empty.onnx": (lambda onnx, packed: b"", "E141", "not an ONNX model"),
    "mira.onnx": (lambda onnx, packed: packed, "E141", "not an ONNX model"),
}
COMMANDS = {
    "unpack": ("unpack", "FILE", "--out", "out.onnx"),
    "inspect": ("inspect", "FILE"),
    "bench": ("bench", "FILE"),
    "predict": ("predict", "FILE", "row.npy"),
    "pack": ("pack", "FILE", "--out", "out.mira"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAIRS = [
    (name, command)
    for name in FILES
    for command in COMMANDS
    if (command, Path(name).suffix) not in {("unpack", ".onnx"), ("pack", ".mira")}  # another command's kind of file
]


@pytest.mark.parametrize(("name", "command"), PAIRS)
def test_a_file_that_is_not_what_it_should_be_is_named(
    name: str, command: str, onnx_and_packed: tuple[bytes, bytes], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, code, words = FILES[name]
    Path(name).write_bytes(damaged(*onnx_and_packed))
    np.save("row.npy", np.zeros((1, 8, 8), np.float32))
    assert main.run([name if part == "FILE" else part for part in COMMANDS[command]]) == 2
    out, told = capsys.readouterr()
    first, remedy = told.splitlines()
    assert first.startswith(f"error[{code}]: {name}: ") or (code in ("E141", "E143") and name in first), told
    assert first.startswith(f"error[{code}]"), told
    assert words in first
    assert remedy.startswith("help: ")
    assert out == ""
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, "row.npy"])


def test_verify_calls_it_a_failed_gate(onnx_and_packed: tuple[bytes, bytes], tmp_path: Path, capsys) -> None:
    for name, (damaged, code, words) in FILES.items():
        path = tmp_path / name
        path.write_bytes(damaged(*onnx_and_packed))
        failed = code == "E141"  # what is of another kind or version is no artifact that could be verified
        assert main.run(["verify", str(path)]) == (4 if failed else 2), name
        told = capsys.readouterr().err
        assert ("error[E302]" if failed else f"error[{code}]") in told
        assert words in told
        assert "Traceback" not in told
