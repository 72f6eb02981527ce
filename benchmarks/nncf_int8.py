"""Quantizes an ONNX file with NNCF; for `speed_int8.py`, which runs it in NNCF's own environment.

ENVIRONMENT/bin/python benchmarks/nncf_int8.py SOURCE CALIBRATION.npy TARGET
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx


def main() -> None:
    source, calibration, target = sys.argv[1:]
    model, images = onnx.load(source), np.load(calibration)
    name = model.graph.input[0].name
    data = nncf.Dataset(images, lambda image: {name: image[None]})
    onnx.save(nncf.quantize(model, data, subset_size=len(images)), target)


if __name__ == "__main__":
    main()
