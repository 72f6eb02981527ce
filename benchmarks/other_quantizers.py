"""ONNX Runtime's own quantizer and NNCF, for the benchmarks that compare with them. Each takes the arrays of the calibration by input."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from conditions import ROOT

Arrays = dict[str, np.ndarray[Any, Any]]


def by_onnxruntime(source: Path, samples: Arrays, form: str, **preparation: bool) -> Path:
    """The file of ONNX Runtime's static quantizer in a form (QDQ or QOperator), beside its source."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            self.left = iter(range(len(next(iter(samples.values())))))

        def get_next(self) -> dict[str, Any] | None:
            k = next(self.left, None)
            return None if k is None else {name: array[k : k + 1] for name, array in samples.items()}

    prepared, target = source.parent / "prepared.onnx", source.parent / f"onnxruntime-{form}.onnx"
    with contextlib.chdir(source.parent):  # ONNX Runtime leaves temporary files in the working directory
        quant_pre_process(str(source), str(prepared), **preparation)
        quantize_static(
            str(prepared), str(target), Reader(), quant_format=QuantFormat[form],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
    return target


def by_onnxruntime_dynamic(source: Path) -> Path:
    """The file of ONNX Runtime's dynamic quantizer, with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    target = source.parent / "onnxruntime-dynamic.onnx"
    with contextlib.chdir(source.parent):
        quantize_dynamic(source, target)
    return target


def by_nncf(source: Path, samples: Arrays, interpreter: Path, *flags: str) -> Path:
    """The file of NNCF, which the interpreter of an environment with NNCF makes."""
    calibration, target = source.parent / "calibration.npz", source.parent / "nncf.onnx"
    np.savez(calibration, **samples)
    command = [interpreter, ROOT / "benchmarks" / "nncf_int8.py", source, calibration, target, *flags]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    return target
