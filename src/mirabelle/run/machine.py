"""The machine as plain data, and advice on what it means for speed.

Nothing is measured and nothing slow is imported: `this_machine` reads what the system reports, `advice` reads a table.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Name of a feature -> the CPU flags that indicate it, as spelled by Linux and py-cpuinfo, without underscores.
_FEATURES: Mapping[str, tuple[str, ...]] = {
    "AVX2": ("avx2",),
    "AVX512": ("avx512f",),
    "VNNI": ("avx512vnni", "avxvnni", "asimddp"),
    "AMX int8": ("amxint8",),
    "AMX bf16": ("amxbf16",),
    "bf16": ("avx512bf16", "bf16"),
}
_LITTLE_MEMORY, _LOW_DISK = 2e9, 2e9
_UNLIMITED = 1 << 60  # cgroup version 1 and some systems write a number near 2⁶³ for "no limit"


@dataclass(frozen=True)
class Machine:
    """Processor, memory and disk. Values that the system does not report are None.

    Args:
        processor: model name.
        logical_cores: including hyper-threads.
        physical_cores: without hyper-threads.
        usable_cores: logical cores on which this process may run (CPU affinity).
        features: those of AVX2, AVX512, VNNI, AMX int8, AMX bf16 and bf16 that the processor has.
        memory_bytes: installed memory.
        available_bytes: memory that is available now.
        disk_free_bytes: free space on the disk of the current folder.
        core_limit: CPU time limit of the container, in cores; None if it is not below `logical_cores`.
        memory_limit_bytes: memory limit of the container; None if it is not below `memory_bytes`.
        threads_asked: value of the environment variable OMP_NUM_THREADS; None if it is not set.
    """

    processor: str
    logical_cores: int
    physical_cores: int
    usable_cores: int
    features: tuple[str, ...]
    memory_bytes: int | None
    available_bytes: int | None
    disk_free_bytes: int | None
    core_limit: float | None = None
    memory_limit_bytes: int | None = None
    threads_asked: int | None = None

    @property
    def threads(self) -> int:
        """Default number of threads of torch and ONNX Runtime."""
        return self.threads_asked or max(1, min(self.physical_cores, self.usable_cores))

    def has(self, feature: str) -> bool:
        """Whether the processor has a feature, such as "VNNI"."""
        assert feature in _FEATURES, f"{feature} is not in the table of features"
        return feature in self.features

    def to_data(self) -> dict[str, Any]:
        return {**asdict(self), "features": list(self.features), "threads": self.threads}


def this_machine(folder: Path | None = None) -> Machine:
    """Describe this machine; disk space is that of the disk of `folder`, by default the current folder."""
    psutil: Any = _or_none(lambda: importlib.import_module("psutil"))
    processor, flags = _processor_and_flags()
    logical = os.cpu_count() or 1
    memory = _or_none(lambda: psutil.virtual_memory().total)
    core_limit, memory_limit = container_limits()
    omp_threads = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(
        processor=processor,
        logical_cores=logical,
        physical_cores=_or_none(lambda: psutil.cpu_count(logical=False)) or logical,
        usable_cores=_or_none(lambda: len(psutil.Process().cpu_affinity())) or logical,  # not available on macOS
        features=features_of(flags),
        memory_bytes=memory,
        available_bytes=_or_none(lambda: psutil.virtual_memory().available),
        disk_free_bytes=_or_none(lambda: shutil.disk_usage(folder or Path()).free),
        core_limit=core_limit if core_limit is not None and core_limit < logical else None,
        memory_limit_bytes=memory_limit if memory and memory_limit is not None and memory_limit < memory else None,
        threads_asked=int(omp_threads) if omp_threads.isdigit() and int(omp_threads) else None,
    )


def advice(machine: Machine) -> list[str]:
    """Sentences on what the machine means for the speed of training and of the compressed model.

    Example:
        >>> phone = Machine("small", 1, 1, 1, (), 8_000_000_000, 1_000_000_000, 10_000_000_000)
        >>> advice(phone)[-1]
        'Little memory is free (1.0 GB): close other programs, or choose smaller batches.'
    """
    return [sentence(machine) for holds, sentence in _SENTENCES if holds(machine)]


def processor_name() -> str:
    """The model name of the processor; "unknown" if the system does not report it."""
    return _processor_and_flags()[0]


def features_of(flags: frozenset[str]) -> tuple[str, ...]:
    """The features that the flags of a processor indicate.

    Example:
        >>> features_of(frozenset({"avx2", "avx512_vnni"}))
        ('AVX2', 'VNNI')
    """
    plain = {flag.lower().replace("_", "") for flag in flags}
    return tuple(name for name, indicators in _FEATURES.items() if plain & set(indicators))


@functools.cache
def int8_saturates() -> bool:
    """Whether sums of uint8 × int8 products may saturate at 16 bits: true if the processor has no int8 dot product."""
    return "VNNI" not in features_of(_processor_and_flags()[1])


def container_limits(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[float | None, int | None]:
    """The limits set by control groups (cgroup version 2): number of cores and bytes of memory, None for no limit.

    The limit is the smallest one among the group of this process and its parents.

    Args:
        root: mount point of the cgroup file system.
        own: file that names the group of this process.
    """
    group = next((line[3:] for line in _text(own).splitlines() if line.startswith("0::")), "/").strip("/")
    inner = root / group
    folders = [inner, *(folder for folder in inner.parents if folder == root or root in folder.parents)] if group else [root]
    cores = [limit for folder in folders if (limit := _cores(_text(folder / "cpu.max"))) is not None]
    memory = [int(text) for folder in folders if (text := _text(folder / "memory.max").strip()).isdigit()]
    return min(cores, default=None), min((limit for limit in memory if limit < _UNLIMITED), default=None)


def _cores(text: str) -> float | None:
    """Convert the content of cpu.max, "quota period" in microseconds, into a number of cores; None for no limit."""
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _processor_and_flags() -> tuple[str, frozenset[str]]:
    """Model name and flags of the processor: from /proc/cpuinfo on Linux, otherwise from py-cpuinfo, which takes a second."""
    pairs = [line.partition(":") for line in _text(Path("/proc/cpuinfo")).splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    name, flags = fields.get("model name", ""), frozenset(fields.get("flags", fields.get("Features", "")).split())
    if not name or not flags:
        info: Mapping[str, Any] = _or_none(lambda: importlib.import_module("cpuinfo").get_cpu_info()) or {}
        name, flags = name or info.get("brand_raw", ""), flags or frozenset(info.get("flags", ()))
    return name or "unknown", flags


def _or_none(query: Callable[[], Any]) -> Any:
    """The result of a query of the system; None if it fails, with whatever exception."""
    try:
        return query()
    except Exception:  # noqa: BLE001
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _gigabytes(count: float | None) -> str:
    return f"{(count or 0) / 1e9:.1f} GB"


def usable_memory() -> float:
    """Bytes of memory that are free now, within the limit of the container; infinite if the system reports neither."""
    psutil: Any = _or_none(lambda: importlib.import_module("psutil"))
    known = [_or_none(lambda: psutil.virtual_memory().available), container_limits()[1]]
    return min((float(count) for count in known if count is not None), default=float("inf"))


def _usable_memory(machine: Machine) -> float:
    known = [count for count in (machine.available_bytes, machine.memory_limit_bytes) if count is not None]
    return min(known, default=float("inf"))


def _trains_in_bfloat16(machine: Machine) -> bool:
    return machine.has("AMX bf16") or machine.has("bf16")


def _few_threads_allowed(machine: Machine) -> bool:
    return machine.core_limit is not None and machine.core_limit < machine.threads


_Sentence = tuple[Callable[[Machine], bool], Callable[[Machine], str]]
_SENTENCES: tuple[_Sentence, ...] = (
    (
        lambda machine: machine.has("VNNI"),
        lambda _: (
            "int8 makes models faster here: the processor has int8 dot products (VNNI). In ONNX Runtime, quantized "
            "convolutional networks run about 1.25 to 2.5 times as fast, networks like BERT 2.1 to 3.4 times."
        ),
    ),
    (
        lambda machine: machine.has("AMX int8"),
        lambda _: "The processor has int8 matrix units (AMX): large int8 matrix products are faster still.",
    ),
    (
        lambda machine: not machine.has("VNNI"),
        lambda _: (
            "The processor has no int8 dot product (VNNI): quantized models are smaller but may run slower, and sums of "
            "uint8 × int8 products can saturate. Mirabelle therefore sets session.x64quantprecision = 1 in ONNX Runtime; do "
            "the same."
        ),
    ),
    (
        _trains_in_bfloat16,
        lambda _: 'The processor has bfloat16 arithmetic: training in bfloat16 may be faster; precision = "auto" measures it.',
    ),
    (
        lambda machine: not _trains_in_bfloat16(machine),
        lambda _: "The processor has no bfloat16 arithmetic: train in float32.",
    ),
    (
        lambda machine: machine.logical_cores > machine.physical_cores,
        lambda machine: (
            f"Two threads share a core; {machine.physical_cores} threads, one per physical core, are usually fastest."
        ),
    ),
    (
        lambda machine: machine.usable_cores < machine.logical_cores,
        lambda machine: f"This process may run on {machine.usable_cores} of {machine.logical_cores} cores.",
    ),
    (
        _few_threads_allowed,
        lambda machine: (
            f"The container limits CPU time to {machine.core_limit:g} cores, but {machine.threads} threads would start and "
            f"wait for each other: set OMP_NUM_THREADS={max(1, int(machine.core_limit or 1))}."
        ),
    ),
    (
        lambda machine: machine.threads < min(machine.physical_cores, machine.usable_cores),
        lambda machine: (
            f"OMP_NUM_THREADS={machine.threads} leaves some of {min(machine.physical_cores, machine.usable_cores)} cores idle."
        ),
    ),
    (
        lambda machine: machine.usable_cores <= 2,  # noqa: PLR2004
        lambda machine: (
            f"With {machine.usable_cores} core{'s' * (machine.usable_cores > 1)}, small models train in minutes, larger ones "
            "in hours: start with few epochs."
        ),
    ),
    (
        lambda machine: _usable_memory(machine) < _LITTLE_MEMORY,
        lambda machine: (
            f"Little memory is free ({_gigabytes(_usable_memory(machine))}): close other programs, or choose smaller batches."
        ),
    ),
    (
        lambda machine: machine.disk_free_bytes is not None and machine.disk_free_bytes < _LOW_DISK,
        lambda machine: (
            f"The disk is nearly full ({_gigabytes(machine.disk_free_bytes)} free): a run keeps a model for every step and "
            "checkpoints while it trains."
        ),
    ),
)
