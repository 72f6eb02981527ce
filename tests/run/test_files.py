from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mirabelle.errors import UserError
from mirabelle.run import files


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    files.write_json(tmp_path / "deep" / "a.json", {"x": [1, 2]})
    assert files.read_json(tmp_path / "deep" / "a.json") == {"x": [1, 2]}
    tensors = {"a": torch.randn(3, 2).t(), "b": torch.tensor(1, dtype=torch.int8)}
    files.write_tensors(tmp_path / "t.safetensors", tensors, {"note": "x"})
    read, metadata = files.read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"note": "x"}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        files.write_tensors(tmp_path / name, {"b": torch.ones(2), "a": torch.zeros(1)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_length_of_a_file_is_known_before_it_is_written(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.int8, torch.bool, torch.int64, torch.float64, torch.bfloat16, torch.float16, torch.uint8)
    tensors = {f"a.{k}é": torch.zeros(k, 3, dtype=kind) for k, kind in enumerate(kinds)} | {"one": torch.tensor(1.0)}
    for part in (tensors, {"w": torch.zeros(1000, 7)}, {}):
        files.write_tensors(tmp_path / "t.safetensors", part)
        assert (tmp_path / "t.safetensors").stat().st_size == files.length_of_tensors(part)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left") as caught:
        files.write_json(path, 2)
    assert caught.value.exit_status == 3
    assert files.read_json(path) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"\x80\x04K\x01."])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError, match="E141"):
        files.read_json(path)
    with pytest.raises(UserError, match="E141"):
        files.read_tensors(path)


def test_digests_tell_the_parts_apart() -> None:
    assert files.digest(b"ab", b"c") != files.digest(b"a", b"bc")
    assert len(files.digest(b"")) == 16
