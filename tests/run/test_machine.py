"""What made-up machines mean for speed, and what this one says of itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mirabelle.run.machine import Machine, advice, container_limits, features_of, this_machine

SERVER = Machine("big", 64, 32, 64, ("AVX2", "AVX512", "VNNI", "AMX int8", "AMX bf16", "bf16"), 10**12, 10**12, 10**12)
PLAIN = Machine("small", 4, 4, 4, ("AVX2",), 16 * 10**9, 8 * 10**9, 10**11)


def said(machine: Machine) -> str:
    return "\n".join(advice(machine))


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (SERVER, "1.25 to 2.5 times"),
        (SERVER, "2.1 to 3.4"),
        (SERVER, "(AMX)"),
        (SERVER, 'precision = "auto"'),
        (SERVER, "Two threads share a core; 32"),
        (PLAIN, "can saturate"),
        (PLAIN, "no bfloat16"),
        (replace(PLAIN, features=("bf16",)), 'precision = "auto"'),
        (replace(PLAIN, available_bytes=10**9), "Little memory is free (1.0 GB)"),
        (replace(PLAIN, memory_limit_bytes=5 * 10**8), "Little memory is free (0.5 GB)"),
        (replace(PLAIN, disk_free_bytes=10**9), "The disk is nearly full (1.0 GB free)"),
        (replace(PLAIN, usable_cores=1), "With 1 core,"),
        (replace(PLAIN, usable_cores=2), "may run on 2 of 4 cores"),
        (replace(PLAIN, core_limit=1.5), "set OMP_NUM_THREADS=1"),
        (replace(PLAIN, threads_asked=1), "leaves some of 4 cores idle"),
    ],
)
def test_a_condition_has_its_sentence(machine: Machine, words: str) -> None:
    assert words in said(machine)


def test_a_good_machine_is_told_no_trouble() -> None:
    for words in ("saturate", "memory", "disk", "idle", "container", "may run on"):
        assert words not in said(SERVER)
    assert "(AMX)" not in said(PLAIN)
    assert "1.25" not in said(PLAIN)


def test_what_is_unknown_is_not_complained_about() -> None:
    assert "memory" not in said(replace(PLAIN, available_bytes=None, memory_bytes=None, disk_free_bytes=None))


def test_threads_are_the_physical_cores_that_may_be_used_unless_asked_otherwise() -> None:
    assert SERVER.threads == 32
    assert replace(SERVER, usable_cores=2).threads == 2
    assert replace(SERVER, threads_asked=5).threads == 5


def test_flags_are_known_by_every_spelling() -> None:
    assert features_of(frozenset({"avx_vnni", "amx_int8"})) == ("VNNI", "AMX int8")
    assert features_of(frozenset({"avx512vnni", "avx512_bf16", "AVX512F"})) == ("AVX512", "VNNI", "bf16")


def test_the_container_allows_the_least_of_all_groups_above(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/old\n0::/a/b\n")
    inner = tmp_path / "groups" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("400000 100000\n")
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "groups" / "memory.max").write_text("3000000\n")
    assert container_limits(tmp_path / "groups", own) == (1.5, 3_000_000)
    (inner.parent / "cpu.max").write_text("max 100000\n")
    assert container_limits(tmp_path / "groups", own)[0] == 4.0
    assert container_limits(tmp_path / "none", tmp_path / "none") == (None, None)


def test_packages_that_cannot_be_imported_leave_things_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psutil", "cpuinfo"):
        monkeypatch.setitem(sys.modules, name, None)
    machine = this_machine()
    assert machine.memory_bytes is None
    assert machine.physical_cores == machine.logical_cores
    assert advice(machine)


def test_this_machine_agrees_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine = this_machine()
    assert machine.processor
    assert 1 <= machine.physical_cores <= machine.logical_cores
    assert machine.memory_bytes is not None
    assert machine.memory_bytes >= (machine.available_bytes or 0) > 0
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512"):
        assert capability in machine.features
    assert machine.to_data()["threads"] == machine.threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert this_machine().threads == 3
