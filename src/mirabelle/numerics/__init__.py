"""Formulas on tensors and arrays, independent of modules, files, devices and runs."""
