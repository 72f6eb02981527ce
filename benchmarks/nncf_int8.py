"""Quantizes an ONNX file with NNCF; for `speed_int8.py` and `speed_minilm.py`, which run it in NNCF's own environment.

ENVIRONMENT/bin/python benchmarks/nncf_int8.py SOURCE CALIBRATION.npz TARGET [--transformer]

CALIBRATION holds an array of samples for each input of the graph.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx


def main() -> None:
    source, calibration, target, *flags = sys.argv[1:]
    arrays = dict(np.load(calibration))
    count = len(next(iter(arrays.values())))
    data = nncf.Dataset(range(count), lambda k: {name: array[k : k + 1] for name, array in arrays.items()})
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if "--transformer" in flags else {}
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=count, **kind), target)


if __name__ == "__main__":
    main()
