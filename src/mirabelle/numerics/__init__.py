"""Formulas on tensors and arrays. Nothing here knows of modules, files, devices or runs."""
